"""An option with a few values takes no other, from Python either: nothing is read as one of them without a word."""

import inspect
import re
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from layersim import Aligned, SharedHead, TimmBackbone
from layersim.errors import UserError, check_choice
from layersim.exits import Confidence, exit_table
from layersim.outputs import LayerFeatures

REFERENCE = Path(__file__).parents[1] / "docs/reference"
CARRIED = {
    "Quantity",
    "LayerRecord",
    "Claim",
    "Verdict",
    "Properties",
    "Calibration",
    "TokenCalibration",
    "Removal",
    "LayerMonitor",
}
"""Only written by us, checked where they are read, or made of by others."""
INSIDE = {
    "TextInputs.truncation",
    "check_promise.risk",
    "propose_removal.criterion",
    "comparison.span",
    "figures_of.span",
}
"""Checked before it comes here, or where it goes to."""


def literal(annotation: Any) -> bool:
    """Whether a text can be wrong there: a `Literal`, or one of several types with a `Literal` among them."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(map(literal, get_args(annotation)))
    return get_origin(annotation) is Literal


def options() -> Iterator[tuple[str, str]]:
    """Each public callable with each of its options that are choices, but for verbs, whose parser checks them."""
    for page in sorted(REFERENCE.glob("*.md")):
        for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE):
            home, _, own = name.rpartition(".")
            if home.startswith("layersim.commands") or own in CARRIED:
                continue
            public = getattr(import_module(home), own)
            made = public.__init__ if inspect.isclass(public) else public
            if not inspect.isfunction(made):
                continue
            for option, annotation in get_type_hints(made).items():
                if option not in ("return", "stage") and literal(annotation) and f"{own}.{option}" not in INSIDE:
                    yield name, option


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """What a callable may ask for, by the names that all of them use."""
    backbone = TimmBackbone(
        "vit_tiny_patch16_224",
        num_classes=3,
        img_size=8,
        in_chans=1,
        model_args={"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    )
    head = SharedHead(backbone)
    return {
        "backbone": backbone,
        "head": head,
        "objective": Aligned(),
        "policy": Confidence(),
        "threshold": 0.5,
        "features": torch.randn(3, 8, 4),
        "classes": torch.arange(8) % 3,
        "model": backbone,
        "layers": "blocks.*",
        "path": "nowhere",
        "to": "nowhere",
        "tokenizer": "nobodys",
        "task": "classification",
        "right": torch.eye(3),
        "samples": 8,
        "num_layers": 3,
        "max_samples": 8,
        "batches": [],
        "table": exit_table(head, LayerFeatures(torch.randn(2, 900, 16), torch.zeros(900).long()), Confidence()),
        "thresholds": [0.1, 0.9],
        "target": 0.1,
        "risk": "error",
        "confidence": 0.9,
        "exits": None,
        "input_ids": torch.zeros(900, 4),
        "following": torch.zeros(900, 4),
    }


@pytest.mark.parametrize(("name", "option"), sorted(options()))
def test_an_option_that_is_none_of_its_choices_is_refused(name: str, option: str, given: dict[str, Any]) -> None:
    home, _, own = name.rpartition(".")
    public = getattr(import_module(home), own)
    needed = [each.name for each in inspect.signature(public).parameters.values() if each.default is each.empty]
    arguments = {each: given[each] for each in needed if each in given} | {option: "nonsense"}
    with pytest.raises(UserError, match="nonsense"):
        public(**arguments)


def test_none_is_a_choice_where_it_is_named() -> None:
    choices = Literal["step", "epoch"]
    check_choice("interval", "epoch", choices)
    check_choice("interval", None, choices | None)
    with pytest.raises(UserError, match=r"^interval: expected one of step, epoch, None, got 1\.$"):
        check_choice("interval", 1, choices | None)
    with pytest.raises(UserError, match=r"^interval: expected one of step, epoch, got None\.$"):
        check_choice("interval", None, choices)
