"""A model's submodules by the names its author gave them, and the choice of some by a pattern."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from layersim.errors import UserError, meant

_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing call the module that they wrap."""
_SHOWN = 8  # names in an error: enough to see how they are built


def named_submodules(model: nn.Module) -> dict[str, nn.Module]:
    """`model.named_modules()` without the wrappers of DDP, FSDP, torch.compile and activation checkpointing: names are
    those of the bare model, and modules the bare ones. The model itself is "".

    Raises:
        UserError: a `DataParallel`, whose replicas run copies of the modules.
    """
    shown = {"": ""}  # each path as it is → as its author wrote it
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            raise UserError("DataParallel runs copies of its modules, which no tap can follow: use DDP, or one device.")
        parent, _, own = path.rpartition(".")
        of_ddp = own == "module" and isinstance(model.get_submodule(parent), DistributedDataParallel)
        shown[path] = shown[parent] if of_ddp or own in _WRAPPED else f"{shown[parent]}.{own}".lstrip(".")
        found[shown[path]] = module  # what is wrapped comes after its wrapper
    return found


def chosen_names(names: Sequence[str], patterns: str | Sequence[str]) -> list[str]:
    """Those dotted names that match a shell pattern, component by component, in their own order: `*` stands for (a part
    of) one component, so that `blocks.*` is every block and nothing inside them.

    Raises:
        UserError: a pattern that matches nothing; names that are near it, and some of those that exist, are shown.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, Sequence) or not all(isinstance(each, str) for each in patterns):
        raise UserError(f'layers: expected one or more names or patterns, such as "blocks.*", got {patterns!r}.')
    chosen = set()
    for pattern in patterns:
        matching = {name for name in names if _matches(name, pattern)}
        if not matching:
            raise UserError(_nothing_matches(names, pattern))
        chosen |= matching
    if not chosen:
        raise UserError("layers: expected at least one pattern, got an empty list.")
    return [name for name in names if name in chosen]


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _nothing_matches(names: Sequence[str], pattern: str) -> str:
    """Repeated blocks are shown once, as the pattern that finds them all."""
    kinds = dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names if name)
    shallow = sorted(kinds, key=lambda name: name.count("."))
    there = ", ".join(shallow[:_SHOWN]) + (", …" if len(shallow) > _SHOWN else "")
    near = meant(pattern, dict.fromkeys([*kinds, *names]))
    return f'layers: no submodule matches "{pattern}", where * stands for one component.{near} There are: {there}.'
