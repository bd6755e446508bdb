"""Where a transformers model keeps its blocks, and what stands between them and its logits.

Nothing is looked up by a family's name. A tiny input runs through the model's own forward, once to see which lists of
modules are its blocks, once to see what becomes of the last block's output; `logit_path` explains the second. What a
family does beside that stands in `REFINED`. Letters: N samples, T tokens, D width.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

from torch import Tensor, nn

from layersim.backbones.calls import Call, recorded
from layersim.backbones.logit_path import Step, path_to_logits
from layersim.backbones.tokens import Rule
from layersim.errors import UserError

Task = Literal["classification", "language-modeling"]
Pooling = Literal["first", "last", "mean"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

OPTIONS = "Name the paths with the backbone's blocks, final_norm, classifier and pooling."

REFINED = {"deberta-v2": "encoder.conv"}
"""A module between two blocks that changes what the block before it put out, and so is part of that block."""


class Unexplained(UserError):
    """The way from the blocks to the logits cannot be followed."""


@dataclass(frozen=True)
class Layout:
    """Paths in a model: `blocks` and `final_norm` from its base model, classifiers from itself.

    A classifier is a chain: each step is a path, the name of a `torch.nn` activation that the model calls as a
    function, or such a module itself. A path that leads to None, as OPT's projection does where widths agree, is left
    out.
    """

    blocks: str
    num_layers: int = 0
    """How often its blocks are called: ALBERT calls each of them several times."""
    sequence_first: bool = False
    """Whether its blocks put out (T, N, D)."""
    final_norm: str | None = None
    norm_first: bool = False
    """Whether tokens are pooled behind the norm, by a mean, which does not commute with it."""
    pooling: Rule = "first"
    prefix: int = 0
    """How many of the first tokens a mean leaves out."""
    classifier: tuple[Step, ...] = ()
    """From features to the classes, or to the vocabulary."""
    picks: frozenset[str] = frozenset()
    """The steps that are given all tokens and look at one alone."""


def layout_of(
    model: Any,
    run: Callable[[], Tensor],
    *,
    mask: Tensor | None,
    task: Task,
    blocks: str | None = None,
    final_norm: str | None = None,
    classifier: tuple[str, ...] | None = None,
    pooling: Rule | None = None,
) -> tuple[Layout, Tensor, Tensor]:
    """The layout of a model, with whatever paths the user named in place of those found.

    Args:
        model: a transformers model with a head.
        run: its own forward on a tiny input, N ≠ T, in evaluation mode; gives the logits.
        mask: (N, T) of that input; None for images.

    Returns:
        The layout; the last block's output (N, T, D); and the logits that `run` gave.

    Raises:
        UserError: no blocks, a path that leads nowhere, or a way from the blocks to the logits that cannot be followed.
    """
    if final_norm:
        at(model.base_model, final_norm, "final_norm")
    for step in classifier or ():
        part_of(model, step)
    lists = _lists(model, run, blocks)
    named = {"final_norm": final_norm, "classifier": classifier, "pooling": pooling}
    given: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    tried, found = [], None
    for path, calls in lists.items():
        tried.append(_after(model, run, path, calls, mask))
        found = path_to_logits(*tried[-1][1:], mask, model, task == "language-modeling")
        if found is not None:
            break
    layout, after, logits = tried[0 if found is None else -1]
    if found is None and classifier is None:
        raise Unexplained(
            f"layersim cannot follow {type(model).__name__} from its blocks ({', '.join(lists)}) to its logits: there "
            "is more between them than a norm, a choice of tokens and modules that act on a token alone, or the logits "
            f"do not depend on the tokens. {OPTIONS}"
        )
    picks = frozenset(call.path for call in after if call.gave.ndim < call.given.ndim)
    layout = replace(layout, picks=picks, **(found or {}) | given)
    if layout.final_norm and layout.pooling in ("mean", "class and mean") and found is None:
        layout = replace(layout, norm_first=True)
    return layout, after[0].gave, logits


def at(model: Any, path: str, option: str) -> Any:
    """What stands at a path.

    Raises:
        UserError: nothing does.
    """
    try:
        return attrgetter(path)(model)
    except AttributeError as error:
        children = ", ".join(name for name, _ in model.named_children())
        raise UserError(
            f"{type(model).__name__} has nothing at {path!r}; its parts are {children}. Change the backbone's {option}."
        ) from error


def part_of(model: Any, step: Step) -> nn.Module | None:
    """The module that a step of a classifier names; None where the path leads to None."""
    if isinstance(step, nn.Module):
        return step
    if step[:1].isupper() and hasattr(nn, step) and not hasattr(model, step):
        return getattr(nn, step)()
    return at(model, step, "classifier")


def _lists(model: Any, run: Callable[[], Tensor], named: str | None) -> dict[str, list[Call]]:
    """The model's lists of modules that put out tokens, (…, …, D), and their calls: most likely its blocks first.

    Lists inside an entry of another are left out. Blocks are called as often as the configuration counts layers; of
    several such lists the last to run is that of a decoder behind an encoder.
    """
    base = model.base_model
    if named:
        if not isinstance(found := at(base, named, "blocks"), nn.ModuleList):
            raise UserError(f"Expected a list of blocks at {named!r}, but found {type(found).__name__}. {OPTIONS}")
        names = [named]
    else:
        names = [name for name, module in base.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    entries = {f"{name}.{index}": block for name in names for index, block in enumerate(at(base, name, "blocks"))}
    with recorded(entries, keep=lambda tensor: tensor.to("meta")) as calls:
        run()
    outer = [call for call in calls if not any(other.start < call.start < call.end < other.end for other in calls)]
    lists: dict[str, list[Call]] = {}
    for call in outer:  # a list of lists counts as one
        lists.setdefault(re.sub(r"(\.\d+)+$", "", call.path), []).append(call)
    config = model.config
    nested = [config, *(part for part in vars(config).values() if hasattr(part, "to_dict"))]
    wanted = {getattr(part, "num_hidden_layers", None) for part in nested}
    tokens = {path: own for path, own in lists.items() if all(call.gave.ndim == 3 for call in own)}
    if not tokens:
        shapes = {tuple(call.gave.shape) for own in lists.values() for call in own}
        raise UserError(
            f"{type(model).__name__} has no list of blocks that put out tokens (samples, tokens, width)"
            f"{f': its lists put out {sorted(shapes)[:3]}' if shapes else ''}. layersim reads transformers of at least "
            "one layer alone."
        )
    return dict(sorted(tokens.items(), key=lambda item: (len(item[1]) in wanted, item[1][-1].end), reverse=True))


def _after(
    model: Any, run: Callable[[], Tensor], path: str, calls: list[Call], mask: Tensor | None
) -> tuple[Layout, list[Call], Tensor]:
    """The last block's call and those behind it, outside of the blocks, each tensor (N, …)."""
    name = type(model).__name__
    widths = sorted({call.gave.shape[-1] for call in calls})
    if len(widths) > 1:
        raise UserError(
            f"The layers of {name} have the widths {', '.join(map(str, widths))}: one head cannot read them all, and "
            "layersim adds no projection between a layer and the head. Choose a model of one width."
        )
    shapes = {tuple(call.gave.shape[:2]) for call in calls}
    samples, length = next(iter(shapes)) if mask is None else mask.shape
    sequence_first = mask is not None and shapes == {(length, samples)}
    if len(shapes) > 1 or (not sequence_first and next(iter(shapes))[0] != samples):
        raise UserError(
            f"The blocks of {name} at {path!r} put out {' and '.join(map(str, sorted(shapes)[:3]))} where {samples} "
            f"samples of {length} tokens went in: layersim cannot tell which token is which. {OPTIONS}"
        )
    base = model.base_model
    blocks = at(base, path, "blocks")
    if any(isinstance(block, nn.ModuleList) for block in blocks):
        raise UserError(f"{name} keeps its blocks in several lists at {path!r}, and layersim reads one. {OPTIONS}")
    inside = {module for module in blocks.modules() if module is not blocks}
    watched = {name: module for name, module in model.named_modules() if name and module not in inside}
    watched |= {f"{path}.{index}": block for index, block in enumerate(blocks)}

    def keep(tensor: Tensor) -> Tensor:
        first = tensor.transpose(0, 1) if sequence_first and tensor.shape[:2] == (length, samples) else tensor
        return first.detach().clone()

    with recorded(watched, keep) as seen:
        logits = run()
    last = max(place for place, call in enumerate(seen) if call.module in set(blocks))
    after = [seen[last], *(call for call in seen if call.start > seen[last].end)]
    return Layout(path, len(calls), sequence_first), after, logits
