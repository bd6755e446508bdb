"""Null is refused, in one line, for every option of every data module whose type has no None in it."""

import inspect
from typing import Any

import jsonargparse
import pytest

from layersim.__main__ import _user_error
from layersim.data import Digits, Docstrings, Images, LanguageModeling, SplitDataModule, StdlibCode, Text
from layersim.errors import UserError

MODULES = [Digits, Docstrings, Images, LanguageModeling, StdlibCode, Text]


def options(module: type) -> dict[str, inspect.Parameter]:
    """Those that the module names, and those of the modules that it is made of."""
    found: dict[str, inspect.Parameter] = {}
    for kind in reversed(module.__mro__[: module.__mro__.index(SplitDataModule) + 1]):
        found |= inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {
        name: parameter
        for name, parameter in found.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


CASES = [
    (module, name, "None" in inspect.formatannotation(parameter.annotation))
    for module in MODULES
    for name, parameter in options(module).items()
]


@pytest.mark.parametrize(("module", "option", "may_be_null"), CASES)
def test_null(module: Any, option: str, may_be_null: bool) -> None:
    given: dict[str, Any] = {"path": "x.csv"} if "path" in options(module) else {}
    given[option] = None
    if may_be_null:
        module(**given)
        return
    with pytest.raises(UserError, match=rf"^{option} is null, but must be .*: change --data\.{option}"):
        module(**given)


def test_all_kinds_of_options_are_tried() -> None:
    refused = {option for _, option, may_be_null in CASES if not may_be_null}
    assert refused >= {
        "batch_size",
        "num_workers",
        "seed",
        "drop_last",
        "val_fraction",
        "test_fraction",
        "block_size",
        "max_length",
        "pad_to_multiple",
        "per_package",
        "boundaries",
        "text_column",
        "path",
    }


def test_the_parser_lets_null_pass_and_finds_all_options() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SplitDataModule, "data")
    config = parser.parse_args(["--data=Text", "--data.path=x.csv", "--data.batch_size=null"])
    assert config.data.init_args.batch_size is None
    with pytest.raises(ValueError, match="batch_size is null, but must be int: ") as caught:
        parser.instantiate_classes(config)
    assert isinstance(_user_error(caught.value), UserError), "the command finds it, however the parser wraps it"


def test_a_modules_own_options_are_checked() -> None:
    class Own(SplitDataModule):
        def __init__(self, *, temperature: float = 1.5, ceiling: float | None = 2.0, **loader: Any) -> None:
            super().__init__(**loader)

        def load(self) -> Any:
            return {}

    assert Own(ceiling=None).batch_size == 64
    message = r"temperature is null, but must be float: change --data\.temperature, or leave it out for 1\.5"
    with pytest.raises(UserError, match=message):
        Own(temperature=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [Digits, Docstrings, StdlibCode])
@pytest.mark.parametrize("option", ["val_fraction", "test_fraction"])
def test_a_share_that_is_no_number(module: Any, option: str) -> None:
    with pytest.raises(UserError, match=r"expected 0 < val_fraction, .* got .*nan"):
        module(**{option: float("nan")})
