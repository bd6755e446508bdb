"""What leaving early gains in onnxruntime: a file with exits against that of the whole model, one sample at a time.

    python experiments/benchmarks/onnx_exits.py [--rounds 100] [--threads 1]
    python experiments/benchmarks/onnx_exits.py --run RUN [--inputs 10000]

First: ViT-S/16 at 224 pixels and a BERT-base shape with 128 tokens, random weights, in files whose temperatures let
every sample leave at the layer named; p50 of interleaved rounds, and how much of the gain in layers arrives.

With the directory of a classifier's run on images that `layersim exits` was run on: its validation images, with
noise added until there are as many inputs as asked for; whether onnxruntime and PyTorch agree on prediction and exit
layer, how far the score of those that do not lies from the threshold; p50 and p95 of PyTorch and onnxruntime, with and
without exits.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from early_exit import MODELS
from rounds import interleave, machine, table

from layersim.exits import POLICIES, Confidence, EarlyExit, exit_table
from layersim.export import export_as, export_leaving
from layersim.heads import SharedHead
from layersim.outputs import LayerFeatures
from layersim.report import ExitReport
from layersim.runs.models import make_data, open_module, read_source


def session(folder: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(folder / "model.onnx", options)


def by_layer(name: str, rounds: int, threads: int, folder: Path) -> str:
    title, make = MODELS[name]
    torch.manual_seed(0)
    backbone, batch, _ = make(1)
    backbone.eval()
    head, layers = SharedHead(backbone).eval(), backbone.num_layers
    given = {key: value.numpy() for key, value in batch.items()}
    if name == "bert":
        given["token_type_ids"] = np.zeros_like(given["input_ids"])
    contestants: dict[str, Callable[[], object]] = {}
    whole = session(export_as("onnx", backbone, head, layers, folder / f"{name}-whole"), threads)
    contestants["whole"] = lambda: whole.run(None, given)
    places = (1, 3, 6, 9, 12)
    for place in places:
        sure = [1e6] * (place - 1) + [1e-6] + [1.0] * (layers - place)
        leaving = EarlyExit(backbone, head, Confidence(), 0.5, torch.tensor(sure))
        early = session(export_leaving(leaving, folder / f"{name}-{place}"), threads)
        assert early.run(None, given)[1].tolist() == [place]
        contestants[str(place)] = lambda early=early: early.run(None, given)
    seconds = {key: np.median(taken) for key, taken in interleave(contestants, rounds).items()}
    rows = [["the whole model's file", f"{1e3 * seconds['whole']:.2f}", "1.00", ""]]
    for place in places:
        gain = seconds["whole"] / seconds[str(place)]
        share = gain / (layers / place)
        rows.append([f"all leave at {place}", f"{1e3 * seconds[str(place)]:.2f}", f"{gain:.2f}", f"{share:.2f}"])
    return f"{title}\n\n{table(['file', 'p50, ms', 'gain', 'wall ÷ layers'], rows)}\n"


@torch.inference_mode()
def of_run(run: Path, inputs: int, threads: int, folder: Path) -> str:
    source, report = read_source(str(run)), ExitReport.read(run)
    assert report is not None, f"{run} has no exits.json"
    assert source.data is not None
    module, data = open_module(source), make_data(source.data)
    data.check(module.backbone)
    data.prepare_data()
    data.setup("validate")
    images = torch.cat([batch["image"] for batch in data.val_dataloader()])
    times = -(-inputs // len(images))
    images = torch.cat([images + 0.3 * number * torch.randn_like(images) for number in range(times)])[:inputs]
    temperatures = None if report.temperatures is None else torch.tensor(report.temperatures)
    policy, head = POLICIES[report.policy](), module.head
    leaving = EarlyExit(module.backbone, head, policy, report.threshold, temperatures)
    early = session(export_leaving(leaving, folder / "exits"), threads)
    whole = session(export_as("onnx", module.backbone, head, module.num_layers, folder / "whole"), threads)
    expected = [leaving({"image": each}) for each in images.split(500)]
    predictions, layers = (torch.cat([getattr(one, key) for one in expected]) for key in ("predictions", "exit_layers"))
    told = [early.run(None, {"image": each.numpy()}) for each in images.split(1)]
    logits, where = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*told, strict=True))
    other = (where != layers + 1) | (logits.argmax(dim=1) != predictions)
    near = 0.0
    if other.any():
        features = LayerFeatures(module.backbone({"image": images[other]}).values, torch.zeros(int(other.sum())).long())
        scores = exit_table(head, features, policy, temperatures).scores
        near = (scores - report.threshold).abs().min(dim=0).values.max().item()
    last = module.num_layers - 1

    def full() -> None:
        for each in chosen:
            head.logits(module.backbone({"image": each}, [last]).values, [last])

    chosen = images[torch.randperm(len(images))[:100]].split(1)
    arrays = [each.numpy() for each in chosen]
    contestants: dict[str, Callable[[], object]] = {
        "PyTorch, all layers": full,
        "PyTorch, exits": lambda: [leaving({"image": each}) for each in chosen],
        "onnxruntime, all layers": lambda: [whole.run(None, {"image": each}) for each in arrays],
        "onnxruntime, exits": lambda: [early.run(None, {"image": each}) for each in arrays],
    }
    mean = (torch.cat([leaving({"image": each}).exit_layers for each in chosen]) + 1).double().mean().item()
    seconds = {key: np.array(taken) / len(chosen) for key, taken in interleave(contestants, 20).items()}
    rows = []
    for key, taken in seconds.items():
        gain = np.median(seconds[key.replace("exits", "all layers")] / taken)
        share = f"{gain / (module.num_layers / mean):.2f}" if "exits" in key else ""
        rows.append(
            [key, f"{1e3 * np.median(taken):.3f}", f"{1e3 * np.quantile(taken, 0.95):.3f}", f"{gain:.2f}", share]
        )
    return (
        f"{len(images)} inputs, {int(other.sum())} with another prediction or exit layer, their scores within "
        f"{near:.1e} of the threshold. Of the 100 that were timed the mean exit layer is {mean:.2f} of "
        f"{module.num_layers}.\n\n{table(['one sample at a time', 'p50, ms', 'p95', 'gain', 'wall ÷ layers'], rows)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--inputs", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}; {options.threads} threads\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.run:
            print(of_run(options.run, options.inputs, options.threads, Path(folder)))
            return
        for name in MODELS:
            print(by_layer(name, options.rounds, options.threads, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
