"""The pure functions: closed forms, definitions in float64, invariances, numbers that are hard on float32."""

import functools
import math

import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity import cosine, linear_cka

from .references import reference_cka, reference_cosine, related_layers

MEASURES = {
    "cosine-none": (functools.partial(cosine, centering="none"), functools.partial(reference_cosine, centering="none")),
    "cosine-samples": (cosine, functools.partial(reference_cosine, centering="samples")),
    "cosine-components": (
        functools.partial(cosine, centering="components"),
        functools.partial(reference_cosine, centering="components"),
    ),
    "cka-minibatch": (linear_cka, functools.partial(reference_cka, estimator="minibatch")),
    "cka-debiased": (
        functools.partial(linear_cka, estimator="debiased"),
        functools.partial(reference_cka, estimator="debiased"),
    ),
    "cka-biased": (
        functools.partial(linear_cka, estimator="biased"),
        functools.partial(reference_cka, estimator="biased"),
    ),
}
each_measure = pytest.mark.parametrize("name", MEASURES)
ESTIMATORS = ["minibatch", "debiased", "biased"]


def close(ours: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol)


@each_measure
def test_identical_layers_are_one(name: str) -> None:
    features = related_layers(40, 16, layers=1).expand(3, -1, -1)
    close(MEASURES[name][0](features), torch.ones(3, 3, dtype=torch.float64), atol=1e-7)


def test_cosine_of_known_angles() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    second = torch.tensor([[1.0, 1.0], [3.0, 0.0]])  # 45° and 90° away
    expected = torch.tensor([[1, math.sqrt(0.5) / 2], [math.sqrt(0.5) / 2, 1]], dtype=torch.float64)
    close(cosine(torch.stack([first, second]), centering="none"), expected, atol=1e-7)


def test_cosine_samples_by_hand() -> None:
    # means (1, 0) and (0, 1); what is left is ±(1, 0) and ±(1, 1) / ±(0, 1): 45° for both samples
    features = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [-1.0, 0.0]]])
    assert cosine(features)[0, 1].item() == pytest.approx(math.sqrt(0.5), abs=1e-7)


def test_cosine_components_by_hand() -> None:
    # (1, 2, 3) and (1, 5, 3) less their means: (−1, 0, 1) and (−2, 2, 0)
    features = torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 5.0, 3.0]]])
    assert cosine(features, centering="components")[0, 1].item() == pytest.approx(0.5, abs=1e-7)


def test_biased_cka_by_hand() -> None:
    # centred columns (1, −1, 1, −1), (1, 1, −1, −1), and both: orthogonal Gram matrices, and CKA 1 / √2 with their sum
    a, b = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    zero = torch.zeros(4)
    features = torch.stack([torch.stack([a, zero], 1), torch.stack([b, zero], 1), torch.stack([a, b], 1)])
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, 0, half], [0, 1, half], [half, half, 1]], dtype=torch.float64)
    close(linear_cka(features, estimator="biased"), expected, atol=1e-12)


def test_debiased_cka_of_unrelated_layers_is_zero_where_the_biased_one_is_not() -> None:
    features = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(3))
    assert abs(linear_cka(features, estimator="debiased")[0, 1].item()) < 0.02
    assert linear_cka(features, estimator="biased")[0, 1].item() > 0.4


@each_measure
@pytest.mark.parametrize("samples", [4, 5, 33, 64, 65, 67, 68, 200, 300])
def test_equals_the_definition(name: str, samples: int) -> None:
    measure, reference = MEASURES[name]
    features = related_layers(samples, 24)
    close(measure(features), reference(features))


def test_blocks_below_the_first_columns() -> None:
    features = related_layers(2200, 8, layers=2)  # more samples than one block has columns
    x = features.double() - features.double().mean(1, keepdim=True)
    cross = torch.einsum("lnd,mne->lmde", x, x).square().sum((2, 3))  # ‖XᵀY‖², another way to the same number
    expected = cross / cross.diagonal().sqrt().outer(cross.diagonal().sqrt())
    close(linear_cka(features, estimator="biased"), expected)


@each_measure
@pytest.mark.parametrize("samples", [4, 70, 256])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_hard_numbers(name: str, samples: int, offset: float, scale: float) -> None:
    measure, reference = MEASURES[name]
    features = related_layers(samples, 48)
    features = (features / features.std((1, 2), keepdim=True) + offset) * scale
    close(measure(features), reference(features))


@each_measure
def test_layers_of_very_different_scale(name: str) -> None:
    measure, reference = MEASURES[name]
    features = related_layers(80, 16) * torch.tensor([1e-8, 1.0, 1e4, 1e8])[:, None, None]
    close(measure(features), reference(features))


@each_measure
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    measure, reference = MEASURES[name]
    features = (related_layers(80, 16) + 20).to(dtype)
    close(measure(features), reference(features), atol=1e-12 if dtype == torch.float64 else 1e-6)


@each_measure
def test_a_recipe_with_fast_matmul_or_autocast_changes_nothing(name: str) -> None:
    measure = MEASURES[name][0]
    features = related_layers(80, 16)
    expected = measure(features)
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = measure(features)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(allowed)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch warns of Intel GPUs whenever the flag is touched
def test_the_product_of_other_devices_equals_the_definition_too(estimator: str) -> None:
    features = related_layers(300, 16)
    with torch.backends.mkldnn.flags(enabled=False):
        ours = linear_cka(features, estimator=estimator)  # type: ignore[arg-type]
    close(ours, reference_cka(features, estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cka_invariances(estimator: str) -> None:
    features = related_layers(80, 16)
    rotation = torch.linalg.qr(torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1)))[0]
    moved = 3 * features @ rotation + torch.arange(16.0)
    expected = linear_cka(features, estimator=estimator)  # type: ignore[arg-type]
    close(linear_cka(moved, estimator=estimator), expected)  # type: ignore[arg-type]
    stretched = features.clone()
    stretched[0] @= torch.diag(torch.logspace(0, 1, 16))  # the control: a map that is linear and nothing more
    change = linear_cka(stretched, estimator=estimator) - expected  # type: ignore[arg-type]
    assert change.abs().max() > 0.01


def test_cosine_invariances() -> None:
    features = related_layers(80, 16)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    scales = torch.tensor([0.5, 1.0, 3.0, 10.0])[:, None, None]
    close(cosine(features @ rotation * scales + torch.arange(16.0)), cosine(features))
    close(
        cosine(features @ rotation * scales, centering="none"),
        cosine(features, centering="none"),
    )
    moved = cosine(features + torch.arange(16.0), centering="none") - cosine(features, centering="none")
    assert moved.abs().max() > 0.01  # the control: without centring translation counts
    own = features.clone()
    own[0] @= rotation
    assert (cosine(own) - cosine(features)).abs().max() > 0.1  # the control: a layer's own rotation counts


@pytest.mark.parametrize("name", ["cosine-samples", "cka-minibatch", "cka-debiased", "cka-biased"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e8, math.nan, math.inf])
def test_a_layer_without_spread_is_nan_in_its_own_row_and_column(name: str, value: float) -> None:
    measure = MEASURES[name][0]
    features = related_layers(70, 16)
    clean = measure(features)
    if math.isfinite(value):
        features[2] = value
    else:
        features[2, 5, 3] = value
    with pytest.warns(UserWarning, match=r"NaN for layer 3 \(counted from 1\)"):
        ours = measure(features)
    assert ours[2].isnan().all()
    assert ours[:, 2].isnan().all()
    rest = torch.tensor([0, 1, 3])
    assert torch.equal(ours[rest][:, rest], clean[rest][:, rest])


@pytest.mark.parametrize("centering", ["none", "components"])
def test_a_vector_without_direction_is_nan_in_its_layer(centering: str) -> None:
    features = related_layers(10, 16)
    features[1, 4] = 0
    with pytest.warns(UserWarning, match="layer 2 "):
        ours = cosine(features, centering=centering)  # type: ignore[arg-type]
    assert ours.isnan().sum() == 7


def test_a_layer_constant_within_one_group_only_is_measured_by_the_others() -> None:
    features = related_layers(128, 16)
    features[1, :64] = 2.5
    close(linear_cka(features), reference_cka(features, "minibatch"))


def test_peer_pytorch_cka() -> None:
    peer = pytest.importorskip("cka")
    features = related_layers(100, 24)
    expected = peer.cka_from_features(features.double(), features.double())
    close(linear_cka(features, estimator="debiased"), expected)


def test_peer_scikit_learn_kernels() -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    features = related_layers(30, 8, layers=2)
    grams = [pairwise.linear_kernel(x - x.mean(0)) for x in features.double().numpy()]
    expected = (grams[0] * grams[1]).sum() / math.sqrt((grams[0] ** 2).sum() * (grams[1] ** 2).sum())
    assert linear_cka(features, estimator="biased")[0, 1].item() == pytest.approx(expected, abs=1e-12)
    cosines = pairwise.cosine_similarity(*features.double().numpy()).diagonal().mean()
    assert cosine(features, centering="none")[0, 1].item() == pytest.approx(cosines, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine(torch.ones(2, 3)), r"expected \(L, N, D\).*got shape \(2, 3\)"),
        (lambda: cosine(torch.ones(2, 3, 4, dtype=torch.int64)), "expected a floating-point tensor, got torch.int64"),
        (lambda: cosine(torch.ones(2, 1, 4)), 'centering="samples" needs at least 2 samples, got 1'),
        (lambda: cosine(torch.ones(2, 0, 4), centering="none"), "needs at least 1 samples, got 0"),
        (lambda: cosine(torch.ones(2, 3, 4), centering="mean"), "centering: expected one of none.*got .mean."),
        (lambda: linear_cka(torch.ones(2, 3, 4)), 'estimator="minibatch" needs at least 4 samples, got 3'),
        (lambda: linear_cka(torch.ones(2, 1, 4), estimator="biased"), "needs at least 2 samples, got 1"),
        (lambda: linear_cka(torch.ones(2, 9, 4), estimator="full"), "estimator: expected one of minibatch.*got .full."),
        (lambda: linear_cka(torch.ones(2, 9, 4), batch_size=3), "batch_size: expected at least 4.*got 3"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
