"""How far `layersim exits --plan` is off: seconds predicted of a layer, a head and a compaction, beside those measured.

    python experiments/benchmarks/exit_plan.py [--models vit bert] [--batch 16] [--rounds 5] [--threads 1]
    python experiments/benchmarks/exit_plan.py --run RUN [--batch 64]

ViT-S/16 at 224 pixels and a BERT-base shape with 128 tokens, 12 layers, random weights; samples leave evenly at the
first third of the layers, or at all. With the directory of `layersim exits`: its model on its validation data, leaving
as its policy decides, at three thresholds of its curve. Each is predicted for batches of every size up to `--batch`,
then run; the ratio is that of the predicted seconds to the least of the rounds.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from early_exit import MODELS
from rounds import machine, table
from serving import data_of

from layersim.evaluation import evaluating
from layersim.exits import Confidence, Costs, EarlyExit, measure_costs
from layersim.exits.plan import Scheduled
from layersim.exits.speed import Batch, quickest
from layersim.export import truncate
from layersim.export.truncation import library_of
from layersim.heads import Head, SharedHead
from layersim.report import ExitReport


def costs_of(early: EarlyExit, batch: Batch, rounds: int) -> Costs:
    backbone, head = early.backbone, early.head
    library = library_of(backbone)

    def cut(depth: int) -> Callable[[Batch], object]:
        model = truncate(backbone, head, depth)

        def run(batch: Batch) -> object:
            with evaluating(backbone), torch.inference_mode():
                return library.logits(model, batch).argmax(dim=-1)

        return run

    return measure_costs(backbone, head, early.policy, cut, [batch], rounds=rounds)


def by_schedule(name: str, size: int, rounds: int) -> str:
    title, make = MODELS[name]
    torch.manual_seed(0)
    backbone, batch, _ = make(size)
    backbone.eval()
    head: Head = SharedHead(backbone).eval()
    costs = costs_of(EarlyExit(backbone, head, Confidence(), 0.5), batch, rounds)
    scheduled = Scheduled(Confidence())
    early, layers, rows = EarlyExit(backbone, head, scheduled, 1.0), backbone.num_layers, []
    for size in costs.sizes:
        for deepest in (layers // 3, layers):
            plan = torch.arange(size) * 5 % deepest
            few = {key: value[:size] for key, value in batch.items()}

            def run(batch: Batch, plan: torch.Tensor = plan) -> None:
                scheduled.plan(plan)
                early(batch)

            (measured,) = quickest([run], [few], rounds)
            rows.append(row(size, f"1 … {deepest}", size * costs.of_exits(plan.numpy(), layers, size), measured))
    return f"{title}\n\n{table(['batch', 'leave at', 'predicted, ms', 'measured, ms', 'ratio'], rows)}\n"


def of_run(run: Path, size: int, rounds: int) -> str:
    early, _, data = data_of(run)
    report = ExitReport.read(run)
    assert report is not None
    data.eval_batch_size = size
    batch = next(iter(data.val_dataloader()))
    costs = costs_of(early, batch, rounds)
    curve, rows = report.curve, []
    points = len(curve["threshold"])
    for place in (points // 4, points // 2, 3 * points // 4):
        early.threshold = curve["threshold"][place]
        layers = early(batch).exit_layers.numpy()
        for size in costs.sizes:
            parts = [{key: value[at : at + size] for key, value in batch.items()} for at in range(0, len(layers), size)]
            parts = [part for part in parts if len(next(iter(part.values()))) == size]
            (measured,) = quickest([early], parts, rounds)
            told = costs.of_exits(layers, early.backbone.num_layers, size) * size
            rows.append(row(size, f"{1 + layers.mean():.2f}", told, measured / len(parts)))
    return f"{run}\n\n{table(['batch', 'mean exit layer', 'predicted, ms', 'measured, ms', 'ratio'], rows)}\n"


def row(size: int, where: str, predicted: float, measured: float) -> list[str]:
    return [str(size), where, f"{1e3 * predicted:.3g}", f"{1e3 * measured:.3g}", f"{predicted / measured:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}; {options.threads} threads\n", flush=True)
    if options.run:
        print(of_run(options.run, options.batch, options.rounds))
        return
    for name in options.models:
        print(by_schedule(name, options.batch, options.rounds), flush=True)


if __name__ == "__main__":
    main()
