"""Early exit under an alarm: what it is told, and what it does once it has sounded."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from layersim.errors import UserError
from layersim.exits import Alarm, exit_table, reference_of
from layersim.exits.policies import (
    Confidence,
    Patience,
    Policy,
    Similarity,
    exit_layer,
)
from layersim.exits.runner import EarlyExit
from layersim.exits.table import at_exits, drops
from layersim.heads import SharedHead
from layersim.outputs import LayerFeatures
from tests import tiny
from tests.backbones.tiny_transformers import L
from tests.exits.test_runner import N, Told, afterwards, backbone_of, batch_of, spreading


def watched(policy: Policy, samples: int = N) -> tuple[EarlyExit, dict[str, Tensor], Tensor, Told]:
    """An early exit with an alarm on labels and confidences, a batch, and its (L, N) scores."""
    backbone = backbone_of("timm ViT, class token")
    head, batch = SharedHead(backbone), batch_of(backbone, samples)
    scores, _ = afterwards(backbone, head, policy, batch)
    threshold = 2.0 if isinstance(policy, Patience) else spreading(scores)
    with torch.no_grad():
        features = LayerFeatures(backbone(batch).values, torch.zeros(samples, dtype=torch.long))
        table = exit_table(head, features, policy)
    reference = reference_of(table.select(torch.arange(samples).repeat(100)), policy, threshold, 7)
    watch = Told(target=0.2, risk="disagreement", reference=reference)
    return EarlyExit(backbone, head, policy, threshold, watch=watch), batch, scores, watch


@pytest.mark.parametrize("policy", [Confidence(), Similarity(), Patience()])
def test_an_alarm_is_told_what_every_sample_looked_like(policy: Policy) -> None:
    """The first layer's doubt, and the layers before the exit plus the doubt there; nothing else changes."""
    early_exit, batch, scores, watch = watched(policy)
    low, high = policy.bounds(7, L)
    doubt = torch.where(scores.isfinite(), (high - scores.double()) / (high - low), 1.0)
    exits = exit_layer(scores, early_exit.threshold)
    exited = early_exit(batch)
    assert exited.exit_layers.tolist() == exits.tolist()
    torch.testing.assert_close(watch.told[0], doubt[0], rtol=0, atol=2e-4)
    torch.testing.assert_close(watch.told[1], exits + at_exits(doubt, exits), rtol=0, atol=2e-4)
    assert watch.capitals["confidences"].samples == N


def test_without_a_threshold_an_alarm_is_told_too() -> None:
    early_exit, batch, scores, watch = watched(Confidence())
    early_exit.threshold = None
    low, high = Confidence().bounds(7, L)
    assert early_exit(batch).exit_layers.unique().tolist() == [L - 1]
    doubt = (high - scores.double()) / (high - low)
    torch.testing.assert_close(watch.told[0], doubt[0], rtol=0, atol=2e-4)
    torch.testing.assert_close(watch.told[1], L - 1 + doubt[-1], rtol=0, atol=2e-4)


def test_once_it_has_sounded_all_layers_are_gone_through_until_its_reset() -> None:
    early_exit, batch, scores, watch = watched(Confidence(), 20)
    surest = scores.amax(dim=0).argmax().item()
    same = {"image": batch["image"][surest : surest + 1].repeat(10, 1, 1, 1)}  # ten times the same image
    assert early_exit(same).exit_layers.max() < L - 1
    with pytest.warns(UserWarning, match="by its confidences: the samples are not like those") as said:
        [early_exit(same) for _ in range(20)]
    assert len(said) == 1
    seen = watch.capitals["confidences"].samples
    assert early_exit(same).exit_layers.unique().tolist() == [L - 1]
    assert watch.capitals["confidences"].samples == seen
    watch.reset()
    assert early_exit(same).exit_layers.max() < L - 1


def test_an_audit_reads_the_model_in_the_precision_that_it_is_served_in() -> None:
    early_exit, batch, _, watch = watched(Confidence(), 20)
    seen: list[torch.dtype] = []
    product = next(part for part in early_exit.backbone.modules() if isinstance(part, torch.nn.Linear))
    product.register_forward_hook(lambda _, __, values: seen.append(values.dtype))
    early_exit.audit(batch)
    early_exit.autocast = torch.bfloat16
    early_exit.audit(batch)
    assert seen == [torch.float32, torch.bfloat16]
    assert watch.capitals["labels"].samples == 40


def test_an_audit_tells_the_alarm_what_leaving_costs() -> None:
    early_exit, batch, _, watch = watched(Confidence(), 20)
    labels = torch.arange(20) % 7
    with torch.no_grad():
        table = exit_table(early_exit.head, LayerFeatures(early_exit.backbone(batch).values, labels), Confidence())
    early_exit.audit(batch)  # disagreement needs no label
    assert watch.capitals["labels"].samples == 20
    early_exit.watch = Alarm(target=0.2, risk="loss")
    expected = at_exits(drops(table, "loss"), exit_layer(table.scores, early_exit.threshold))
    assert expected.std() > 0
    assert early_exit.audit(batch, labels).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert early_exit.watch.capitals["labels"].samples == 20
    alike: list[Any] = [labels.tolist(), labels.to(torch.uint8), labels.int()]
    for whole in alike:
        assert early_exit.audit(batch, whole).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    for wrong in (None, labels[:3], labels.float(), labels + 1, labels - 1):
        with pytest.raises(UserError, match=r"Expected a label in 0 … 6 for each of 20 samples, but got"):
            early_exit.audit(batch, wrong)
    names = [*"gfedcba"]
    named: list[Any] = [names[label] for label in labels.tolist()]
    with pytest.raises(UserError, match="Expected labels as integers 0 … 6, but got 'g'"):
        early_exit.audit(batch, named)
    early_exit.class_names = names
    for whole in (named, np.array(named)):
        assert early_exit.audit(batch, whole).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    for odd, told in ((["z", *named[1:]], "'z'"), ([0, *named[1:]], "0")):
        with pytest.raises(UserError, match=rf"integers 0 … 6 or names of classes \(g, f, .*\), but got {told}"):
            early_exit.audit(batch, odd)
    early_exit.class_names = [*"ggedcba"]  # of two classes that are named alike
    with pytest.raises(UserError, match="Expected labels as integers 0 … 6"):
        early_exit.audit(batch, named[2:] * 2)
    early_exit.watch = None
    with pytest.raises(UserError, match="Expected an alarm that watches labels"):
        early_exit.audit(batch, labels)


def test_an_audit_takes_the_images_that_the_call_takes() -> None:
    backbone, data = tiny.backbone(), tiny.digits()
    data.setup()
    watch = Alarm(target=0.2, risk="loss")
    early_exit = EarlyExit(backbone, SharedHead(backbone), Confidence(), 0.1, watch=watch, inputs=data.inputs(backbone))
    images, labels = list(load_digits().images[:20] / 16), torch.arange(20) % 10
    assert early_exit.inputs is not None
    expected = early_exit.audit(early_exit.inputs(images), labels)
    assert expected.std() > 0
    assert early_exit.audit(images, labels).tolist() == expected.tolist()
    assert watch.capitals["labels"].samples == 40
