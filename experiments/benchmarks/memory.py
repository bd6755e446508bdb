"""What an evaluation costs beside its model, by the number of samples: with all default monitors, memory and time.

    python experiments/benchmarks/memory.py [--samples 1000 10000 100000] [--layers 12] [--width 384]

The model is none: it hands out random features, which change from batch to batch, as if its layers were shifted and
mixed, so that nearly all time and memory is the measuring's. Each number of samples has a process of its own; its peak
is the process's, above that of an evaluation of two batches. "end" is from the last batch to the epoch's end: what is
measured then, the record, the figures.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rounds import machine, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from callbacks import ExitCurveMonitor, LayerAccuracyMonitor, RunRecorder, SaturationMonitor, SimilarityHeatmaps
from layersim.backbones.base import Backbone
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures
from layersim.similarity import CosineSimilarity, LinearCKA

BATCH = 128


class RandomFeatures(Backbone):
    """Features of no model: noise drawn once, rolled by each batch's first position, so that they cost a copy."""

    num_classes = 10

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.num_layers = layers
        self.noise = nn.Buffer(torch.randn(layers, BATCH, width).cumsum(0), persistent=False)
        self._norm, self._classifier = nn.LayerNorm(width), nn.Linear(width, 10)

    @property
    def final_norm(self) -> nn.Module:
        return self._norm

    @property
    def classifier(self) -> nn.Module:
        return self._classifier

    def forward(self, batch: dict[str, Any], layers: Any = None) -> LayerFeatures:
        position: Tensor = batch["position"]
        shift = int(position[0]) // BATCH
        values = self.noise.roll(shift % self.noise.shape[2], dims=2)[:, : len(position)]
        return LayerFeatures(values, batch["label"], position)


class Numbers(Dataset[dict[str, Tensor]]):
    """Positions and labels, without anything to read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        positions = torch.tensor(rows)
        return [{"position": positions, "label": positions % 10}]


class Clock(Callback):
    """When the last batch was done, and the epoch."""

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self.last = time.perf_counter()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()


def measure(samples: int, layers: int, width: int, *, grouped: bool) -> tuple[float, float, float]:
    """Seconds of the batches, and of the end; the process's peak, MiB."""
    cka = LinearCKA() if grouped else LinearCKA(estimator="debiased", max_samples=4096)
    measures = {"cosine": CosineSimilarity(max_samples=4096), "cka": cka}
    monitors = [LayerAccuracyMonitor(), SimilarityHeatmaps(measures), SaturationMonitor(), ExitCurveMonitor()]
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            default_root_dir=directory,
            callbacks=[*monitors, clock, RunRecorder()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        loader = DataLoader(Numbers(samples), BATCH, collate_fn=lambda batches: batches[0])
        trainer.validate(LayerwiseModule(RandomFeatures(layers, width)), loader, verbose=False)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return clock.last - clock.start, ended - clock.last, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", choices=("images", "texts"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.one:
        found = measure(options.samples[0], options.layers, options.width, grouped=options.one == "images")
        print("measured", *found)
        return
    rows = []
    shape = ["--layers", str(options.layers), "--width", str(options.width), "--threads", str(options.threads)]
    for kind in ("images", "texts"):
        for samples in (2 * BATCH, *options.samples):
            command = [sys.executable, __file__, *shape, "--one", kind, "--samples", str(samples)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            batches, end, peak = map(float, out.split("measured")[-1].split()[:3])
            if samples == 2 * BATCH:
                least = peak
                continue
            each = 1e6 * batches / samples
            rows.append([kind, f"{samples:,}", f"{peak - least:.0f}", f"{each:.0f}", f"{end:.1f}"])
    print(f"\n{machine()}; {options.threads} threads; {options.layers} layers, width {options.width}\n")
    print(table(["as by default for", "samples", "peak above 256 samples', MiB", "a sample, µs", "end, s"], rows))


if __name__ == "__main__":
    main()
