"""Tables, picture and verdicts of all finished runs below a root.

    python experiments/paper/evidence/results.py ROOT

Writes tables.md (verdicts; the objectives side by side; every layer of every task), claims.md (what `layersim claims`
says of each task) and evidence.png into ROOT, and what `knowledge.py` writes.
"""

import sys
from pathlib import Path

import knowledge
from found import against_chance, all_trained
from picture import picture
from rich.console import Console
from tables import Trainings, by_task, has_neighbours, layers_table, objectives_table, overview_table, verdicts_table
from tasks import TASKS

from layersim.report import save_picture
from layersim.report.claims import Arms, Verdict, judge, markdown, read_arms
from layersim.report.claims.paper import similarity_beyond_chance

ABSOLUTE_EPSILON = 0.05
"""The paper's depth is that of an accuracy of 0.95, which only the digits reach."""


def write(root: Path, console: Console) -> None:
    """All three files."""
    found = by_task(all_trained(root))
    if not found:
        console.print(f"No finished run in {root}.")
        return
    parts, judged = [], {}
    if any(map(has_neighbours, found.values())):
        parts.append("## Objectives\n\n" + overview_table(found) + "\n")
    for name, trainings in found.items():
        of_claims = {objective: trainings[objective] for objective in TASKS[name].objectives if objective in trainings}
        if of_claims:
            judged[TASKS[name].title] = _judged(of_claims, root)
        parts.append(_of_task(name, trainings))
    verdicts = verdicts_table({title: verdicts for title, (_, verdicts) in judged.items()})
    (root / "tables.md").write_text("\n".join([verdicts + "\n", *parts]))
    (root / "claims.md").write_text(markdown(list(judged.values())).replace(f"{root}/", ""))
    save_picture(picture(found), root / "evidence.png")
    for file in ("tables.md", "claims.md", "evidence.png"):
        console.print(f"{root / file}", soft_wrap=True, highlight=False)
    knowledge.write(root, console)


def _judged(trainings: Trainings, root: Path) -> tuple[Arms, list[Verdict]]:
    arms = read_arms({name.removesuffix("_heads"): [run.directory for run in of] for name, of in trainings.items()})
    verdicts = judge(arms, {"absolute-epsilon": ABSOLUTE_EPSILON})
    found = {name: [path for run in of if (path := against_chance(root, run))] for name, of in trainings.items()}
    if validated := {name: paths for name, paths in found.items() if paths}:
        chance = [each for each in judge(read_arms(validated)) if each.claim is similarity_beyond_chance]
        verdicts = [each for each in verdicts if each.claim is not similarity_beyond_chance] + chance
    return arms, verdicts


def _of_task(name: str, arms: Trainings) -> str:
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
