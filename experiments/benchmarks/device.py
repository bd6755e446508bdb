"""A GPU's ten minutes: the tests that need one, then what it costs to measure, to train aligned and to leave early.

    python experiments/benchmarks/device.py [--device cuda] [--small] [--minutes 8] [--skip tests …]

Writes a table under the device's name into experiments/benchmarks/DEVICE.md, after each part, so that whatever time
there was is told. A part that fails says so and the next one begins; the status is 1 then. Times are of synchronised
clocks after a warm-up, medians of interleaved rounds; peaks are torch's. `--device cpu --small` is for the tests alone:
its times mean nothing. Peers are measured where they are installed: pytorch-cka, cut_cross_entropy, liger-kernel.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from early_exit import Scheduled
from rounds import interleave, machine, ratio, table
from torch.nn.functional import cross_entropy, linear

from layersim.backbones import TimmBackbone, TransformersBackbone
from layersim.exits import Confidence, EarlyExit
from layersim.heads import SharedHead
from layersim.metrics import LayerAccuracy, Saturation
from layersim.objectives import Aligned, LastLayer, Objective, Reading, Step, layer_weights
from layersim.objectives.vocabulary_loss import layered_cross_entropy
from layersim.outputs import LayerOutput
from layersim.similarity import CosineSimilarity, LinearCKA

PAGE = Path(__file__).with_name("DEVICE.md")
ROOT = Path(__file__).parents[2]
Rows = list[list[str]]


@dataclass(frozen=True)
class Place:
    """Where things are measured, and how large."""

    device: torch.device
    small: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.on_gpu else f"CPU ({machine()})"

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def compare(self, contestants: dict[str, Callable[[], object]], unit: str = "ms") -> Rows:
        """Time, ratio to the first, and peak memory of each."""

        def timed(run: Callable[[], object]) -> Callable[[], None]:
            def whole() -> None:
                run()
                self.wait()

            return whole

        for run in contestants.values():
            timed(run)()  # what is compiled or chosen at the first use
        peaks = []
        for run in contestants.values():
            before = self._memory(reset=True)
            timed(run)()
            peaks.append(self._memory() - before)
        seconds = interleave({name: timed(run) for name, run in contestants.items()}, self.size(7, 1))
        first = next(iter(seconds.values()))
        return [
            [name, f"{1000 * median(times):.3g}", f"{ratio(times, first):.3f}", f"{peak / 2**20:.0f}"]
            for (name, times), peak in zip(seconds.items(), peaks, strict=True)
        ]

    def _memory(self, *, reset: bool = False) -> int:
        if not self.on_gpu:
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats(self.device)
            return int(torch.cuda.memory_allocated(self.device))
        return int(torch.cuda.max_memory_allocated(self.device))


HEADER = ["", "ms", "÷ first", "peak MiB"]


def tests(place: Place) -> str:
    """The tests that need a GPU, in the order of their files."""
    files = ["tests/test_device.py", "tests/similarity/test_no_waiting.py"]
    chosen = ["-m", "cuda"] if place.on_gpu else ["-k", "exits_answer and cpu"]
    command = [sys.executable, "-m", "pytest", *files, *chosen, "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
    print(done.stdout[-6000:], done.stderr[-2000:])
    if done.returncode:
        raise RuntimeError(f"{len(failed)} tests failed: {'; '.join(failed)}")
    return f"`pytest {' '.join([*files, *chosen])}`: all passed."


def measuring(place: Place) -> str:
    """A forward pass of ViT-S/16 with all default measures, against the same without."""
    size, batch = place.size(224, 32), place.size(512, 8)
    backbone = TimmBackbone("vit_small_patch16_224", num_classes=10, img_size=size).to(place.device).eval()
    head = SharedHead(backbone).eval()
    labels, index = torch.randint(0, 10, (batch,), device=place.device), torch.arange(batch)
    images = {"image": torch.randn(batch, 3, size, size, device=place.device), "label": labels}
    forward = backbone if place.small else torch.compile(backbone)
    cosine, cka = CosineSimilarity().to(place.device), LinearCKA().to(place.device)
    accuracy, saturation = LayerAccuracy(12).to(place.device), Saturation(12).to(place.device)

    @torch.inference_mode()
    def plain() -> None:
        with place.autocast():
            forward(images)

    @torch.inference_mode()
    def measured() -> None:
        with place.autocast():
            features = forward(images)
            output = LayerOutput(features, head(features.values, features.targets, range(12)))
        for measure in (cosine, cka):
            measure.update(torch.stack([*features.values]).float(), index)
        for metric in (accuracy, saturation):
            metric.update(output)

    return table(HEADER, place.compare({"forward": plain, "forward, all measures": measured}))


def similarity(place: Place) -> str:
    """Linear CKA between all pairs of 12 layers, against pytorch-cka's own way."""
    rows: Rows = []
    for samples in (64,) if place.small else (256, 1024, 4096):
        features = torch.randn(12, samples, 384, device=place.device)
        index = torch.arange(samples)

        def ours(features: torch.Tensor = features, index: torch.Tensor = index, size: int = samples) -> object:
            measure = LinearCKA(batch_size=size).to(place.device)
            measure.update(features, index)
            return measure.compute()

        contestants: dict[str, Callable[[], object]] = {f"layersim, n {samples}": ours}
        if find_spec("cka"):
            hsic_cross = import_module("cka.hsic").hsic_cross

            def theirs(features: torch.Tensor = features, hsic: Any = hsic_cross) -> object:
                grams = torch.stack([layer @ layer.T for layer in features])
                values = hsic(grams, grams)
                return values / values.diagonal().outer(values.diagonal()).sqrt()

            contestants[f"pytorch-cka, n {samples}"] = theirs
        rows += place.compare(contestants)
    return table(HEADER, rows)


def language_model(place: Place) -> str:
    """A step of GPT-2 with the aligned loss, against one with the last layer's alone."""
    sizes = {} if not place.small else {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 503}
    backbone = TransformersBackbone(
        task="language-modeling", pretrained=False, config_args={"model_type": "gpt2", **sizes}
    ).to(place.device)
    head = SharedHead(backbone)
    tokens = torch.randint(0, 503, (place.size(4, 2), place.size(1024, 16)), device=place.device)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "label": tokens}

    def step(objective: Objective) -> Callable[[], None]:
        objective.build(backbone.num_layers)
        layers = objective.layers(backbone.num_layers, Step())

        def run() -> None:
            with place.autocast():
                features = backbone(batch, layers)
                reading = Reading(head, features.values, features.targets, layers, backbone.num_layers, Step())
                loss = objective(reading)
            loss.backward()
            backbone.zero_grad()

        return run

    return table(HEADER, place.compare({"last layer": step(LastLayer()), "aligned": step(Aligned())}))


def vocabulary_loss(place: Place) -> str:
    """Cross-entropy over a vocabulary at one layer, forward and backward, beside the kernels that exist for it."""
    samples, width, vocabulary = place.size(4096, 32), place.size(768, 16), place.size(50_257, 503)
    features = torch.randn(samples, width, device=place.device, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=place.device, requires_grad=True)
    targets = torch.randint(0, vocabulary, (samples,), device=place.device)
    shares = layer_weights("uniform", 1)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "stored logits": lambda: cross_entropy(linear(features, weight), targets),
        "layersim": lambda: layered_cross_entropy(features[None], weight, None, targets, shares)[0],
    }
    if find_spec("cut_cross_entropy") and place.on_gpu:
        cut = import_module("cut_cross_entropy").linear_cross_entropy
        ways["cut_cross_entropy"] = lambda: cut(features.bfloat16(), weight.bfloat16(), targets)
    if find_spec("liger_kernel") and place.on_gpu:
        fused = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        ways["Liger"] = lambda: fused(weight, features, targets)

    def both(way: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            with place.autocast():
                loss = way()
            loss.backward()
            features.grad = weight.grad = None

        return run

    return table(HEADER, place.compare({name: both(way) for name, way in ways.items()}))


def exits(place: Place) -> str:
    """ViT-S/16 where an equal share of the samples leaves at each layer (1.85 × fewer layers), against all of it."""
    size = place.size(224, 32)
    backbone = TimmBackbone("vit_small_patch16_224", num_classes=1000, img_size=size).to(place.device).eval()
    head = SharedHead(backbone).eval()
    rows: Rows = []
    for batch in (1, 8) if place.small else (1, 64, 1024):
        images = {"image": torch.randn(batch, 3, size, size, device=place.device)}
        policy = Scheduled(Confidence())
        leave = EarlyExit(backbone, head, policy, 1.0)
        plans = [(torch.arange(batch, device=place.device) + start) % 12 for start in range(12 if batch == 1 else 1)]

        @torch.inference_mode()
        def whole(images: dict[str, torch.Tensor] = images, times: int = len(plans)) -> None:
            for _ in range(times):
                head.logits(backbone(images, [11]).values, [11]).argmax(dim=-1)

        @torch.inference_mode()
        def early(images: Any = images, plans: Any = plans, policy: Any = policy, leave: Any = leave) -> None:
            for plan in plans:
                policy.plan(plan)
                leave(images)

        rows += place.compare({f"whole, batch {batch}": whole, f"exits, batch {batch}": early})
    return table(HEADER, rows)


def strategies(place: Place) -> str:
    """The digits' recipe by the command: one process alone, as DDP's only one, and with its parameters sharded."""
    kind = "gpu" if place.on_gpu else "cpu"
    sharded = "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy"
    ways = {"alone": [], "ddp": ["--trainer.strategy=ddp"], "sharded": [sharded]}
    rows: Rows = []
    for name, words in ways.items():
        with tempfile.TemporaryDirectory() as root:
            command = [sys.executable, "-m", "layersim", "fit", "--config", "experiments/vision/digits/aligned.yaml"]
            command += [f"--trainer.accelerator={kind}", "--trainer.devices=1", f"--trainer.default_root_dir={root}"]
            command += ["--trainer.logger=false", f"--trainer.max_epochs={place.size(5, 1)}", *words]
            begun = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - begun
        said = "done" if not done.returncode else (done.stderr.strip().splitlines() or ["no word"])[-1]
        rows.append([name, f"{seconds:.0f}", said])
    if any(row[2] != "done" for row in rows):
        raise RuntimeError("; ".join(f"{name}: {said}" for name, _, said in rows if said != "done"))
    return table(["", "s, its start included", ""], rows)


PARTS: dict[str, Callable[[Place], str]] = {
    part.__name__: part for part in (tests, measuring, similarity, language_model, vocabulary_loss, exits, strategies)
}


def write(page: Path, place: Place, told: dict[str, str]) -> None:
    """Puts what was measured under the device's name, in place of what stood there."""
    there = page.read_text() if page.exists() else "# What was measured on a GPU\n\nBy `device.py`, which tells how.\n"
    before, *sections = re.split(r"^(?=## )", there, flags=re.MULTILINE)
    title = f"## {place.name}, torch {torch.__version__}\n"
    own = "\n\n".join(f"### {(PARTS[part].__doc__ or '').strip().rstrip('.')}\n\n{said}" for part, said in told.items())
    kept = [section.strip() for section in sections if not section.startswith(title)]
    page.write_text("\n\n".join([before.strip(), *kept, f"{title}\n{own}"]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU takes a minute for")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part is begun after these")
    parser.add_argument("--skip", nargs="*", default=[], choices=PARTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    place = Place(torch.device(options.device), options.small)
    torch.manual_seed(0)
    begun, told, failed = time.monotonic(), dict[str, str](), False
    for name, part in PARTS.items():
        if name in options.skip:
            continue
        if time.monotonic() - begun > 60 * options.minutes:
            told[name] = "Not begun: the time was up."
            continue
        try:
            with torch.cuda.device(place.device) if place.on_gpu else nullcontext():
                told[name] = part(place)
        except Exception as error:
            traceback.print_exc()
            told[name], failed = f"Failed: {type(error).__name__}: {error}", True
        print(f"\n{name}, {time.monotonic() - begun:.0f} s\n{told[name]}", flush=True)
        write(options.page, place, told)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
