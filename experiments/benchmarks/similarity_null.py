"""What telling similarity from chance costs, beside the package `calibrated-similarity`, with equal permutations.

    python experiments/benchmarks/similarity_null.py [--samples 1024] [--rounds 3]

Biased linear CKA of 12 layers of width 384 on one thread. The package takes one pair of layers at a time and any
function of two layers: once the CKA of its own README, once layersim's, which takes the cheaper way for the pair. Of
its 66 pairs two are timed, as its time is in proportion to them; layersim does all. Rounds are interleaved, ratios are
medians over the rounds, and seconds the processor's. Needs the extra `bench`. 3 minutes on a quiet core.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from calibrated_similarity import calibrate
from rounds import interleave, machine, ratio, table
from torch import Tensor

from layersim.similarity import (
    RBFCKA,
    RSA,
    CosineSimilarity,
    LinearCKA,
    Measure,
    MutualKNN,
    Null,
    Procrustes,
    linear_cka,
)
from layersim.similarity.null import shuffled

LAYERS, WIDTH = 12, 384
PAIRS = [(0, 5), (3, 11)]
SHARE = LAYERS * (LAYERS - 1) // 2 / len(PAIRS)


def cka_of_readme(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(0), y - y.mean(0)
    both = (x @ x.T * (y @ y.T)).sum()
    return both / torch.sqrt((x @ x.T * (x @ x.T)).sum() * (y @ y.T * (y @ y.T)).sum())


def cka_of_pair(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(x[None], y[None], estimator="biased")[0, 0]


def next_of(places: list[Tensor], _: int, __: torch.device) -> Tensor:
    return places.pop(0)


def by_package(features: Tensor, orders: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> list[list[float]]:
    """Calibrated value, p and threshold of each of PAIRS."""
    found = []
    for row, column in PAIRS:
        places = [*orders[1:]]
        options = {"K": len(places), "perm_fn": partial(next_of, places)}
        numbers = calibrate(features[row], features[column], measure, **options)
        found.append([float(number) for number in numbers])
    return found


def by_layersim(metric: Measure, permutations: int) -> Null:
    return metric.null(permutations)


def filled(metric: Measure, features: Tensor) -> Measure:
    metric.update(features, torch.arange(features.shape[1]))
    return metric


def against_the_package(samples: int, rounds: int) -> None:
    features = torch.randn(LAYERS, samples, WIDTH).cumsum(0)
    metric, rows = filled(LinearCKA(estimator="biased"), features), []
    for permutations in (19, 39):
        orders = shuffled(torch.arange(samples), permutations, 0)
        contestants: dict[str, Callable[[], object]] = {"layersim": partial(by_layersim, metric, permutations)}
        for measure in (cka_of_readme, cka_of_pair):
            contestants[measure.__name__] = partial(by_package, features, orders, measure)
        seconds = interleave(contestants, rounds, time.process_time)
        null, theirs = metric.null(permutations), by_package(features, orders, cka_of_readme)
        ours = [[float(part[pair]) for part in (null.calibrated, null.p, null.threshold)] for pair in PAIRS]
        apart = (torch.tensor(ours) - torch.tensor(theirs)).abs().max().item()
        ratios = [
            f"{SHARE * ratio(seconds[name.__name__], seconds['layersim']):.0f}" for name in (cka_of_readme, cka_of_pair)
        ]
        rows.append([str(permutations), f"{statistics.median(seconds['layersim']):.2f}", *ratios, f"{apart:.0e}"])
    peers = [f"package with {cka} ÷ layersim" for cka in ("the CKA of its README", "layersim's CKA")]
    print(f"\n### Linear CKA of {samples} samples, {LAYERS} layers of width {WIDTH}: all pairs of layers\n")
    print(table(["permutations", "layersim, processor s", *peers, "numbers apart"], rows))


def of_each_measure(samples: int) -> None:
    features = torch.randn(LAYERS, samples, WIDTH).cumsum(0)
    rows = []
    for metric in (LinearCKA(estimator="debiased"), CosineSimilarity(), RBFCKA(), RSA(), MutualKNN(), Procrustes()):
        filled(metric, features)
        seconds = {}
        for name, run in {"value": metric.compute, "null": partial(by_layersim, metric, 19)}.items():
            start = time.process_time()
            run()
            seconds[name] = time.process_time() - start
        each = seconds["null"] / 20
        rows.append(
            [metric.label, f"{1000 * seconds['value']:.0f}", f"{1000 * each:.0f}", f"{each / seconds['value']:.2f}"]
        )
    batched = LinearCKA()
    batched.expect_null(19)
    start = time.process_time()
    filled(batched, features).null(19)  # type: ignore[operator]
    each = (time.process_time() - start) / 20
    start = time.process_time()
    filled(LinearCKA(), features).compute()
    value = time.process_time() - start
    rows.append(["linear CKA of minibatches", f"{1000 * value:.0f}", f"{1000 * each:.1f}", f"{each / value:.2f}"])
    print(f"\n### A permutation beside the value ({samples} samples, {LAYERS} layers of width {WIDTH}), once each\n")
    print(table(["measure", "value, ms", "a permutation, ms", "permutation ÷ value"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{machine()}; one thread; medians of paired ratios")
    against_the_package(arguments.samples, arguments.rounds)
    of_each_measure(arguments.samples // 2)


if __name__ == "__main__":
    main()
