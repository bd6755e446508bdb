"""What the docstrings say that measures cost: floating-point operations for L layers against themselves, and bytes at
the peak beyond float32 features, leading terms of both. Letters: L layers, N samples, D width."""

from collections.abc import Callable

from layersim.similarity import LinearCKA, Measure
from layersim.similarity.directions import CHUNK
from layersim.similarity.hsic import CACHE, COLUMNS, HELD, covariance_products, gram_products

Cost = Callable[[int, int, int], float]

COSTS: dict[str, tuple[Cost, Cost]] = {
    "RBF CKA": (lambda L, n, d: n**2 * L * (1.5 * d + 2 * L), lambda L, n, d: 8 * n**2 * (L + 3)),
    "CKNNA": (lambda L, n, d: 2 * n**2 * L * (d + L), lambda L, n, d: 8 * n**2 * (L + 3)),
    "mutual nearest neighbours": (lambda L, n, d: 2 * n**2 * L * (d + L), lambda L, n, d: n**2 * (L + 17)),
    "RSA": (lambda L, n, d: n**2 * L * (1.5 * d + L), lambda L, n, d: 4 * n**2 * (L + 9)),
    "Procrustes similarity": (
        lambda L, n, d: L**2 * min(n, d) ** 2 * (n + 4 / 3 * min(n, d)),
        lambda L, n, d: 8 * n * min(n, d) * (L + 2),
    ),
    "mean CCA": (
        lambda L, n, d: L * (6 * n + 20 * d) * d**2 + L**2 * (n + 4 / 3 * d) * d**2,
        lambda L, n, d: 8 * n * d * (L + 5),
    ),
    "PWCCA": (
        lambda L, n, d: L * (6 * n + 20 * d) * d**2 + L**2 * (n + 11 * d) * d**2,
        lambda L, n, d: 8 * n * d * (L + 4) + 8 * L * d**2,
    ),
    "regression R²": (
        lambda L, n, d: L * (6 * n + 20 * d) * d**2 + 2 * L**2 * n * d**2,
        lambda L, n, d: 24 * L * n * d + 16 * L * d**2,
    ),
}
COSTS["SVCCA"] = COSTS["mean CCA"]  # that of keeping all directions


def costs(metric: Measure, layers: int, samples: int, width: int) -> tuple[float, float]:
    """Operations and bytes."""
    if metric.label in COSTS:
        operations, held = COSTS[metric.label]
        return operations(layers, samples, width), held(layers, samples, width)
    if isinstance(metric, LinearCKA):
        return _of_linear_cka(metric, layers, samples, width)
    kept = samples * (metric.options["centering"] == "samples")
    return 3 * samples * layers * (layers + 1) * width, 4 * layers * width * (3 * min(samples, CHUNK) + kept)


def _of_linear_cka(metric: LinearCKA, layers: int, samples: int, width: int) -> tuple[float, float]:
    held = layers
    size, widths = metric.batch_size if metric.estimator == "minibatch" else samples, [width] * layers
    if gram_products(size, widths) <= covariance_products(size, widths):
        operations = samples * min(2 * size, size + 256) * layers * (width + layers)
        block = 256 * min(COLUMNS, size)
        if size <= HELD:
            held, block = min(layers, max(1, CACHE // (4 * size * width))), size**2
    else:
        operations, block = samples * layers * (layers + 1) * width**2, size * width
    return operations, 4 * (held * (2 if size < samples else 1) * size * width + layers * block)
