"""What a service gains by exits: p50, p95 and requests a second of the full model, exits, a cut model and onnxruntime.

    python experiments/benchmarks/serving.py --run RUN [--clients 1 16] [--requests 400] [--threads 1]
    python experiments/benchmarks/serving.py --vit [--clients 1 8] [--requests 32]

With the directory of `layersim exits` on images: its validation images, as NumPy arrays, are sent one by one by so many
clients, each of which waits for its answer before it asks again; `Gathered` makes batches of what comes together, in
all four alike. The cut model has the fewest layers whose accuracy is that of the exits, or above. A round sends as many
requests to each of the four; p50 and p95 are of all rounds' requests, requests a second the median of the rounds'.

With --vit: ViT-S/16 at 224 pixels, random weights, whose temperatures let every sample leave at layer 6 of 12.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx_exits import session
from rounds import machine, table

from layersim import EarlyExit, LayerwiseModule, TimmBackbone
from layersim.data import Digits, Images, SplitDataModule
from layersim.evaluation import evaluate
from layersim.exits import Confidence, Exited, Gathered
from layersim.export import export_leaving, truncate
from layersim.metrics import LayerAccuracy
from layersim.report.configuration import read_configuration
from layersim.runs.models import Source, make_data, read_source
from layersim.runs.serving import load_early_exit

Answer = Callable[[list[Any]], Exited]


def cut(early: EarlyExit, layers: int) -> Answer:
    """A model cut to so many layers, which a service would load."""
    model = truncate(early.backbone, early.head, layers)
    assert early.inputs is not None

    @torch.inference_mode()
    def answer(given: list[Any]) -> Exited:
        logits = model(early.inputs(given)["image"])  # type: ignore[misc]
        return Exited(logits.argmax(dim=1), torch.full((len(given),), layers - 1), logits)

    return answer


def in_onnxruntime(early: EarlyExit, folder: Path, threads: int) -> Answer:
    """The file with its exits."""
    run = session(export_leaving(early, folder / "exits"), threads)
    assert early.inputs is not None

    def answer(given: list[Any]) -> Exited:
        batch = early.inputs(given)  # type: ignore[misc]
        logits, layers = map(torch.from_numpy, run.run(None, {"image": batch["image"].numpy()}))
        return Exited(logits.argmax(dim=1), layers - 1, logits)

    return answer


def load(ask: Gathered, inputs: list[Any], clients: int) -> tuple[list[float], float]:
    """Seconds of each request, and of all of them together."""

    def request(given: Any) -> float:
        start = time.perf_counter()
        ask(given)
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        seconds = list(pool.map(request, inputs))
        return seconds, time.perf_counter() - start


def compare(services: dict[str, Answer], inputs: list[Any], clients: int, requests: int, rounds: int) -> str:
    asks = {name: Gathered(answer) for name, answer in services.items()}
    sent = list(islice(cycle(inputs), requests))
    for ask in asks.values():
        load(ask, sent[: 2 * clients], clients)
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    rates: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(rounds):
        for name, ask in asks.items():
            each, whole = load(ask, sent, clients)
            seconds[name] += each
            rates[name].append(requests / whole)
    first = np.array(next(iter(rates.values())))
    rows = []
    for name, taken in seconds.items():
        p50, p95 = (f"{1e3 * np.quantile(taken, share):.2f}" for share in (0.5, 0.95))
        rows.append(
            [name, p50, p95, f"{np.median(rates[name]):.0f}", f"{np.median(np.array(rates[name]) / first):.2f}"]
        )
    return f"{clients} clients\n\n{table(['', 'p50, ms', 'p95, ms', 'requests a second', 'gain'], rows)}\n"


def data_of(run: Path) -> tuple[EarlyExit, Source, SplitDataModule]:
    """What is served, the checkpoint that it is of, and the data that this was trained on."""
    early = load_early_exit(run, device="cpu")
    given = read_configuration(run).get("ckpt_path")
    source = read_source(str(given or next(run.glob("checkpoints/*.ckpt"))))
    assert source.data is not None
    data = make_data(source.data)
    data.check(early.backbone)
    return early, source, data


def of_run(run: Path) -> tuple[EarlyExit, list[Any], int, str]:
    """What is served, its validation images as arrays, and how many layers are as accurate as its exits."""
    early, _, data = data_of(run)
    module = LayerwiseModule(early.backbone, head=lambda _: early.head).eval()
    (accuracies,) = evaluate(module, data.val_dataloader(), LayerAccuracy(module.num_layers))
    told = [early(batch) for batch in data.val_dataloader()]
    labels = torch.cat([batch["label"] for batch in data.val_dataloader()])
    accuracy = (torch.cat([each.predictions for each in told]) == labels).double().mean().item()
    mean = 1 + torch.cat([each.exit_layers for each in told]).double().mean().item()
    depth = next((n for n, each in enumerate(accuracies.tolist(), 1) if each >= accuracy), module.num_layers)
    split: Any = data.splits["val"]
    if isinstance(data, Digits):
        inputs = [np.clip(image[0].numpy() * data.std + data.mean, 0, 1) for image in split.images]
    else:
        assert isinstance(data, Images)
        inputs = [np.asarray(split.read(split.images[int(row)][split.column])) for row in split.index[:200]]
    title = f"{run}: accuracy {accuracy:.3f} with exits (layer {mean:.2f} of {module.num_layers} on average)"
    return early, inputs, depth, f"{title}, {accuracies[-1].item():.3f} with all layers"


def of_vit() -> tuple[EarlyExit, list[Any], int, str]:
    torch.manual_seed(0)
    backbone = TimmBackbone("vit_small_patch16_224", num_classes=1000).eval()
    head = LayerwiseModule(backbone).head.eval()
    inputs = Images(".").inputs(backbone)
    temperatures = torch.tensor([1e6] * 5 + [1e-6] + [1.0] * 6)
    early = EarlyExit(backbone, head, Confidence(), 0.5, temperatures, inputs=inputs)
    draw = np.random.default_rng(0)
    images = [draw.integers(256, size=(224, 224, 3), dtype=np.uint8) for _ in range(8)]
    return early, images, 6, "ViT-S/16, 224 px, all leave at layer 6 of 12"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--vit", action="store_true")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if bool(options.run) == options.vit:
        parser.error("give --run RUN, or --vit")
    torch.set_num_threads(options.threads)
    early, inputs, depth, title = of_vit() if options.vit else of_run(options.run)
    whole = EarlyExit(early.backbone, early.head, early.policy, None, inputs=early.inputs)
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}; {options.threads} threads\n\n{title}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        services: dict[str, Answer] = {
            "all layers": cut(whole, early.backbone.num_layers),
            "exits": early,
            f"cut to {depth} layers": cut(early, depth),
            "exits in onnxruntime": in_onnxruntime(early, Path(folder), options.threads),
        }
        for clients in options.clients:
            print(compare(services, inputs, clients, options.requests, options.rounds), flush=True)


if __name__ == "__main__":
    main()
