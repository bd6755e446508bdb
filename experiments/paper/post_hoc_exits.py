"""What does touching the weights buy? Exits put on a finished model, beside those of models trained for them.

    python experiments/paper/post_hoc_exits.py [--root runs/post_hoc] [--seeds 0 1 2] [--risk 0.05] [--budget 0.5]

On the digits, with each seed: a ViT trained the standard way, read by its own head and, frozen, by a tuned lens, linear
probes and a head for each layer (`layersim lens`); the same ViT trained with the aligned loss, and with a head for each
layer. Of each `layersim exits` tells the mean exit layer at a promised risk, and the best accuracy within a budget of
layers. What is finished is not done again. About 5 minutes a seed on 2 cores that do nothing else.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from layersim.__main__ import main as layersim

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "vision/digits/aligned.yaml"
TRAINED = {"standard": "standard", "aligned": "aligned", "separate heads": "separate_heads"}
FROZEN = {"tuned": "standard, then a tuned lens", "linear": "standard, then probes", "separate": "standard, then heads"}
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]


def run(*words: str) -> None:
    if status := layersim(list(words)):
        raise SystemExit(status)


def made_in(folder: Path, *words: str) -> Path:
    """The run's directory in a folder of its own, made by these words where it is not there."""
    if not (there := [*folder.rglob("config.yaml")]):
        run(*words, *QUIET, f"--trainer.default_root_dir={folder}")
        there = [*folder.rglob("config.yaml")]
    return there[0].parent


def checkpoints(root: Path, seed: int, more: list[str]) -> dict[str, Path]:
    """Of each arm its checkpoint, trained where it is not there."""
    found = {}
    for arm, name in TRAINED.items():
        words = [f"--config={RECIPE}", f"--config={HERE / 'objectives' / name}.yaml", f"--seed_everything={seed}"]
        directory = made_in(root / f"seed{seed}" / name, "fit", *words, f"--data.seed={seed}", *more)
        found[arm] = directory / "checkpoints/last.ckpt"
        if name == "standard":
            if not (directory / "lens.json").exists():
                run("lens", f"--ckpt_path={directory}", f"--seed={seed}")
            found |= {told: directory / f"lens/{kind}.ckpt" for kind, told in FROZEN.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/post_hoc"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--risk", type=float, default=0.05, help="of an error more than the full model's")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the layers")
    options, more = parser.parse_known_args()
    root = options.root.resolve()
    told: dict[str, list[tuple[float, ...]]] = {}
    for seed in options.seeds:
        for arm, checkpoint in checkpoints(root, seed, more).items():
            both = {}
            for what in ("risk", "budget"):
                folder = root / f"seed{seed}" / f"exits, {what} {getattr(options, what):g}, {arm}"
                asked = [f"--ckpt_path={checkpoint}", f"--{what}={getattr(options, what)}", "--measure_speed=false"]
                both[what] = json.loads((made_in(folder, "exits", *asked) / "exits.json").read_text())
            risk, budget = both["risk"], both["budget"]
            row = risk["full_accuracy"], risk["mean_exit_layer"], risk["accuracy"], budget["accuracy"]
            told.setdefault(arm, []).append(row)
    headings = ("last layer", f"mean exit layer, risk {options.risk:g}", "accuracy there", f"budget {options.budget:g}")
    table = Table("trained", *headings, title=f"{len(options.seeds)} seeds: mean (least … most)")
    for arm, rows in told.items():
        cells = [f"{mean(each):.3f} ({min(each):.3f} … {max(each):.3f})" for each in zip(*rows, strict=True)]
        table.add_row(arm, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
