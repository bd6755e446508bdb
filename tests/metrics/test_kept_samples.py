"""The kept sample: whatever the batches and their order, the same; and the similarities' own choice."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layersim.errors import UserError
from layersim.metrics import KeptSamples
from layersim.outputs import LayerFeatures
from layersim.similarity import RSA, CosineSimilarity, LinearCKA, cosine

from .paths import drawn

FEATURES = drawn(3, 200, 5).float()
TARGETS = torch.arange(200) % 7


def kept(order: torch.Tensor, batch: int, max_samples: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    metric = KeptSamples(max_samples=max_samples)
    for rows in order.split(batch):
        metric.update(LayerFeatures(FEATURES[:, rows], TARGETS[rows], rows))
    features, targets, index = metric.compute()
    assert torch.equal(FEATURES[:, index], features), "what is told of their positions is true"
    return features, targets


@pytest.mark.parametrize("max_samples", [None, 40])
def test_order_and_batches_do_not_matter(max_samples: int | None) -> None:
    features, targets = kept(torch.arange(200), 200, max_samples)
    assert features.shape == (3, max_samples or 200, 5)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    again, classes = kept(shuffled, 13, max_samples)
    assert targets is not None
    assert classes is not None
    assert torch.equal(features, again)
    assert torch.equal(targets, classes)
    rows = (FEATURES[0, :, None] == features[0]).all(-1).nonzero()[:, 0]
    assert torch.equal(TARGETS[rows], targets), "each sample has its own class"


def test_similarities_keep_the_same_samples() -> None:
    metric = CosineSimilarity(max_samples=40)
    metric.update(FEATURES, torch.arange(200))
    features, _ = kept(torch.arange(200), 50, 40)
    torch.testing.assert_close(metric.compute(), cosine(features), rtol=0, atol=1e-12)


def test_without_targets_and_positions() -> None:
    metric = KeptSamples(max_samples=None)
    for rows in torch.arange(200).split(60):
        metric.update(LayerFeatures(FEATURES[:, rows]))
    features, targets, index = metric.compute()
    assert torch.equal(features, FEATURES)
    assert torch.equal(index, torch.arange(200))
    assert targets is None


def test_a_position_that_comes_twice_is_refused() -> None:
    with pytest.raises(UserError, match="position 3 came more than once"):
        kept(torch.tensor([1, 3, 2, 3]), 2, None)
    with pytest.raises(UserError, match="max_samples: expected at least 4, got 3"):
        KeptSamples(max_samples=3, least=4)


class Largest(TorchDispatchMode):
    """The most bytes that one operation newly took."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = (
            {
                each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
                for each in tree_leaves(values)
                if isinstance(each, torch.Tensor)
            }
            for values in ((args, kwargs), result)
        )
        self.bytes = max([self.bytes, *(made[pointer] for pointer in made.keys() - given.keys())])
        return result


def test_rows_are_chosen_before_anything_is_copied() -> None:
    """A batch many times the cap costs the cap, and so do ten of them."""
    layers, width, cap = 4, 64, 10
    metric = KeptSamples(max_samples=cap)
    with Largest() as largest:
        for start in range(0, 20_000, 2_000):
            features = torch.empty(layers, 2_000, width)
            largest.bytes = 0
            metric.update(LayerFeatures(features, torch.zeros(2_000), torch.arange(start, start + 2_000)))
            # hashes of positions are looked at, 8 bytes each, and nothing else of them all
            assert largest.bytes <= max(cap * layers * width * 4, 8 * (2_000 + cap))
            assert sum(each.untyped_storage().nbytes() for each in metric.features) <= 2 * cap * layers * width * 4
        largest.bytes = 0
        features.clone()
    assert largest.bytes == features.nbytes, "the control"
    assert len(metric.compute()[2]) == cap


@pytest.mark.parametrize("keep_on", ["device", "host"])
def test_one_sample_serves_several_caps(keep_on: Any) -> None:
    made = [CosineSimilarity(max_samples=40), LinearCKA(estimator="debiased", max_samples=25), RSA(max_samples=10)]
    alone = [CosineSimilarity(max_samples=40), LinearCKA(estimator="debiased", max_samples=25), RSA(max_samples=10)]
    targets = KeptSamples(max_samples=7)
    sample = KeptSamples(max_samples=1, keep_on=keep_on)
    for metric in (*made, targets):
        metric.share(sample)
    for rows in torch.randperm(200, generator=torch.Generator().manual_seed(0)).split(30):
        sample.update(LayerFeatures(FEATURES[:, rows], TARGETS[rows], rows))
        for metric in (*made, *alone):
            metric.update(FEATURES[:, rows], rows)
        targets.update(LayerFeatures(FEATURES[:, rows], TARGETS[rows], rows))
    for ours, expected in zip(made, alone, strict=True):
        assert ours.features == [], "it keeps nothing itself"
        assert torch.equal(ours.compute(), expected.compute())
    features, classes, index = targets.compute()
    assert torch.equal(features, FEATURES[:, index])
    assert classes is not None
    assert torch.equal(classes, TARGETS[index])
    assert (len(index), len(sample.index[0])) == (7, 40)


def test_what_streams_does_not_share() -> None:
    streaming = [LinearCKA(), CosineSimilarity(centering="none"), Streaming(max_samples=10)]
    assert not any(metric.keeps_sample for metric in streaming)
    assert CosineSimilarity().keeps_sample


class Streaming(RSA):
    """Somebody's own measure, which keeps what it likes."""

    def update(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError
