"""Heads fitted to features whose content is known."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.heads import Head, LinearProbes, SeparateHeads, SharedHead, TunedLens
from layersim.module import LayerwiseModule
from layersim.objectives import Aligned, KLToLast, Objective, Reading
from layersim.outputs import LayerFeatures
from layersim.transfer import frozen_heads
from layersim.transfer.frozen_heads import fit_probes, train_head

CLASSES, WIDTH = 3, 6
DRAW = torch.Generator().manual_seed(0)
MEANS = 3 * torch.eye(WIDTH)[:CLASSES]


class Given(Backbone):
    """Two layers whose features are given; the classifier knows the classes' means."""

    num_layers, num_classes, width = 2, CLASSES, WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.linear.weight.data, self.linear.bias.data = MEANS.clone(), torch.zeros(CLASSES)

    @property
    def final_norm(self) -> nn.Module:
        return self.norm

    @property
    def classifier(self) -> nn.Module:
        return self.linear

    def forward(self, batch: Mapping[str, Any], layers: Sequence[int] | None = None) -> LayerFeatures:
        raise NotImplementedError


def clusters(samples: int) -> tuple[Tensor, Tensor]:
    """(N, D) features about the classes' means, and (N,) classes."""
    targets = torch.randint(CLASSES, (samples,), generator=DRAW)
    return MEANS[targets] + 0.3 * torch.randn(samples, WIDTH, generator=DRAW), targets


def features(lower: Tensor, upper: Tensor, targets: Tensor) -> LayerFeatures:
    return LayerFeatures(torch.stack([lower, upper]), targets)


def trained(kind: type[Head], given: LayerFeatures, steps: int = 300) -> Head:
    backbone = Given()
    objective: Objective = KLToLast() if kind is TunedLens else Aligned("uniform")
    head = LayerwiseModule(backbone, objective, head=kind, freeze="backbone").head
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    if isinstance(head, LinearProbes):
        fit_probes(head, objective, given, steps=steps)
    else:
        each = Reading.divergences if kind is TunedLens else lambda read: read.losses
        train_head(head, objective, each, given, steps=steps)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items()), "not the model"
    return head


def accuracies(head: Head, given: LayerFeatures) -> list[float]:
    with torch.no_grad():
        predictions = head.logits(given.values, range(2)).argmax(dim=-1)
    return (predictions == given.targets).double().mean(dim=1).tolist()


def turned(values: Tensor) -> Tensor:
    """The features behind an affine map that makes the shared head err: the classes' axes in another order, moved."""
    return values.roll(1, dims=1) @ (torch.eye(WIDTH) + 0.5) + 2.0


def test_what_an_affine_map_hid_a_lens_recovers_and_a_probe_knows() -> None:
    (fitted, targets), (tested, test_targets) = clusters(600), clusters(300)
    shown, others = features(turned(fitted), fitted, targets), features(turned(tested), tested, test_targets)
    readable = accuracies(SharedHead(Given()), others)
    assert readable[1] > 0.99
    assert readable[0] < 0.5
    for kind in (TunedLens, LinearProbes, SeparateHeads):
        found = accuracies(trained(kind, shown), others)
        assert found[0] > 0.98, kind
        assert found[1] == readable[1] or kind is LinearProbes


def test_what_the_last_layer_does_not_say_no_lens_recovers_but_a_probe_knows_it() -> None:
    """The last layer's features have nothing to do with the classes; those below tell them."""
    (fitted, targets), (tested, test_targets) = clusters(600), clusters(300)
    shown = features(fitted, clusters(600)[0], targets)
    others = features(tested, clusters(300)[0], test_targets)
    recoverable, known = (accuracies(trained(kind, shown), others) for kind in (TunedLens, LinearProbes))
    assert known[0] == 1.0
    assert recoverable[0] < 0.6, "it learnt to say what the last layer says"
    assert abs(known[1] - 1 / 3) < 4 * math.sqrt(2 / 9 / 300)


def test_of_random_labels_nothing_is_known() -> None:
    """Within four standard deviations of chance."""
    (fitted, _), (tested, _) = clusters(600), clusters(300)
    labels, others = (torch.randint(CLASSES, (count,), generator=DRAW) for count in (600, 300))
    probes = trained(LinearProbes, features(fitted, turned(fitted), labels))
    for found in accuracies(probes, features(tested, turned(tested), others)):
        assert abs(found - 1 / 3) < 4 * math.sqrt(2 / 9 / 300)


def test_many_classes_are_probed_by_steps_on_standardised_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales of 1e-3 … 1e3 and a feature that never varies change nothing: the weights are folded back."""
    monkeypatch.setattr(frozen_heads, "MOST_LOGISTIC", 2)
    (fitted, targets), (tested, test_targets) = clusters(600), clusters(300)
    scale = torch.logspace(-3, 3, WIDTH)
    plain = trained(LinearProbes, features(fitted, fitted, targets))
    scaled = trained(LinearProbes, features(fitted * scale + 5 * scale, fitted, targets))
    others = features(tested, tested, test_targets)
    assert accuracies(plain, others)[0] > 0.99
    first, second = (
        head.logits(values[None], [0]) for head, values in ((plain, tested), (scaled, tested * scale + 5 * scale))
    )
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)
    dead = fitted.clone()
    dead[:, 5] = 7.0
    assert trained(LinearProbes, features(dead, fitted, targets)).classifiers[0].weight[:, 5].abs().max() == 0


@pytest.mark.parametrize(("most", "start"), [(2, False), (100, False), (100, True)])
def test_the_bar_says_what_is_done_however_probes_are_fitted(
    most: int, start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(frozen_heads, "MOST_LOGISTIC", most)
    monkeypatch.setattr(frozen_heads, "track", lambda steps, description: said.append(description) or steps)
    values, targets = clusters(60)
    head = LayerwiseModule(Given(), Aligned("uniform"), head=LinearProbes, freeze="backbone").head
    assert isinstance(head, LinearProbes)
    known = nn.Linear(WIDTH, CLASSES) if start else None
    fit_probes(head, Aligned("uniform"), features(values, values, targets), steps=1, told="Reading", start=known)
    assert said == ["Reading"]


def test_no_layer_ends_worse_on_what_was_held_out_than_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are far too long are not kept: the lens is still the shared head."""
    monkeypatch.setattr(frozen_heads, "RATE", 1e4)
    fitted, targets = clusters(200)
    lens = trained(TunedLens, features(fitted, fitted, targets), steps=5)
    assert all(parameter.abs().max() == 0 for parameter in lens.maps.parameters())


def test_a_probe_that_starts_from_a_classifier_is_that_one_at_first() -> None:
    """No step: the shared head, to the last bit. Some steps: it reads what that cannot, and the model is as it was."""
    (fitted, targets), (tested, test_targets) = clusters(100), clusters(300)
    shown, others = features(fitted, turned(fitted), targets), features(tested, turned(tested), test_targets)
    shared = SharedHead(Given())
    for steps in (0, 300):
        made = LayerwiseModule(Given(), head=partial(LinearProbes, features="normed"), freeze="backbone")
        assert isinstance(made.head, LinearProbes)
        start = made.backbone.classifier
        assert isinstance(start, nn.Linear)
        assert fit_probes(made.head, Aligned("uniform"), shown, steps=steps, start=start) == [None, None]
        assert torch.equal(start.weight, MEANS)
        if not steps:
            read = (head.logits(others.values, range(2)) for head in (made.head, shared))
            torch.testing.assert_close(*read, rtol=0, atol=0)
    assert accuracies(made.head, others)[1] > 0.95 > accuracies(shared, others)[1]


def test_refusals() -> None:
    fitted, targets = clusters(600)
    with pytest.raises(UserError, match="as many training samples as classes at least, 3, for a probe, but got 2"):
        trained(LinearProbes, features(fitted[:2], fitted[:2], targets[:2]))
    without = targets != 1
    with pytest.raises(UserError, match=r"none of the \d+ training samples is of class 1"):
        trained(LinearProbes, features(fitted[without], fitted[without], targets[without]))
    with pytest.raises(UserError, match="two samples or more, but there are 1"):
        trained(TunedLens, features(fitted[:1], fitted[:1], targets[:1]))
    with pytest.raises(UserError, match="not finite at step 0"):
        trained(TunedLens, features(fitted / 0, fitted, targets))
