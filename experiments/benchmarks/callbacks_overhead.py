"""What measuring costs: epochs of training and validation with all callbacks against the same with none.

    python experiments/benchmarks/callbacks_overhead.py [--images 128] [--rounds 3] [--threads 2] [--more]

(a) ViT-S/16 at 224 pixels, 12 layers, random images: one epoch of half a minute, far shorter than real ones. (b) the
ViT of `make demo` on the digits, its 24 epochs of a second: figures are drawn while the next epoch runs, and what is
left, with the run's page, when the last one has ended. `--more` measures calibration and geometry too, which are on
where a recipe asks for them. Medians over interleaved rounds. About 10 minutes on 2 cores.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer
from rounds import interleave, machine, ratio, table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from callbacks import (
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerCalibrationMonitor,
    LayerGeometryMonitor,
    ReportWriter,
    RunRecorder,
    SaturationMonitor,
    SimilarityHeatmaps,
)
from layersim import Digits, LayerwiseModule, TimmBackbone


class RandomImages(Dataset[dict[str, Tensor]]):
    """Images of noise with random labels."""

    def __init__(self, count: int) -> None:
        self.images = torch.randn(count, 3, 224, 224)
        self.labels = torch.randint(0, 10, (count,))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index], "position": torch.tensor(index)}


def fit(
    module: LayerwiseModule, loaders: dict[str, object], epochs: int, *, measured: bool, more: bool = False
) -> Callable[[], None]:
    """So many epochs of fit, with all callbacks or with none."""

    def run() -> None:
        measuring = [LayerAccuracyMonitor(), SaturationMonitor(), SimilarityHeatmaps(), ExitCurveMonitor()]
        measuring += [LayerCalibrationMonitor(), LayerGeometryMonitor()] if more else []
        monitors = [*measuring, RunRecorder(), ReportWriter()]
        with tempfile.TemporaryDirectory() as directory:
            trainer = Trainer(
                default_root_dir=directory,
                max_epochs=epochs,
                callbacks=monitors if measured else [],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                accelerator="cpu",
            )
            trainer.fit(module, **loaders)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--more", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    small = {"patch_size": 2, "embed_dim": 64, "depth": 6, "num_heads": 4}
    images = RandomImages(options.images)
    cases = {
        f"ViT-S/16, {options.images} + {options.images} images of 224 px": (
            TimmBackbone("vit_small_patch16_224", num_classes=10),
            {"train_dataloaders": DataLoader(images, 32), "val_dataloaders": DataLoader(images, 128)},
            1,
        ),
        "the demo's ViT, 24 × (1437 + 360) digits": (
            TimmBackbone("vit_tiny_patch16_224", num_classes=10, img_size=8, in_chans=1, model_args=small),
            {"datamodule": Digits()},
            24,
        ),
    }
    rows = []
    for name, (backbone, loaders, epochs) in cases.items():
        module = LayerwiseModule(backbone)
        contestants = {
            "on": fit(module, loaders, epochs, measured=True, more=options.more),
            "off": fit(module, loaders, epochs, measured=False),
        }
        seconds = interleave(contestants, options.rounds)
        on, off = (sorted(times)[len(times) // 2] for times in seconds.values())
        rows.append([name, f"{off:.1f}", f"{on:.1f}", f"{ratio(seconds['on'], seconds['off']):.3f}"])
    print(f"\n{machine()}; {options.threads} threads, {options.rounds} rounds\n")
    print(table(["epochs of", "callbacks off, s", "on, s", "on ÷ off"], rows))


if __name__ == "__main__":
    main()
