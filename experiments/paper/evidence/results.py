"""Tables, picture and verdicts of all finished runs below a root.

    python experiments/paper/evidence/results.py ROOT

Writes tables.md (verdicts; the objectives side by side; every layer of every task), claims.md (what `layersim claims`
says of each task) and evidence.png into ROOT.
"""

import sys
from pathlib import Path

from found import all_trained, measured_exits
from picture import picture
from rich.console import Console
from tables import Arms, by_task, has_neighbours, layers_table, objectives_table, overview_table, verdicts_table
from tasks import TASKS

from layersim.report import save_figure
from layersim.report.claims import LIMITS, Finding, Study, judge_runs
from layersim.report.claims.sheet import markdown

ABSOLUTE_EPSILON = 0.05
"""The paper's depth is that of an accuracy of 0.95, which only the digits reach."""


def write(root: Path, console: Console) -> None:
    """All three files."""
    found = by_task(all_trained(root))
    if not found:
        console.print(f"No finished run in {root}.")
        return
    parts, studies, findings, notes = [], [], {}, []
    if any(map(has_neighbours, found.values())):
        parts.append("## Objectives\n\n" + overview_table(found) + "\n")
    for name, arms in found.items():
        judged, told = _judged(root, arms)
        studies += judged
        notes += [note.replace(f"{root}/", "") for note in told if "adds to it" not in note]
        if judged:
            findings[TASKS[name].title] = judged[0][1]
        parts.append(_of_task(name, arms))
    (root / "tables.md").write_text("\n".join([verdicts_table(findings) + "\n", *parts]))
    (root / "claims.md").write_text(markdown(studies, notes))
    save_figure(picture(found), root / "evidence.png")
    for file in ("tables.md", "claims.md", "evidence.png"):
        console.print(f"{root / file}", soft_wrap=True, highlight=False)


def _judged(root: Path, arms: Arms) -> tuple[list[tuple[Study, list[Finding]]], list[str]]:
    models = [model for runs in arms.values() for model in runs if model.objective in model.task.objectives]
    directories = [path for model in models for path in (model.directory, measured_exits(root, model)) if path]
    limits = {name: limit for name, (limit, _) in LIMITS.items()} | {"absolute-epsilon": ABSOLUTE_EPSILON}
    return judge_runs(directories, limits) if directories else ([], [])


def _of_task(name: str, arms: Arms) -> str:
    task, record = TASKS[name], next(iter(arms.values()))[0].record
    what, of = ("Perplexity of a byte", "tokens") if task.tokens else ("Accuracy", "samples")
    parts = [
        f"## {task.title}\n\n{what}, {record.samples:,} held-out {of}:\n",
        layers_table(arms, task.objectives) + "\n",
    ]
    if has_neighbours(arms):
        parts.append("Objectives side by side:\n\n" + objectives_table(arms) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    write(Path(sys.argv[1]).resolve(), Console())
