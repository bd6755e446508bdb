"""The kept sample: whatever the batches and their order, the same; and the similarities' own choice."""

import pytest
import torch

from layersim.errors import UserError
from layersim.metrics import KeptSamples
from layersim.outputs import LayerFeatures
from layersim.similarity import CosineSimilarity, cosine

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
