"""`layersim claims --standard RUN … --aligned RUN …`: which of the paper's claims hold on finished runs?"""

from pathlib import Path

from rich.console import Console

from layersim.errors import UserError, check_share
from layersim.report.claims import ARMS, LIMITS, judge, markdown, read_arms
from layersim.report.claims.verdicts import HOW, remarks, verdicts_table
from layersim.writing import written_whole


def claims(
    *,
    standard: list[Path] = [],  # noqa: B006 - these are read only
    aligned: list[Path] = [],  # noqa: B006
    alternating: list[Path] = [],  # noqa: B006
    separate: list[Path] = [],  # noqa: B006
    output: Path | None = None,
    absolute_epsilon: float | None = None,
    drop: float = 0.01,
    correlation: float = 0.8,
    shallow_gain: float = 0.1,
    last_layer_loss: float = 0.01,
    par_loss: float = 0.01,
    parameters_saved: float = 0.05,
    epsilon: float = 0.01,
    transfer_loss: float = 0.01,
) -> None:
    """Judge each claim of the paper on finished runs of one model on one data set: a number, its interval, and a
    verdict (holds, does not hold, cannot tell). Runs alike but for the seed give the interval. Give three seeds or more
    of standard, aligned and separate-heads training.

    Args:
        standard: directories of runs, or patterns of some, trained at the last layer alone
        aligned: the same of one head, trained at all layers
        alternating: of one head, trained at all layers and at the last by turns
        separate: of a head for each layer
        output: markdown too, with the paper's numbers beside
        absolute_epsilon: also judge the paper's depth, the first layer whose accuracy is at least 1 less this, such as
            0.05
        drop: a drop from one layer to a later one that still counts as none
        correlation: of cosine and CKA, from which one follows the other
        shallow_gain: a gain in accuracy that counts as far above
        last_layer_loss: the accuracy that the last layer may lose
        par_loss: a loss in accuracy that is still on a par
        parameters_saved: the share of the parameters that one head must save
        epsilon: the accuracy below the best layer's that effective depth tolerates
        transfer_loss: the accuracy that a layer may lose under shifts or on another task

    Raises:
        UserError: what is no run, no run that was trained, or a limit that is no share.
    """
    given = locals()
    if output is not None and output.suffix != ".md":
        raise UserError(f"--output: expected the name of a markdown file, which ends in .md, got {output}.")
    limits = {name: given[name.replace("-", "_")] for name in (*LIMITS, "absolute-epsilon")}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in limits.items():
        check_share(f"--{name}", limit, zero=True, one=True)
    arms = read_arms({arm: given[arm] for arm in ARMS if given[arm]})
    verdicts = judge(arms, limits)
    console = Console()
    console.print(verdicts_table(arms, verdicts))
    for line in (*remarks(verdicts), "", HOW):
        console.print(line, markup=False, highlight=False)
    for note in arms.notes:
        print(note)
    if output is not None:
        with written_whole(output) as part:
            part.write_text(markdown([(arms, verdicts)]), encoding="utf-8")
        print(f"Markdown: {output}")
