"""The one parser of all verbs: whatever it refuses is one line that names the option."""

import argparse
import glob
import json
import os
import pydoc
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from inspect import Parameter, signature
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace, _loaders_dumpers, _typehints, set_loader, set_parsing_settings
from yaml import SafeDumper, YAMLError

from layersim.errors import UserError, as_user_error, meant
from layersim.runs.refusals import refusing

_AMBIGUOUS = {"ReduceLROnPlateau": "layersim.optimization.schedules.ReduceLROnPlateau"}
"""Short names that torch's class and Lightning's share, and whose class they mean here."""
_resolve = _typehints.resolve_class_path_by_name
_typehints.resolve_class_path_by_name = lambda cls, name: _AMBIGUOUS.get(name) or _resolve(cls, name)
_sort = _typehints.sort_subtypes_for_union


def _int_first(*given: Any) -> list[Any]:
    """Python remembers `Optional[Union[int, float]]` in the order that anybody first wrote, float first: limits to 1
    batch would be 1.0, all."""
    kinds = list(_sort(*given))  # type: ignore[no-untyped-call]
    if int in kinds and float in kinds and (at := kinds.index(float)) < (other := kinds.index(int)):
        kinds[at], kinds[other] = int, float
    return kinds


_LONG = 16
"""Letters from which on YAML without anchors can say what is not plain: for less, `--help` need not import numpy."""


def _load(text: str) -> Any:
    """YAML as jsonargparse reads it, but for what has no end: anchors within themselves or each other."""
    read = _loaders_dumpers.yaml_load(text)  # type: ignore[no-untyped-call]
    if len(text) >= _LONG or "&" in text:
        from layersim.report.reading import check_plain

        check_plain(read)
    return read


_typehints.sort_subtypes_for_union = _int_first
set_loader("yaml", _load, (YAMLError,))
# Lightning's Timer has an enumeration's member as the default of an option that is text
SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))

_NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:$|Given value|Expected a path but|Not a valid subclass of|"
    r"Subclass types expect|a class path \(str\)|a dict with|Expected a <class 'NoneType'>$|$"
)
_PLAINLY = (
    (r"Type \S*Callable.* expects a function or a callable class: ", ""),
    (r'^Parser key "([^"]+)"', r"--\1"),
    (r'Parser key "([^"]+)"', r"\1"),
    (r"Problem with given class_path '([^']+)'", r"\1"),
    (r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1"),
    (r"Expected a dot import path string: (\S+)", r"there is no class \1"),
    (r"typing\.Literal", "one of "),
    (r"(?<=[\w\]]) Expected an? ", " or "),
    (r"Expected an? ", "expected "),
)
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|"
    r"given class_path '(\S+)':\s+(?:No module named|module '\S+' has no attribute)"
)

Data = Annotated[dict[str, Any] | None, "SplitDataModule"]
"""What a recipe says under `data` (`class_path`, `init_args`); on the command line, a class and its options."""


def call(verb: Callable[..., Any], args: Sequence[str]) -> Any:
    """Calls a verb's function with the options that were typed; its signature says which there are.

    What is not keyword-only stands in its place on the command line; a list takes one word or more; of paths, a list is
    of directories; a bool is a flag, and in flags - is as good as _. The data that are not typed are those that the
    first of the models which are typed was trained on.
    """
    parser = Parser(prog=f"layersim {verb.__name__}", allow_abbrev=False)
    for parameter in signature(verb).parameters.values():
        _add_option(parser, parameter)
    stored = _stored_data(args) if Data in [each.annotation for each in signature(verb).parameters.values()] else []
    words = [re.sub("^--[^=]+", lambda flag: f"--{flag[0][2:].replace('-', '_')}", word) for word in args]
    given = parser.parse_args([*stored, *words]).as_dict()
    for name, value in given.items():
        paths = [path for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]
        with as_user_error(f"{name}: there can be no such path"):
            for path in paths:
                path.resolve().exists()
        given[name] = _directories(paths) if paths and value == paths else value
    return verb(**given)


def _directories(paths: list[Path]) -> list[Path]:
    """What the shell left as patterns is looked for here, but run[1] may be one's very name. Files, such as a sweep
    writes beside its runs, are passed over while a directory remains; what is not there, the verb itself tells."""
    named = ([path] if path.exists() else sorted(map(Path, glob.glob(str(path)))) or [path] for path in paths)
    found = list(chain(*named))
    kept = [path for path in found if not path.is_file()]
    if kept and (files := [path for path in found if path not in kept]):
        print(f"Passed over, being no directory: {len(files)} of {len(found)} paths, such as {files[0]}.")
    return kept or found


def _add_option(parser: ArgumentParser, parameter: Parameter) -> None:
    name, kind = parameter.name, parameter.annotation
    required, in_place = parameter.default is Parameter.empty, parameter.kind is not Parameter.KEYWORD_ONLY
    options: dict[str, Any] = {} if required else {"default": parameter.default}
    if kind == Data:
        from layersim.data import SplitDataModule

        parser.add_subclass_arguments(SplitDataModule, name, required=False)
    elif kind is bool:
        parser.add_argument(f"--{name}", action="store_true")
    else:
        if get_origin(kind) is list:
            (kind,), options["nargs"] = get_args(kind), "*" if in_place and not required else "+"
        if required and not in_place:
            options["required"] = True
        parser.add_argument(name if in_place else f"--{name}", type=kind, **options)


def _stored_data(args: Sequence[str]) -> list[str]:
    typed = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("data", "a", "b", "ckpt_path"):
        typed.add_argument(f"--{name}", nargs="?")  # the parser itself says that a value is missing
    data, *models = vars(typed.parse_known_args(list(args))[0]).values()
    if data is not None:
        return []
    from layersim.runs.models import read_source

    stored = [section for model in models if model is not None and (section := read_source(model).data)]
    return ["--data", json.dumps(stored[0])] if stored else []


class Parser(ArgumentParser):
    """jsonargparse's parser, whose errors are UserErrors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # one of jsonargparse's own, within another
            super().error(message, ex)
        raise UserError(told(message, self._hint(message))) from ex

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        with refusing("The options cannot be read"):
            config = super().parse_args(*args, **kwargs)
            if not kwargs.get("_skip_validation"):
                self._check_nulls(config)
            return config

    def _check_nulls(self, config: Namespace) -> None:
        """jsonargparse takes null, which is its sign of what is not given, for any value, a number too; not here."""
        set_parsing_settings(unset_sentinel=True)
        try:
            self.validate(config)
        except (TypeError, KeyError) as error:
            self.error(str(error), error)
        finally:
            set_parsing_settings(unset_sentinel=False)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Of what was checked when it was parsed."""
        return str(super().dump(*args, **kwargs | {"skip_validation": True}))

    def _hint(self, message: str) -> str:
        """Names near the class that is not found, among those that the option takes, and how to reach one's own; or why
        a path is left over."""
        left = message.lower().startswith("unrecognized") and message.partition(":")[2].rstrip(".").split()
        if left and all(map(os.path.exists, left)):
            return "One path is taken: does a pattern match several?"
        known, missing = re.search(r'Parser key "([^"]+)"', message), _NO_CLASS.search(message)
        if known is None or missing is None:
            return ""
        action = next((action for action in self._actions if action.dest == known[1]), None)
        return class_hint(missing[1] or missing[2], str(getattr(action, "_typehint", "")))


def told(message: str, hint: str = "") -> str:
    """jsonargparse's message of many lines in one: the option, what is expected, and what came."""
    values = re.findall(r"(?:Got|Given) value: (?!Namespace|NestedArg)(.*?)(?=\. Got value|$)", message, re.MULTILINE)
    lines = list(dict.fromkeys(re.sub(r"\.? Got value:.*", "", line).strip(" -") for line in message.splitlines()))
    said = " ".join([line for line in lines if not _NOISE.match(line)] or lines)
    for pattern, words in _PLAINLY:
        said = re.sub(pattern, words, said)
    if values and values[0] not in re.split(r"[\s:']+", said):
        said = f"{said.rstrip('.')}, but got {'null' if values[0] == 'None' else values[0] or 'nothing'}"
    return f"{said.rstrip('.')}. {hint}".strip()


def class_hint(name: str, types: str) -> str:
    """What to do about a class that is not found: near names among the subclasses of the types that an option takes,
    and how one's own class is named."""
    found = [pydoc.locate(path) for path in re.findall(r"[A-Za-z_][\w.]*\.\w+", types)]
    names: dict[str, str] = {}
    waiting: list[Any] = [kind for kind in found if isinstance(kind, type)]
    while waiting:
        kind = waiting.pop()
        names[kind.__name__] = f"{kind.__module__}.{kind.__name__}"
        waiting += kind.__subclasses__()
    hint = f"{meant(name.rpartition('.')[2], names)} ".lstrip()
    other = PathFinder.find_spec("callbacks") if name.startswith("callbacks.") else None
    if other is not None and other.origin != sys.modules["callbacks"].__file__:
        hint += f"`callbacks` is layersim's own package, so that {other.origin} is not looked into: rename that file. "
    return (
        f"{hint}A class of your own is named by its whole path, such as my_file.{name.rpartition('.')[2]} for one in "
        "my_file.py, in a folder that Python looks in: run with PYTHONPATH=FOLDER."
    )


_SWITCHES = ("--plan", "--overwrite")
"""Options of the loops' verbs that need no value."""


def with_values(args: list[str]) -> list[str]:
    """The words, `=true` behind switches without a value."""
    followed = zip(args, [*args[1:], ""], strict=True)
    return [f"{word}=true" if word in _SWITCHES and then not in ("true", "false") else word for word, then in followed]
