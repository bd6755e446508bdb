"""What measures take: arrays and lists of layers as well as tensors, of any scale, and nothing else."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity import RSA, LinearCKA, MutualKNN, cosine, jackknife, linear_cka, mutual_knn, rbf_cka

from .every_measure import METRICS, function_of
from .references import related_layers

each_measure = pytest.mark.parametrize("name", METRICS)


def by_function(name: str, features: Any, other: Any = None) -> Tensor:
    return function_of(METRICS[name]())(features, other)


def by_metric(name: str, features: Any, other: Any = None) -> Tensor:
    metric = METRICS[name]()
    metric.update(features, other=other)
    return metric.compute()


WAYS: dict[str, Callable[..., Tensor]] = {
    "function": by_function,
    "metric": by_metric,
    "interval": lambda name, *given: jackknife(function_of(METRICS[name]()), *given).standard_error,
}
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "array": Tensor.numpy,
    "list": list,
    "tuple of arrays": lambda layers: tuple(layer.numpy() for layer in layers),
    "array that cannot be written": lambda layers: np.broadcast_to(layers.numpy(), layers.shape),
    "array that runs backwards": lambda layers: np.flip(np.flip(layers.numpy(), 1).copy(), 1),
    "with a gradient": lambda layers: layers.clone().requires_grad_(),
}


@each_measure
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["function", "metric"])
def test_arrays_and_lists_are_tensors(name: str, form: str, way: str) -> None:
    features, other = related_layers(60, 6, layers=3), related_layers(60, 6, layers=2, seed=4)
    for given in ((features,), (features, other)):
        ours = WAYS[way](name, *map(FORMS[form], given))
        assert torch.equal(ours, WAYS[way](name, *given))
        assert not ours.requires_grad


def test_intervals_take_arrays_and_lists_too() -> None:
    features = related_layers(60, 6, layers=3)
    for form in FORMS.values():
        assert torch.equal(jackknife(cosine, form(features)).high, jackknife(cosine, features).high)


TWO = torch.ones(2, 9, 3)


@each_measure
@pytest.mark.parametrize("way", ["function", "metric"])
@pytest.mark.parametrize(
    ("features", "other", "message"),
    [
        ([TWO[0], TWO[0, :, :2]], None, r"features: expected layers of one shape, got \(9, 3\), \(9, 2\): compare"),
        ([TWO[0].to("meta"), TWO[0]], None, "features: expected layers of one device, got meta, cpu"),
        (TWO, TWO.to("meta"), "other: expected cpu, where features are, got meta: move either"),
        (TWO.int().numpy(), None, r"features: expected a floating-point tensor, got torch.int32: convert it by .float"),
        ([TWO[0], TWO[0].long()], None, "features: layer 2: expected a floating-point tensor, got torch.int64"),
        (TWO, TWO.bool(), "other: expected a floating-point tensor, got torch.bool"),
        (TWO.to(torch.complex64), None, "features: expected a floating-point tensor, got torch.complex64"),
        (TWO.to(torch.float8_e5m2), None, "a plain tensor of 16 bits or more, got torch.float8_e5m2"),
        (TWO.to_sparse(), None, "a plain tensor .* torch.sparse_coo"),
        (TWO.numpy().astype(">f4"), None, "features: torch cannot read this array: .*byte order"),
        (np.array([["a"]]), None, "features: torch cannot read this array: .* Convert it by"),
        ({"layer": TWO}, None, "features: expected a tensor or a NumPy array .*, or a list of layers .*, got dict"),
        ([], None, "or a list of layers .*, got list"),
        (list(TWO[0]), None, r"features: expected \(L, N, D\), layers first, got shape \(9, 3\)"),
    ],
)
def test_whatever_else_comes_is_refused(name: str, way: str, features: Any, other: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        WAYS[way](name, features, other)


SCALES = {"1e-40": 1e-40, "1e-30": 1e-30, "1e-12": 1e-12, "1e12": 1e12, "1e30": 1e30, "1e35": 1e35}


@each_measure
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", SCALES)
def test_no_scale_is_too_large_or_too_small_for_float32(name: str, way: str, scale: str) -> None:
    """Against float64 at the ordinary scale; 1e-40 has few digits left, and so has what it is compared with."""
    features = related_layers(80, 6, layers=3) * SCALES[scale]
    near_one = features.double() / SCALES[scale]
    torch.testing.assert_close(WAYS[way](name, features), WAYS[way](name, near_one), rtol=0, atol=2e-6)


@each_measure
@pytest.mark.parametrize("way", WAYS)
def test_layers_of_opposite_scales(name: str, way: str) -> None:
    scales = torch.tensor([1e-30, 1.0, 1e30])[:, None, None]
    features = related_layers(80, 6, layers=3) * scales
    near_one = features.double() / scales.double()
    torch.testing.assert_close(WAYS[way](name, features), WAYS[way](name, near_one), rtol=0, atol=2e-6)


@each_measure
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_the_ends_of_its_range(name: str, dtype: torch.dtype) -> None:
    features = related_layers(80, 6, layers=3)
    features = features / features.abs().amax()
    for scale in (1e-4, 6e4) if dtype == torch.float16 else (1e-30, 1e30):
        given = (features * scale).to(dtype)
        for way in (by_function, by_metric):
            torch.testing.assert_close(way(name, given), by_function(name, given.double()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("estimator", ["minibatch", "debiased", "biased"])
@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_cka_of_float64_beyond_the_range_of_float32(estimator: Any, scale: float) -> None:
    features = related_layers(80, 6, layers=3).double()
    torch.testing.assert_close(
        linear_cka(features * scale, estimator=estimator), linear_cka(features, estimator=estimator), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("estimator", ["minibatch", "debiased", "biased"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cka_by_covariances_at_any_scale(estimator: Any, scale: float) -> None:
    """Of more samples than L · D, where HSIC comes from covariances; and of small deviations from a large constant."""
    features = related_layers(400, 4, layers=3)
    expected = linear_cka(features.double(), estimator=estimator, batch_size=400)
    ours = linear_cka(features * scale, estimator=estimator, batch_size=400)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    with_constant = torch.cat([features * scale, torch.full((3, 400, 1), 1e30)], dim=2)
    ours = linear_cka(with_constant, estimator=estimator, batch_size=400)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_an_interval_of_cka_of_float64_beyond_the_range_of_float32(estimator: Any, scale: float) -> None:
    features = related_layers(80, 6, layers=3).double()
    ours, expected = LinearCKA(estimator=estimator), LinearCKA(estimator=estimator)
    ours.update(features * scale)
    expected.update(features)
    torch.testing.assert_close(ours.interval().standard_error, expected.interval().standard_error, rtol=0, atol=1e-9)


NUMBERS: list[tuple[Callable[[Any], object], str, list[Any]]] = [
    (lambda given: rbf_cka(TWO, bandwidth=given), "bandwidth: expected a positive number", [inf, nan, 0, -1, "1"]),
    (
        lambda given: MutualKNN(k=given),
        "k: expected (a whole number of )?at least 1 neighbour, got",
        [0, 2.5, "4", True],
    ),
    (
        lambda given: linear_cka(TWO, batch_size=given),
        "batch_size: expected (a whole number of )?at least 4, as",
        [3, 8.0],
    ),
    (
        lambda given: LinearCKA(batch_size=given),
        "batch_size: expected (a whole number of )?at least 4, as",
        [3, nan, "8"],
    ),
    (lambda given: RSA(max_samples=given), "max_samples: expected (a whole number of )?at least 3, got", [2, inf, 8.5]),
    (
        lambda given: jackknife(cosine, TWO, groups=given),
        "groups: expected (a whole number of )?at least 2, ",
        [1, 4.0],
    ),
    (lambda given: RSA().expect_null(given), "null: expected (a whole number of )?at least 19 perm", [18, 20.5, "20"]),
    (
        lambda given: RSA().expect_null(seed=given),
        "A seed is a whole number from 0 to .* Change seed",
        [-1, 2.5, 2**64],
    ),
]


@pytest.mark.parametrize(("call", "message", "given"), NUMBERS)
def test_options_that_are_numbers_are_checked_at_once(
    call: Callable[[Any], object], message: str, given: list[Any]
) -> None:
    for number in given:
        with pytest.raises(UserError, match=message):
            call(number)


def test_whole_numbers_may_be_numpys() -> None:
    features = related_layers(80, 6, layers=3)
    assert torch.equal(linear_cka(features, batch_size=np.int64(20)), linear_cka(features, batch_size=20))
    assert torch.equal(mutual_knn(features, k=np.int64(4)), mutual_knn(features, k=4))


@pytest.mark.parametrize("centering", ["none", "samples", "components"])
@pytest.mark.parametrize("seed", range(4))
def test_no_cosine_is_beyond_one(centering: Any, seed: int) -> None:
    """Equal, scaled and opposite layers: float32's inner products of directions give 1 + 1e-7."""
    x = torch.randn(3, 200, 97, generator=torch.Generator().manual_seed(seed))
    features = torch.cat([x, x[:1], 3 * x[:1], -x[:1], -7 * x[1:2]])
    for ours in (cosine(features, centering=centering), cosine(features, features.flip(0), centering=centering)):
        assert -1 <= ours.min() < -0.999_999
        assert 0.999_999 < ours.max() <= 1
    ours = cosine(features, centering=centering)
    assert ours.diagonal().tolist() == [1] * 7
    assert ours[0, 3] == 1
    assert ours[0, 5] == -1


@each_measure
@pytest.mark.parametrize("shape", [(2, 30, 0), (0, 30, 4)])
def test_features_without_layers_or_components_are_refused(name: str, shape: tuple[int, ...]) -> None:
    for way in WAYS.values():
        with pytest.raises(UserError, match="layers first, got shape"):
            way(name, torch.zeros(shape))


@each_measure
@pytest.mark.parametrize("shape", [(4, 60, 6), (3, 60, 5)])
def test_every_update_has_the_layers_and_widths_of_the_first(name: str, shape: tuple[int, ...]) -> None:
    metric = METRICS[name]()
    metric.update(related_layers(60, 6, layers=3))
    with pytest.raises(UserError, match=r"expected 3 layers of width 6, as in the update before, got shape"):
        metric.update(torch.randn(shape))
    metric.reset()
    metric.update(torch.randn(shape))


@each_measure
@pytest.mark.parametrize("first", ["one model", "two models"])
def test_another_model_comes_with_every_update_or_with_none(name: str, first: str) -> None:
    metric, features = METRICS[name](), related_layers(160, 6, layers=3)
    other = related_layers(160, 6, layers=3, seed=4)
    given = [{"other": other[:, :80]}, {}] if first == "two models" else [{}, {"other": other[:, 80:]}]
    metric.update(features[:, :80], **given[0])
    with pytest.raises(UserError, match="other: expected with every update or with none: reset the metric in between"):
        metric.update(features[:, 80:], **given[1])
    metric.reset()
    metric.update(features[:, 80:], **given[1])


@pytest.mark.parametrize("index", [torch.arange(20), torch.arange(60), torch.arange(40.0)])
def test_positions_are_as_many_as_samples(index: Tensor) -> None:
    features = related_layers(40, 6, layers=3)
    with pytest.raises(UserError, match=r"index: expected \(40,\) integers, one a sample"):
        jackknife(cosine, features, index=index)
    counted = jackknife(cosine, features, index=torch.arange(40))
    assert torch.equal(counted.standard_error, jackknife(cosine, features).standard_error)


@each_measure
@pytest.mark.parametrize("form", [Tensor.numpy, Tensor.tolist])
def test_positions_may_be_an_array_or_a_list(name: str, form: Callable[[Tensor], Any]) -> None:
    features, index = related_layers(80, 6, layers=3), torch.arange(80).flip(0)
    ours, theirs = METRICS[name](), METRICS[name]()
    ours.update(features.numpy(), form(index))
    theirs.update(features, index)
    assert torch.equal(ours.compute(), theirs.compute())
    found = jackknife(cosine, features, index=form(index)).standard_error
    assert torch.equal(found, jackknife(cosine, features, index=index).standard_error)
    assert not torch.equal(found, jackknife(cosine, features).standard_error), "the control: positions matter"
