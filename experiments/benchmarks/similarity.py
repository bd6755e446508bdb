"""What measuring similarity costs, beside the peers, in one run.

    python experiments/benchmarks/similarity.py [--threads 1 2] [--rounds 5]

Rounds are interleaved: each times every contestant once, and a ratio is the median over the rounds of the two times of
one round, so that a machine that is busy for a while slows both. Peers run their own code on stored features:
pytorch-cka by its same-model path (one Gram matrix a layer, then `hsic_cross`), torch-cka and cka-pytorch through a
model whose layers return what was stored. Needs the extra `bench`. 6 minutes on 2 cores, nearly all of it the ViT's.
"""

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import cka_pytorch
import timm
import torch
import torch_cka
from cka.hsic import hsic_cross
from rounds import interleave, machine, ratio, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from layersim.similarity import CosineSimilarity, LinearCKA, StreamedCKA, linear_cka
from layersim.similarity.features import centred
from layersim.similarity.hsic import by_grams
from layersim.similarity.streamed_cka import bytes_of

Contestants = dict[str, Callable[[], object]]


def milliseconds(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.3g}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    print(f"\n{table(header, rows)}")


class Stored(nn.Module):
    """A model of L layers that return stored (N, D) features."""

    class Layer(nn.Module):
        def __init__(self, features: Tensor) -> None:
            super().__init__()
            self.features = nn.Parameter(features, requires_grad=False)

        def forward(self, _: Tensor) -> Tensor:
            return self.features

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Layer(layer) for layer in features)
        self.names = [f"layers.{layer}" for layer in range(len(features))]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def by_pytorch_cka(features: Tensor) -> Tensor:
    grams = torch.stack([torch.mm(layer, layer.T) for layer in features])
    hsic = hsic_cross(grams, grams)
    return hsic / hsic.diagonal().outer(hsic.diagonal()).sqrt()


def peers_by_model(features: Tensor) -> Contestants:
    model = Stored(features)
    loader = DataLoader(
        TensorDataset(torch.zeros(features.shape[1], 1), torch.zeros(features.shape[1])), batch_size=4096
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-cka advises on the number and the names of layers
        theirs = torch_cka.CKA(
            model, Stored(features), model1_layers=model.names, model2_layers=model.names, device="cpu"
        )
        other = cka_pytorch.cka.CKACalculator(
            model, Stored(features), model1_layers=model.names, device=torch.device("cpu"), verbose=False
        )

    def run_torch_cka() -> Tensor:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            theirs.compare(loader)
        return theirs.hsic_matrix

    def run_cka_pytorch() -> Tensor:
        other.hsic_matrix.reset(), other.self_hsic_x.reset(), other.self_hsic_y.reset()
        return other.calculate_cka_matrix(loader, num_epochs=1)

    return {"torch-cka 0.21": run_torch_cka, "cka-pytorch 1.1.3": run_cka_pytorch}


def error(measure: Callable[[Tensor], Tensor], features: Tensor) -> float:
    """The largest error beside float64's value, with means of fifty spreads."""
    far = features + 50 * features.std() * torch.randn(len(features), 1, features.shape[2]).sign()
    centred_far = far.double() - far.double().mean(1, keepdim=True)
    return float((measure(far) - by_pytorch_cka(centred_far)).abs().max())


def alone(threads: list[int], rounds: int) -> None:
    print("\n### Minibatch CKA of one batch of stored features")
    rows = []
    for layers, width, samples in [(12, 384, 128), (12, 384, 256), (25, 1024, 256)]:
        features = torch.randn(layers, samples, width).cumsum(0)
        contestants: Contestants = {
            "layersim": lambda x=features, n=samples: linear_cka(x, batch_size=n),
            "pytorch-cka 1.1.3": lambda x=features: by_pytorch_cka(x),
        }
        for number in threads:
            torch.set_num_threads(number)
            seconds = interleave(contestants, 4 * rounds)
            slow = interleave({"ours": contestants["layersim"], **peers_by_model(features)}, 2)
            row = [f"L{layers} d{width} n{samples}", str(number), milliseconds(seconds["layersim"])]
            row.append(f"{ratio(seconds['pytorch-cka 1.1.3'], seconds['layersim']):.2f}")
            for name in ("torch-cka 0.21", "cka-pytorch 1.1.3"):
                row += [f"{ratio(slow[name], slow['ours']):.1f}"]
            errors = (error(partial(linear_cka, batch_size=samples), features), error(by_pytorch_cka, features))
            rows.append([*row, *(f"{each:.0e}" for each in errors)])
    peers = [f"{peer} ÷ layersim" for peer in ("pytorch-cka", "torch-cka", "cka-pytorch")]
    errors_of = [f"error of {name}, means of 50 spreads" for name in ("layersim", "pytorch-cka")]
    print_table(["features", "threads", "layersim, ms", *peers, *errors_of], rows)


def full_set(threads: list[int], rounds: int) -> None:
    print("\n### Exact debiased CKA of 2048 samples (L12 d384)")
    features = torch.randn(12, 2048, 384).cumsum(0)
    rows = []
    for number in threads:
        torch.set_num_threads(number)
        seconds = interleave(
            {
                "layersim": lambda: linear_cka(features, estimator="debiased"),
                "pytorch-cka": lambda: by_pytorch_cka(features),
            },
            rounds,
        )
        ratios = f"{ratio(seconds['pytorch-cka'], seconds['layersim']):.2f}"
        rows.append([str(number), milliseconds(seconds["layersim"]), milliseconds(seconds["pytorch-cka"]), ratios])
    print_table(["threads", "layersim, ms", "pytorch-cka, ms", "pytorch-cka ÷ layersim"], rows)


def streamed(rounds: int) -> None:
    print("\n### Debiased CKA of all samples by sums, a sample, beside minibatch CKA (1 thread)")
    torch.set_num_threads(1)
    rows = []
    for layers, width in [(12, 64), (12, 384), (6, 768)]:
        features = torch.randn(layers, 2048, width).cumsum(0)

        def run(metric: LinearCKA | StreamedCKA, x: Tensor = features) -> None:
            metric.reset()
            for batch in torch.arange(2048).split(128):
                metric.update(x[:, batch], batch)
            metric.compute()

        sums = StreamedCKA(max_bytes=None)
        seconds = interleave({"sums": partial(run, sums), "minibatch": partial(run, LinearCKA())}, rounds)
        each = [f"{1e6 * statistics.median(times) / 2048:.0f}" for times in seconds.values()]
        expected = linear_cka(features.double(), estimator="debiased")
        apart = f"{(sums.compute() - expected).abs().max():.0e}"
        rows.append([f"L{layers} d{width}", *each, f"{bytes_of(layers, width) / 2**20:.0f}", apart])
    print_table(["features", "by sums, µs", "minibatch, µs", "sums, MiB", "error"], rows)


def many_samples(threads: list[int], rounds: int) -> None:
    print("\n### Exact debiased CKA of 8192 samples (L12 d64), where covariances are the shorter way")
    features = torch.randn(12, 8192, 64).cumsum(0)
    rows_of_layers = centred(features, dim=1)
    rows = []
    for number in threads:
        torch.set_num_threads(number)
        seconds = interleave(
            {
                "layersim": lambda: linear_cka(features, estimator="debiased"),
                "by Gram matrices": lambda: by_grams([rows_of_layers], *features.shape[:2]),
                "pytorch-cka": lambda: by_pytorch_cka(features),
            },
            rounds,
        )
        others = [f"{ratio(seconds[name], seconds['layersim']):.1f}" for name in ("by Gram matrices", "pytorch-cka")]
        rows.append([str(number), milliseconds(seconds["layersim"]), *others])
    print_table(["threads", "layersim, ms", "ours by Gram matrices ÷ layersim", "pytorch-cka ÷ layersim"], rows)


def anew(metric: LinearCKA | CosineSimilarity) -> Tensor:
    """`compute`, which otherwise keeps what it found."""
    metric._computed = None
    return metric.compute()


def intervals(threads: int, rounds: int) -> None:
    print(f"\n### An interval beside the value (L12 d384, {threads} thread)")
    torch.set_num_threads(threads)
    features = torch.randn(12, 2048, 384).cumsum(0)
    rows = []
    metrics = {
        "minibatch CKA": LinearCKA(),
        "debiased CKA": LinearCKA(estimator="debiased"),
        "cosine, not centred": CosineSimilarity(centering="none"),
        "cosine": CosineSimilarity(),
    }
    for name, metric in metrics.items():
        for part, index in zip(features.split(128, dim=1), torch.arange(2048).split(128), strict=True):
            metric.update(part, index)
        seconds = interleave({"value": partial(anew, metric), "interval": metric.interval}, rounds)
        rows.append([name, milliseconds(seconds["value"]), milliseconds(seconds["interval"])])
    print_table(["measure of 2048 samples", "value, ms", "value and interval, ms"], rows)


def end_to_end(threads: int, rounds: int, samples: int = 512, batch: int = 128) -> None:
    print(
        f"\n### ViT-S/16, 12 layers, [CLS] features, {samples} images in batches of {batch}: measuring ÷ forward alone"
    )
    torch.set_num_threads(threads)
    model = timm.create_model("vit_small_patch16_224", num_classes=10).eval()
    images = torch.randn(batch, 3, 224, 224)

    def run(*metrics: CosineSimilarity | LinearCKA) -> tuple[float, float]:
        """Seconds of the forward passes, and of what the metrics did beside them."""
        forward = beside = 0.0
        with torch.inference_mode():
            for first in range(0, samples, batch):
                start = time.perf_counter()
                outputs = model.forward_intermediates(images, return_prefix_tokens=True, intermediates_only=True)
                forward += time.perf_counter() - start
                start = time.perf_counter()
                features = torch.stack([prefix[:, 0] for _, prefix in outputs])
                for metric in metrics:
                    metric.update(features, torch.arange(first, first + batch))
                beside += time.perf_counter() - start
            start = time.perf_counter()
            for metric in metrics:
                metric.compute()
                metric.reset()
            beside += time.perf_counter() - start
        return forward, beside

    measured = {
        "cosine + minibatch CKA": (CosineSimilarity(), LinearCKA()),
        "cosine + exact debiased CKA": (CosineSimilarity(), LinearCKA(estimator="debiased")),
    }
    model.forward_intermediates(images[:8], return_prefix_tokens=True)
    times = {name: [run(*metrics) for _ in range(rounds)] for name, metrics in measured.items()}
    rows = [
        [
            name,
            f"{statistics.median(1 + beside / forward for forward, beside in both):.4f}",
            f"{statistics.median(forward for forward, _ in both):.1f}",
            f"{1000 * statistics.median(beside for _, beside in both):.0f}",
        ]
        for name, both in times.items()
    ]
    print_table(["measured", "(forward + measuring) ÷ forward", "forward, s", "measuring, ms"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to compare")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; the fast parts run four times as many")
    parser.add_argument("--no-model", action="store_true", help="leave out the vision transformer")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"{machine()}; medians of paired ratios")
    alone(arguments.threads, arguments.rounds)
    full_set(arguments.threads, arguments.rounds)
    many_samples(arguments.threads, rounds=3)
    streamed(rounds=3)
    intervals(arguments.threads[0], rounds=3)
    if not arguments.no_model:
        end_to_end(arguments.threads[0], rounds=2)


if __name__ == "__main__":
    main()
