"""HSIC of all pairs of layers, by each way that leads to it."""

import pytest
import torch
from torch import Tensor

from layersim.exits.curve import ExitCounts
from layersim.similarity import hsic as ways
from layersim.similarity import linear_cka
from layersim.similarity.hsic import by_covariances, by_grams, hsic

from .references import reference_hsic0, reference_hsic1, related_layers


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("samples", [4, 33, 127, 128, 129, 255, 256, 257, 513, 700])
def test_equals_the_definition_at_each_number_of_samples(
    samples: int, unbiased: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever library multiplies, of sets of other widths, one of them not in one piece."""
    monkeypatch.setattr(ways, "onednn_is_faster", lambda: onednn)
    sets = [related_layers(samples, 96, layers=3), related_layers(2 * samples, 40, layers=2, seed=5)[:, ::2]]
    rows = [layer.double() - layer.double().mean(0) for layers in sets for layer in layers]
    kernels, reference = [row @ row.mT for row in rows], reference_hsic1 if unbiased else reference_hsic0
    expected = torch.tensor([[reference(one, other) for other in kernels] for one in kernels])
    found, sizes = hsic(sets, unbiased=unbiased), expected.diagonal().abs().sqrt()
    assert ((found - expected) / sizes.outer(sizes)).abs().max() < 1e-6


def test_both_ways_give_the_same_sums() -> None:
    rows = related_layers(300, 24, layers=3)
    rows -= rows.mean(1, keepdim=True)
    for ours, other in zip(by_grams([rows[:2], rows[2:]], 3, 300), by_covariances([rows]), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_the_faster_library_is_found_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product of the slower one takes a second more here; the processor itself has an answer of its own."""
    assert ways.onednn_is_faster() in (False, True)
    for module, name, answer in ((torch, "mm", True), (ways, "_by_onednn", False)):
        products: list[Tensor] = []
        with monkeypatch.context() as patched:
            patched.setattr(ways, "perf_counter", lambda made=products: float(len(made)))
            patched.setattr(module, name, lambda left, _, made=products: made.append(left))
            assert ways.onednn_is_faster.__wrapped__() is answer


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    """Nor where the processor is measured first."""
    features = related_layers(64, 16)
    expected = linear_cka(features)
    ways.onednn_is_faster.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(linear_cka(features), expected)
        assert ExitCounts(3).thresholds.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
