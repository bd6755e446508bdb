"""What leaving early gains in time: the batched runner against the library's own forward of the whole model.

    python experiments/benchmarks/early_exit.py [--models vit bert] [--batches 1 8 64 256] [--rounds 5] [--threads 2]
    python experiments/benchmarks/early_exit.py --ckpt_path CHECKPOINT [--threshold 0.9]

ViT-S/16 at 224 pixels and a BERT-base shape with texts of 128 tokens, half of them padded to that length; 12 layers,
random weights, float32. A schedule given in advance lets an equal share of the samples leave at each layer, while the
real heads are read and the real scores computed. The gain in layers is then 12 ÷ 6.5 = 1.85; *wall ÷ layers* tells how
much of it arrives. A round takes as many batches as it needs for every layer to let go of as many samples; the ratio is
the median over interleaved rounds, p50 and p95 are of one batch's milliseconds, the heads' share that of final norm,
classifier and score in the time with exits. About 10 minutes for each model on 2 cores, of which batch 256 takes most.

With a checkpoint: its validation data, the exits of the confidence policy at the threshold, and beside them the oracle
of arXiv 2406.14479, who leaves as soon as the final prediction is reached for good.
"""

import argparse
import time
from collections.abc import Callable
from math import gcd
from statistics import median

import torch
from jsonargparse import ArgumentParser
from rounds import machine, table
from torch import Tensor

from layersim.backbones import TimmBackbone, TransformersBackbone
from layersim.backbones.base import Backbone
from layersim.data import SplitDataModule
from layersim.exits.plan import Scheduled
from layersim.exits.policies import Confidence
from layersim.exits.runner import EarlyExit
from layersim.heads import Head, SharedHead
from layersim.metrics import saturation_layer
from layersim.module import LayerwiseModule
from layersim.runs.checkpoints import read_checkpoint

Batch = dict[str, Tensor]


class Clock:
    """Seconds spent inside the functions that it was put around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def clocked(*args: object) -> Tensor:
            start = time.perf_counter()
            result = function(*args)
            self.seconds += time.perf_counter() - start
            return result

        return clocked


def vit(size: int) -> tuple[Backbone, Batch, Callable[[], object]]:
    backbone = TimmBackbone("vit_small_patch16_224", num_classes=1000)
    images = torch.randn(size, 3, 224, 224)
    return backbone, {"image": images}, lambda: backbone.model(images)


def bert(size: int) -> tuple[Backbone, Batch, Callable[[], object]]:
    backbone = TransformersBackbone(
        task="classification", pretrained=False, num_classes=3, config_args={"model_type": "bert"}
    )
    texts = torch.randint(1000, 30000, (size, 128))
    mask = torch.ones_like(texts)
    mask[1::2, 64:] = 0
    batch = {"input_ids": texts, "attention_mask": mask}
    return backbone, batch, lambda: backbone.model(**batch)


MODELS = {"vit": ("ViT-S/16, 224 px", vit), "bert": ("BERT-base shape, 128 tokens", bert)}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(make: Callable[[int], tuple[Backbone, Batch, Callable[[], object]]], size: int, rounds: int) -> list[float]:
    """Gain, gain ÷ layers' gain, p50 and p95 in ms of the whole model and of the runner, and the heads' share."""
    torch.manual_seed(0)
    backbone, batch, whole = make(size)
    head: Head = SharedHead(backbone)
    backbone.eval()
    head.eval()
    policy, clock = Scheduled(Confidence()), Clock()
    early_exit = EarlyExit(backbone, head, policy, 1.0)
    layers = backbone.num_layers
    plans = [(torch.arange(size) + start * size) % layers for start in range(layers // gcd(size, layers))]

    def leave(plan: Tensor) -> None:
        policy.plan(plan)
        early_exit(batch)

    whole()
    leave(plans[0])
    head.logits = clock.around(head.logits)  # type: ignore[method-assign]
    policy.policy.score = clock.around(policy.policy.score)  # type: ignore[method-assign]
    times: list[tuple[list[float], list[float]]] = []
    for _ in range(rounds):
        pairs = [(seconds(whole), seconds(lambda plan=plan: leave(plan))) for plan in plans]
        times.append(([pair[0] for pair in pairs], [pair[1] for pair in pairs]))
    gain = median(sum(full) / sum(early) for full, early in times)
    layer_gain = layers / (torch.cat(plans) + 1).double().mean().item()
    latencies = [1e3 * torch.tensor([one for each in times for one in each[kind]]) for kind in (0, 1)]
    quantiles = [each.quantile(share).item() for each in latencies for share in (0.5, 0.95)]
    return [gain, gain / layer_gain, *quantiles, clock.seconds / (latencies[1].sum().item() / 1e3)]


def oracle_gain(predictions: Tensor) -> float:
    """L ÷ the mean saturation layer of (L, N) predictions: each sample leaves as soon as its last one is reached."""
    return len(predictions) / saturation_layer(predictions).double().mean().item()


@torch.inference_mode()
def on_checkpoint(path: str, threshold: float, rounds: int) -> str:
    """A trained model on its own validation data: gains in layers and in time, and the oracle's."""
    module = LayerwiseModule.load_from_checkpoint(path, map_location="cpu").eval()
    parser = ArgumentParser()
    parser.add_subclass_arguments(SplitDataModule, "data")
    config = parser.parse_object({"data": read_checkpoint(path)["layersim"]["config"]["data"]})
    data = parser.instantiate_classes(config).data
    data.check(module.backbone)
    data.prepare_data()
    data.setup("validate")
    early_exit = EarlyExit(module.backbone, module.head, Confidence(), threshold)
    batches = list(data.val_dataloader())
    predictions = torch.cat([module(batch).readout.predictions for batch in batches], dim=1)
    exited = [early_exit(batch) for batch in batches]
    targets = torch.cat([batch["label"] for batch in batches])
    found = torch.cat([each.predictions for each in exited])
    layer_gain = module.num_layers / (torch.cat([each.exit_layers for each in exited]) + 1).double().mean().item()

    def whole() -> None:
        for batch in batches:
            features = module.backbone(batch, [module.num_layers - 1])
            module.head.logits(features.values, [module.num_layers - 1])

    def early() -> None:
        for batch in batches:
            early_exit(batch)

    gain = median(seconds(whole) / seconds(early) for _ in range(rounds))
    accuracies = [f"{(each == targets).double().mean().item():.4f}" for each in (predictions[-1], found)]
    rows = [
        ["all layers", accuracies[0], "1.00", "1.00"],
        [f"confidence ≥ {threshold:g}", accuracies[1], f"{layer_gain:.2f}", f"{gain:.2f}"],
        ["oracle", accuracies[0], f"{oracle_gain(predictions):.2f}", ""],
    ]
    return table(["leaves", "accuracy", "gain in layers", "gain in time"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ckpt_path")
    parser.add_argument("--threshold", type=float, default=0.9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}; {options.threads} threads, {options.rounds} rounds\n", flush=True)
    if options.ckpt_path:
        print(on_checkpoint(options.ckpt_path, options.threshold, options.rounds))
        return
    header = ["batch", "gain", "wall ÷ layers", "whole p50, ms", "p95", "exits p50, ms", "p95", "heads' share"]
    for name in options.models:
        title, make = MODELS[name]
        rows, pays = [], []
        for size in options.batches:
            gain, arrives, *latencies, heads = measure(make, size, options.rounds)
            shown = [f"{each:.1f}" for each in latencies]
            rows.append([str(size), f"{gain:.2f}", f"{arrives:.3f}", *shown, f"{heads:.1%}"])
            pays += [size] if gain > 1 else []
        print(f"{title}: exits pay from batch {min(pays, default='?')} on\n\n{table(header, rows)}\n", flush=True)


if __name__ == "__main__":
    main()
