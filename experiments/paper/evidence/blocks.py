"""What do blocks that are left out cost, and what does a linear map in their place win back?

    python experiments/paper/evidence/blocks.py [--root runs/evidence] [--blocks 1 2 3] [--batches 50]

Of each standard and aligned model that `make evidence` trained: so many consecutive blocks are left out, those that
change features least on training data (`layersim export --remove`), then with a linear map folded into the block before
(`--replace linear`), and beside both the model is cut to as many layers (`--layers`). Losses in nats and accuracies on
the validation split, means over the seeds. Seconds a model.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from found import trained
from rich.console import Console
from rich.table import Table
from tasks import TASKS

from layersim.errors import UserError
from layersim.export import Removal, feature_changes, propose_removal, replace_linear, try_removal
from layersim.runs.models import check_kind, make_data, open_module, read_source

OBJECTIVES = ("standard", "aligned")
WAYS = ("whole", "cut", "removed", "replaced")


def tried(checkpoint: Path, blocks: list[int], batches: int) -> Iterator[tuple[Removal, list[tuple[float, float]]]]:
    """Of each number of blocks which go, and loss and accuracy of the model whole, cut, without them, and with a map.

    Where no map can be folded in, as into blocks that end with a norm, the last is missing.
    """
    source = read_source(str(checkpoint))
    assert source.data is not None
    module, data = open_module(source), make_data(source.data)
    check_kind(module.backbone, data)
    pair, layers = (module.backbone, module.head), module.num_layers

    def seen() -> Iterator[dict[str, Any]]:
        return islice(data.train_dataloader(), batches)

    changes = feature_changes(module.backbone, seen())
    for number in blocks:
        removal = propose_removal(changes, number)
        try:
            replaced = replace_linear(*pair, removal, seen())
        except UserError:
            replaced = None
        found = try_removal(*pair, removal, data.val_dataloader(), replaced)
        deepest = replace(removal, first=layers - number + 1, last=layers)
        cut = try_removal(*pair, deepest, data.val_dataloader())
        scores = [found.whole, cut.measured, found.measured, *([found.replaced] if found.replaced else [])]
        yield removal, [(score.loss, score.accuracy) for score in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--blocks", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--batches", type=int, default=50, help="of training data, to choose the blocks and fit the map"
    )
    options = parser.parse_args()
    table = Table("task", "objective", "seeds", "blocks", *WAYS, title="loss in nats (accuracy)")
    for task in TASKS.values():
        for objective in OBJECTIVES:
            told: dict[int, list[tuple[Removal, list[tuple[float, float]]]]] = {}
            for run in trained(options.root.resolve(), task, objective).values():
                for removal, scores in tried(run.directory / "checkpoints/last.ckpt", options.blocks, options.batches):
                    told.setdefault(removal.last - removal.first + 1, []).append((removal, scores))
            for found in told.values():
                which = sorted(
                    {f"{one.first} … {one.last}" if one.last > one.first else f"{one.first}" for one, _ in found}
                )
                ways = zip(*(scores for _, scores in found), strict=True)
                cells = ["{:.3f} ({:.3f})".format(*map(mean, zip(*way, strict=True))) for way in ways]
                table.add_row(task.title, objective, str(len(found)), ", ".join(which), *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
