"""LayerMeasures in a loop that runs the model itself: what is read of a pass, and what a pass leaves behind."""

import pytest
import torch
from torch import nn

from callbacks import LayerMeasures
from layersim.errors import UserError
from layersim.tapping import feature_tap
from tests import tiny
from tests.backbones.tiny_transformers import ENCODER, build
from tests.callbacks.test_layer_measures import NET, PARTS, batches, same, shown


def test_what_a_pass_that_failed_put_out_is_not_the_nexts() -> None:
    backbone = tiny.backbone()
    measures = LayerMeasures(backbone, measures="saturation")
    (first, *_) = batches()
    with pytest.raises(RuntimeError, match="failed"), measures.watching(first):  # noqa: PT012
        backbone(first)
        raise RuntimeError("failed")
    with pytest.raises(UserError, match="Nothing ran: call the TimmBackbone itself"), measures.watching(first):
        pass


def test_a_transformers_model_that_fails_lets_go_of_compiled_code() -> None:
    """Which runs eagerly while it is read."""
    measures = LayerMeasures(build({"model_type": "bert", **ENCODER}, "classification").model, measures="saturation")
    with pytest.raises(RuntimeError, match="failed"), measures.watching({"input_ids": torch.ones(1, 3).long()}):
        raise RuntimeError("failed")
    assert not feature_tap._holders


def test_a_loop_may_run_the_model_itself() -> None:
    """Its gradients are what they are without, and what it measures is what it ran."""
    own = tiny.backbone().model
    measures = LayerMeasures(own, measures=["accuracy", "cosine"], **PARTS)
    gradients = []
    for watched in (False, True):
        own.zero_grad()
        batch = batches()[0]
        with measures.watching(batch) if watched else torch.enable_grad():
            logits = own(batch["image"])
        nn.functional.cross_entropy(logits, batch["label"]).backward()
        gradients.append([each.grad.clone() for each in own.parameters() if each.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    right = (logits.argmax(-1) == batch["label"]).double().mean()
    assert measures.compute()["accuracy"].values[-1] == pytest.approx(right.item())


def test_a_pass_may_be_looked_at_before_it_ends_and_begun_anew() -> None:
    net, given = tiny.backbone().model, batches()
    measures = LayerMeasures(net, measures=["accuracy", "cka"], **PARTS)
    half = shown(measures, given[:3])
    same(measures.compute(), half)
    whole = shown(measures, given[3:])
    same(whole, shown(LayerMeasures(net, measures=["accuracy", "cka"], **PARTS), given))
    measures.reset()
    same(shown(measures, given[:3]), half)


def test_watching_without_a_run_is_told_and_lets_go() -> None:
    for measures in (LayerMeasures(NET, "blocks.*"), LayerMeasures(tiny.backbone())):
        with pytest.raises(UserError, match=r"Call the model|Nothing ran"), measures.watching():
            pass
        with pytest.raises(ZeroDivisionError), measures.watching():
            raise ZeroDivisionError
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in NET.modules())
