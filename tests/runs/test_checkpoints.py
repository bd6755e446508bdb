"""Checkpoints are looked at before anything is built on them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layersim.errors import UserError
from layersim.runs.checkpoints import check_fits
from tests import tiny


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_the_first_tensor_that_is_not_finite_is_named(broken: float) -> None:
    module = tiny.module()
    state = {name: values.clone() for name, values in module.state_dict().items()}
    check_fits(state, module, "a.ckpt")
    state["backbone.model.blocks.1.mlp.fc2.bias"][3] = broken
    state["backbone.model.blocks.2.mlp.fc1.bias"][:2] = broken
    message = "backbone.model.blocks.1.mlp.fc2.bias has 1 of 16 values that are NaN or infinite"
    with pytest.raises(UserError, match=re.escape(message)) as found:
        check_fits(state, module, "a.ckpt")
    assert "a.ckpt" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_buffer_may_be_infinite() -> None:
    """As masks are."""
    module = tiny.module()
    module.register_buffer("mask", torch.full((2,), -torch.inf))
    check_fits(module.state_dict(), module, "a.ckpt")


@pytest.mark.parametrize("verb", [["validate"], ["exits"], ["export", "--to=out"], ["fit"], ["predict"]])
def test_every_verb_refuses_weights_that_are_no_numbers(
    verb: list[str], layersim: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tiny.module().state_dict()
    state["head.classifier.weight"][0, 0] = torch.nan
    torch.save({"state_dict": state}, tmp_path / "nan.ckpt")
    flags = [flag for flag in tiny.FLAGS if "max_epochs" not in flag]
    layersim(*verb, *flags, "--ckpt_path=nan.ckpt", status=2)
    assert "values that are NaN or infinite" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"nan.ckpt"}
