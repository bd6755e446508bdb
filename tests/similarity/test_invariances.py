"""What every measure declares is so, and what it does not declare is not."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.linalg import hadamard  # type: ignore[import-untyped]
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from layersim.errors import UserError

from .costs import costs
from .every_measure import METRICS, function_of
from .references import related_layers

each_metric = pytest.mark.parametrize("name", METRICS)

LAYERS, SAMPLES, WIDTH = 3, 64, 6
SAME, CHANGED = 1e-9, 1e-3


def features() -> Tensor:
    return related_layers(SAMPLES, WIDTH, layers=LAYERS).double() + 0.5


def value(name: str, layers: Tensor, other: Tensor | None = None) -> Tensor:
    metric = METRICS[name]()
    metric.update(layers, other=other)
    return metric.compute()


def rotations(count: int) -> Tensor:
    return torch.linalg.qr(torch.randn(count, WIDTH, WIDTH, generator=seed(1), dtype=torch.float64))[0]


def stretches(count: int) -> Tensor:
    """Maps of condition 30, each along directions of its own."""
    return rotations(count) @ torch.diag(torch.logspace(0, 1.5, WIDTH, dtype=torch.float64)) @ rotations(count).mT


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


MOVES: dict[str, Callable[[Tensor, int], Tensor]] = {
    # how the features move when `count` layers each have a map of their own, or when one map serves all
    "orthogonal": lambda x, count: x @ rotations(count),
    "scaling": lambda x, count: x * torch.logspace(-1, 1, 3, dtype=x.dtype)[-count:, None, None],
    "linear": lambda x, count: x @ stretches(count),
    "translation": lambda x, count: x + 3 * torch.randn(count, 1, WIDTH, generator=seed(2), dtype=x.dtype),
}


@each_metric
@pytest.mark.parametrize("move", MOVES)
def test_declared_invariances_hold_and_others_do_not(name: str, move: str) -> None:
    before = features()
    reach = getattr(METRICS[name]().properties, move)
    expected = value(name, before)
    own = (value(name, MOVES[move](before, LAYERS)) - expected).abs().max()
    shared = (value(name, MOVES[move](before, 1)) - expected).abs().max()
    assert (own < SAME) == (reach == "own")
    assert (shared < SAME) == (reach in ("own", "shared"))
    assert reach == "own" or own > CHANGED
    assert reach != "none" or shared > CHANGED


@each_metric
def test_order_of_the_samples(name: str) -> None:
    before = features()
    order = torch.randperm(SAMPLES, generator=seed(3))
    change = (value(name, before[:, order]) - value(name, before)).abs().max()
    assert (change < SAME) == METRICS[name]().properties.permutation
    assert change < SAME or change > CHANGED
    only_one = before.clone()
    only_one[0] = only_one[0, order]  # the control: one layer's samples alone
    assert (value(name, only_one) - value(name, before)).abs().max() > CHANGED


@each_metric
def test_symmetry_and_identity(name: str) -> None:
    metric, ours = METRICS[name](), value(name, features())
    torch.testing.assert_close(ours.diagonal(), torch.full((LAYERS,), metric.identical).double(), rtol=0, atol=1e-9)
    assert metric.identical in metric.value_range
    skew = (ours - ours.mT).abs().max()
    assert skew < SAME if metric.properties.symmetric else skew > CHANGED


@each_metric
@pytest.mark.parametrize("number", range(5))
def test_range(name: str, number: int) -> None:
    """Unrelated, related and opposite layers, and layers of one direction, all stay within."""
    generator = seed(number)
    unrelated = torch.randn(4, SAMPLES, WIDTH, generator=generator, dtype=torch.float64)
    line = torch.randn(1, SAMPLES, 1, generator=generator, dtype=torch.float64) * torch.ones(1, 1, WIDTH)
    slope = line * torch.arange(1.0, WIDTH + 1) + 1
    ours = value(name, torch.cat([unrelated, -unrelated[:1], 1.5 * unrelated[1:2] + 1, slope]))
    low, high = METRICS[name]().value_range
    assert ours.min() >= low - 1e-12
    assert ours.max() <= high + 1e-12
    assert ours.min() < 0 or low == 0 or name in ("cknna", "rsa euclidean", "rbf cka debiased")


@each_metric
def test_the_other_end_of_the_range_is_reached_where_it_can_be(name: str) -> None:
    """By opposite features where directions are compared, and by layers of which none has a direction of the other's,
    but for kernels and ranks, which are never without anything in common."""
    metric = METRICS[name]()
    (end,) = {*metric.value_range} - {metric.identical}
    if name.startswith(("cosine", "angular")):
        assert value(name, torch.stack([features()[0], -features()[0]]))[0, 1].item() == pytest.approx(end, abs=1e-6)
    elif end == 0 and name not in ("rbf cka biased", "mutual knn"):
        columns = torch.tensor(hadamard(SAMPLES)[:, 1 : 2 * WIDTH + 1]).double()
        assert value(name, columns.mT.view(2, WIDTH, SAMPLES).mT)[0, 1].item() == pytest.approx(0, abs=1e-9)


def test_what_a_class_declares_for_people_is_one_name_each_and_the_widest_range() -> None:
    kinds = {type(METRICS[name]()) for name in METRICS}
    assert len({kind.label for kind in kinds}) == len(kinds) == 12
    for made in (METRICS[name]() for name in METRICS):
        low, high = type(made).value_range
        assert low <= made.value_range[0]
        assert made.value_range[1] <= high
        assert made.better is None


@each_metric
def test_two_sets_of_layers(name: str) -> None:
    """Against another set: the block of both together, whatever its number of layers and, where allowed, its width."""
    both = torch.cat([features(), related_layers(SAMPLES, WIDTH, layers=2, seed=7).double()])
    ours = value(name, both[:3], both[3:])
    torch.testing.assert_close(ours, value(name, both)[:3, 3:], rtol=0, atol=SAME)
    if METRICS[name]().properties.equal_widths:
        with pytest.raises(UserError, match="needs equal widths, got 6 and 4"):
            value(name, both[:3], both[3:, :, :4])
        return
    wider = torch.nn.functional.pad(both[3:], (0, 2))  # two empty components more
    unchanged = value(name, both[:3], wider) - ours
    assert unchanged.abs().max() < SAME or name == "rsa correlation"  # components that count towards a mean


def products(vectors: bool) -> dict[object, Callable[..., float]]:
    """What the counter does not know: distances, lengths, and singular values (Golub and Van Loan, R-SVD), of pairs of
    layers with or without `vectors`: torch computes those whenever a counter looks on.
    """

    def svd(shape: torch.Size, *_: object, **__: object) -> float:
        long, short = max(shape[-2:]), min(shape[-2:])
        return (6 * long + 20 * short) * short**2 if long > short else (22 if vectors else 8 / 3) * short**3

    return {
        torch.ops.aten._pdist_forward: lambda shape, *_, **__: 1.5 * shape[0] ** 2 * shape[1],
        torch.ops.aten.linalg_vector_norm: lambda shape, *_, **__: 3 * math.prod(shape),  # of what was subtracted
        torch.ops.aten._linalg_svd: svd,
    }


@each_metric
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch warns of Intel GPUs whenever the flag is touched
def test_declared_operations_are_those_of_the_products(name: str) -> None:
    layers, samples, width = 6, 512, 64
    x = related_layers(samples, width, layers=layers)
    metric = METRICS[name]()
    counter = FlopCounterMode(display=False, custom_mapping=products(vectors=name == "pwcca"))
    with counter, torch.backends.mkldnn.flags(enabled=False):  # its products are not counted
        metric.update(x)
        metric.compute()
    declared, _ = costs(metric, layers, samples, width)
    assert counter.get_total_flops() == pytest.approx(declared, rel=0.3)


@each_metric
def test_declared_bytes_are_those_of_the_peak(name: str) -> None:
    layers, samples, width = 6, 512, 64
    x = related_layers(samples, width, layers=layers)
    metric = METRICS[name]()
    function_of(metric)(x)  # the first time, the processor is measured too
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function_of(metric)(x)
    allocations = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(torch.tensor(allocations).cumsum(0).tolist())
    assert peak == pytest.approx(costs(metric, layers, samples, width)[1], rel=0.35)
