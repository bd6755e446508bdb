"""Heads: what they read, against formulas written out."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersim import heads
from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.heads import Head, LinearProbes, SeparateHeads, SharedHead, TunedLens
from layersim.outputs import LayerFeatures


class Plain(Backbone):
    """A backbone of three layers whose features are given."""

    num_layers = 3
    num_classes = 5

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.norm.weight)
        self.linear = nn.Linear(width, self.num_classes)

    @property
    def final_norm(self) -> nn.Module:
        return self.norm

    @property
    def classifier(self) -> nn.Module:
        return self.linear

    def forward(self, batch: Mapping[str, Any], layers: Sequence[int] | None = None) -> LayerFeatures:
        raise NotImplementedError


@pytest.fixture
def features() -> Tensor:
    return torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 0, 1])


def test_the_shared_head_is_the_models_own() -> None:
    backbone = Plain()
    head = SharedHead(backbone)
    assert head.classifier is backbone.linear
    assert head.final_norm is backbone.norm


def test_readout_against_each_layer_by_hand(features: Tensor, targets: Tensor) -> None:
    backbone = Plain()
    readout = SharedHead(backbone)(features, targets, range(3))
    for layer in range(3):
        probabilities = backbone.linear(backbone.norm(features[layer])).double().softmax(-1)
        loss = -probabilities[torch.arange(7), targets].log().mean()
        assert readout.losses[layer].item() == pytest.approx(loss.item(), abs=1e-6)
        assert readout.predictions[layer].tolist() == probabilities.argmax(-1).tolist()
        assert readout.confidences[layer].tolist() == pytest.approx(probabilities.max(-1).values.tolist(), abs=1e-6)
        of_targets = probabilities[torch.arange(7), targets].tolist()
        assert readout.target_log_odds[layer].sigmoid().tolist() == pytest.approx(of_targets, abs=1e-6)
        briers = (probabilities - torch.eye(probabilities.shape[1])[targets]).square().sum(1)
        assert readout.briers[layer].tolist() == pytest.approx(briers.tolist(), abs=1e-6)


def test_log_odds_rise_where_probabilities_are_one_already() -> None:
    """Of 5 classes, one ahead by a logit of m: its odds are eᵐ to 4."""
    backbone = Plain()
    backbone.linear.weight.data = torch.cat([torch.eye(4), torch.zeros(1, 4)])
    backbone.linear.bias.data.zero_()
    backbone.norm = nn.Identity()  # type: ignore[assignment]
    ahead = torch.tensor([1.0, 20.0, 30.0])
    features = ahead.view(3, 1, 1) * torch.eye(4)[:1]
    readout = SharedHead(backbone)(features, torch.tensor([0]), range(3))
    assert readout.confidences[1:].tolist() == [[1.0], [1.0]]
    torch.testing.assert_close(readout.target_log_odds[:, 0], ahead - math.log(4))


@pytest.mark.parametrize("make", [SharedHead, SeparateHeads])
def test_training_loss_is_the_weighted_sum_of_the_readouts(make: type[Head], features: Tensor, targets: Tensor) -> None:
    head = make(Plain())
    losses = head(features, targets, range(3)).losses
    weights = torch.tensor([0.2, 0.3, 0.5])
    torch.testing.assert_close(head.loss(features, targets, range(3), weights.tolist()), weights @ losses)
    some = head.loss(features[[0, 2]], targets, [0, 2], [0.25, 0.75])
    torch.testing.assert_close(some, 0.25 * losses[0] + 0.75 * losses[2])


@pytest.mark.parametrize("norm", ["final", "none"])
def test_the_shared_heads_gradients_are_those_of_the_formula(norm: Any, features: Tensor, targets: Tensor) -> None:
    """The chunked loss of a linear classifier against the plain one, in features, norm and classifier."""

    def gradients(plain: bool) -> list[Tensor]:
        head = SharedHead(Plain(), norm=norm)
        leaf = features.clone().requires_grad_()
        weights = [0.2, 0.3, 0.5]
        if plain:
            head.linear_parts = lambda *_: None
        value = head.loss(leaf, targets, range(3), weights)
        value.backward()
        return [value.detach(), leaf.grad, *(parameter.grad for parameter in head.parameters())]

    for ours, formula in zip(gradients(plain=False), gradients(plain=True), strict=True):
        torch.testing.assert_close(ours, formula)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_separate_heads_gradients_without_a_table_are_those_of_the_formula(
    smoothing: float, features: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three layers are read, so that one classifier has no gradient in either."""

    def gradients(plain: bool) -> list[Tensor | None]:
        head = SeparateHeads(Plain(), label_smoothing=smoothing)
        leaf = features[[0, 2]].requires_grad_()
        with monkeypatch.context() as patch:
            if not plain:
                patch.setattr(heads, "MAX_TABLE", 0)
                patch.delattr(SeparateHeads, "logits")
            value = head.loss(leaf, targets, [0, 2], [0.3, 0.7])
        value.backward()
        return [value.detach(), leaf.grad, *(parameter.grad for parameter in head.parameters())]

    for ours, formula in zip(gradients(plain=False), gradients(plain=True), strict=True):
        assert (ours is None) is (formula is None)
        if ours is not None and formula is not None:
            torch.testing.assert_close(ours, formula)


def test_separate_heads_of_several_parts_are_read_through_all_of_them(
    features: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MAX_TABLE", 0)
    backbone = Plain()
    backbone.linear = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5))  # type: ignore[assignment]
    head = SeparateHeads(backbone)
    expected = torch.tensor([0.2, 0.3, 0.5]) @ head(features, targets, range(3)).losses
    torch.testing.assert_close(head.loss(features, targets, range(3), [0.2, 0.3, 0.5]), expected)


@pytest.mark.parametrize("make", [SharedHead, SeparateHeads])
def test_label_smoothing_is_trained_and_not_measured(make: type[Head], features: Tensor, targets: Tensor) -> None:
    torch.manual_seed(0)
    plain = make(Plain())
    torch.manual_seed(0)
    smooth = make(Plain(), label_smoothing=0.2)
    log_p = smooth.logits(features, range(3)).double().log_softmax(-1)
    soft = torch.full((7, 5), 0.2 / 5, dtype=torch.float64)
    soft[torch.arange(7), targets] += 0.8
    expected = -(log_p * soft).sum(-1).mean(-1) @ torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert smooth.loss(features, targets, range(3), [0.2, 0.3, 0.5]).item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(smooth(features, targets, range(3)).losses, plain(features, targets, range(3)).losses)


def test_label_smoothing_outside_its_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"label_smoothing at least 0 and at most 1, but got 1\.5"):
        SharedHead(Plain(), label_smoothing=1.5)


def test_reading_in_chunks_changes_nothing(features: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    head = SharedHead(Plain())
    whole = head(features, targets, range(3))
    monkeypatch.setattr(heads, "MAX_LOGITS", 5 * 2)  # two samples at a time, and a ragged last chunk
    chunked = head(features, targets, range(3))
    torch.testing.assert_close(chunked.losses, whole.losses)
    assert torch.equal(chunked.predictions, whole.predictions)
    torch.testing.assert_close(chunked.confidences, whole.confidences)
    torch.testing.assert_close(chunked.target_log_odds, whole.target_log_odds)
    torch.testing.assert_close(chunked.briers, whole.briers)


def test_without_targets_there_are_no_losses(features: Tensor) -> None:
    readout = SharedHead(Plain())(features, None, range(3))
    assert readout.losses.numel() == readout.target_log_odds.numel() == readout.briers.numel() == 0
    assert readout.predictions.shape == (3, 7)


def test_norm_none_reads_raw_features_below_the_last_layer(features: Tensor) -> None:
    backbone = Plain()
    logits = SharedHead(backbone, norm="none").logits(features, range(3))
    torch.testing.assert_close(logits[:2], backbone.linear(features[:2]))
    torch.testing.assert_close(logits[2], backbone.linear(backbone.norm(features[2])))
    only = SharedHead(backbone, norm="none").logits(features[[1, 2]], [1, 2])
    torch.testing.assert_close(only, logits[1:])


def test_norm_none_is_refused_where_the_norm_stands_before_the_pooling() -> None:
    backbone = Plain()
    backbone.norm_before_pooling = True
    with pytest.raises(UserError, match="norm to final"):
        SharedHead(backbone, norm="none")


def test_separate_heads_have_a_classifier_for_each_layer(features: Tensor) -> None:
    backbone = Plain()
    head = SeparateHeads(backbone)
    assert head.classifiers[-1] is backbone.linear
    logits = head.logits(features, range(3))
    for layer, classifier in enumerate(head.classifiers):
        torch.testing.assert_close(logits[layer], classifier(backbone.norm(features[layer])))
    weights = [classifier.weight for classifier in head.classifiers]
    assert not torch.equal(weights[0], weights[1]), "separate heads start apart"
    assert sum(p.numel() for p in head.parameters()) == 3 * (4 * 5 + 5) + 2 * 4
    torch.testing.assert_close(head.logits(features[[2]], [2]), logits[[2]])


class Wide(Plain):
    """The same, which tells its width."""

    width = 4


def test_a_tuned_lens_starts_as_the_shared_head_and_is_its_formula(features: Tensor, targets: Tensor) -> None:
    """classifier(norm(h + A h + b)) below the last layer, which is read as it is."""
    backbone = Wide()
    shared, lens = SharedHead(backbone), TunedLens(backbone)
    assert torch.equal(lens.logits(features, range(3)), shared.logits(features, range(3)))
    assert lens.final_norm is backbone.norm
    assert sum(p.numel() for p in lens.maps.parameters()) == 2 * (4 * 4 + 4)
    for parameter in lens.maps.parameters():
        nn.init.normal_(parameter)
    moved = torch.stack(
        [rows + rows @ made.weight.T + made.bias for rows, made in zip(features, lens.maps, strict=False)]
    )
    expected = backbone.linear(backbone.norm(torch.cat([moved, features[2:]])))
    torch.testing.assert_close(lens.logits(features, range(3)), expected)
    torch.testing.assert_close(lens.logits(features[[1, 2]], [1, 2]), expected[1:])
    losses = torch.stack([nn.functional.cross_entropy(rows, targets) for rows in expected])
    torch.testing.assert_close(
        lens.loss(features, targets, range(3), [0.2, 0.3, 0.5]), losses @ torch.tensor([0.2, 0.3, 0.5])
    )


@pytest.mark.parametrize("kind", ["raw", "normed"])
def test_probes_read_every_layer_by_a_classifier_of_its_own(kind: Any, features: Tensor, targets: Tensor) -> None:
    backbone = Wide()
    probes = LinearProbes(backbone, kind)
    assert torch.equal(probes.logits(features, range(3)), torch.zeros(3, 7, 5)), "at first they say nothing"
    for parameter in probes.classifiers.parameters():
        nn.init.normal_(parameter)
    read = features if kind == "raw" else backbone.norm(features)
    expected = torch.stack([made(rows) for made, rows in zip(probes.classifiers, read, strict=True)])
    torch.testing.assert_close(probes.logits(features, range(3)), expected)
    assert all(made is not backbone.linear for made in probes.classifiers), "at the last layer too"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "MAX_TABLE", 0)
        found = probes.loss(features, targets, range(3), [0.2, 0.3, 0.5])
    losses = torch.stack([nn.functional.cross_entropy(rows, targets) for rows in expected])
    torch.testing.assert_close(found, losses @ torch.tensor([0.2, 0.3, 0.5]))


@pytest.mark.parametrize("make", [SharedHead, SeparateHeads, TunedLens, LinearProbes, partial(SharedHead, norm="none")])
def test_parts_at_a_layer_are_what_reads_it(make: Any, features: Tensor) -> None:
    head = make(Wide())
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    for layer in range(3):
        norm, classifier = head.parts_at(layer)
        torch.testing.assert_close(classifier(norm(features[layer])), head.logits(features[[layer]], [layer])[0])


@pytest.mark.parametrize("make", [SharedHead, SeparateHeads, LinearProbes, TunedLens])
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("label", [-100, -1, 5])
def test_a_label_that_is_no_class_is_an_error_in_training(
    make: type[Head], table: bool, label: int, features: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-100 too, which torch's own cross-entropy takes for a sample of no loss."""
    if not table:
        monkeypatch.setattr(heads, "MAX_TABLE", 0)
    head, wrong = make(Wide()), targets.clone()
    wrong[2] = label
    assert head.loss(features, targets, range(3), [0.2, 0.3, 0.5]) > 0
    with pytest.raises((IndexError, RuntimeError)):
        head.loss(features, wrong, range(3), [0.2, 0.3, 0.5])


def test_half_precision_features_are_read_in_float32(features: Tensor, targets: Tensor) -> None:
    head = SharedHead(Plain()).to(torch.bfloat16)
    half = features.to(torch.bfloat16)
    loss = head.loss(half, targets, range(3), [1.0, 0.0, 0.0])
    assert loss.dtype == torch.float32
    expected = nn.functional.cross_entropy(head.logits(half, range(3)).float()[0], targets)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
