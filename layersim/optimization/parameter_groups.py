"""Parameter groups: which parameters get weight decay, and which learning rate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from layersim.errors import UserError, check_finite, check_share

_TABLES = re.compile(
    "pos_?embed|position_(embed|bias)|embed_position|wpe|rel_embed|relative_att|(cls|mask)_token|class_emb"
)
"""Parts of the names of position tables and class tokens, for models that do not tell theirs as timm's do."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroups:
    """In what the optimizer's options differ from parameter to parameter. By default, in nothing."""

    decay_norms_and_biases: bool = True
    """Whether weight decay holds for norms, biases, position tables and class tokens, too; timm and Hugging Face set
    it to 0 there, as False does."""
    layer_decay: float = 1.0
    """γ in 0 … 1: the learning rate falls by γ with each block from the head down, to γ^(L + 1) of it at the embeddings
    (BEiT, arXiv 2106.08254; timm's `layer_decay`). The final norm counts to the last block."""
    head_lr: float | None = None
    """A learning rate of its own for the classifiers, and so for embeddings that are tied to one."""
    adapter_lr: float | None = None
    """A learning rate of its own for the backbone's low-rank adapters (lora)."""

    def __post_init__(self) -> None:
        check_share("layer_decay", self.layer_decay, one=True, remedy="Change --model.parameter_groups.")
        for option in ("head_lr", "adapter_lr"):
            rate = getattr(self, option)
            if rate is not None:
                check_finite(option, rate, remedy="Change --model.parameter_groups.")

    def of(self, module: Any) -> list[dict[str, Any]]:
        """What trains of a LayerwiseModule, in groups, as torch's optimizers take them; one where all are alike.

        The objective's own have no weight decay.

        Raises:
            UserError: a rate for adapters that are not there; a backbone that does not tell its blocks.
        """
        if self == ParameterGroups() and not list(module.objective.parameters()):
            return [{"params": [each for each in module.parameters() if each.requires_grad]}]
        owners, depths, rate = self._depths(module), module.num_layers + 1, module.learning_rate
        own = getattr(getattr(module.backbone, "model", None), "no_weight_decay", None)  # a timm model's patterns
        exempt = [f"backbone.model.{name}" for name in (own() if callable(own) else ())]
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            depth = owners.get(id(parameter), 0)
            place, own = "model", rate
            if name.startswith("objective."):
                place = "objective"
            elif self.adapter_lr is not None and ".lora_" in name:
                place, own = "adapters", self.adapter_lr
            elif self.head_lr is not None and depth == depths:
                place, own = "head", self.head_lr
            elif self.layer_decay < 1:
                place = "head" if depth == depths else f"layer_{depth}" if depth else "embeddings"
                own = rate * self.layer_decay ** (depths - depth)
            decays = place != "objective" and (self.decay_norms_and_biases or _is_matrix(name, parameter, exempt))
            key = place if decays else f"{place}_no_decay"
            options = {"lr": own, "name": key} | ({} if decays else {"weight_decay": 0.0})
            groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
        if self.adapter_lr is not None and not any(name.startswith("adapters") for name in groups):
            raise UserError("There are no adapters for adapter_lr. Leave it out, or set the backbone's lora.")
        return list(groups.values())

    def _depths(self, module: Any) -> dict[int, int]:
        """Of parameters by their `id`: 1 … L in blocks, L for the final norm, L + 1 in the head; none elsewhere."""
        backbone, top = module.backbone, module.num_layers
        try:
            blocks = backbone.blocks
        except UserError:  # of a backbone that has a forward in their place
            if self.layer_decay < 1:
                raise
            blocks = None
        depths = {id(parameter): top + 1 for parameter in module.head.parameters()}
        depths |= {id(parameter): top for parameter in backbone.final_norm.parameters()}
        for number, block in enumerate(blocks or [], start=1):
            depths |= {id(parameter): number for parameter in block.parameters()}
        return depths


def _is_matrix(name: str, parameter: nn.Parameter, exempt: list[str]) -> bool:
    if parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in exempt):
        return False
    return not _TABLES.search(name)


def checked_groups(given: Iterable[Any], module: nn.Module) -> list[dict[str, Any]]:
    """The groups with lists of parameters, where torch takes generators, which are read once, a parameter alone, names
    with them, and parameters without groups. Raises a UserError where a parameter that trains is in no group, or one is
    in two."""
    listed: list[Any] = [given] if isinstance(given, Mapping) else list(given)
    if all(isinstance(group, Tensor | tuple) for group in listed):
        listed = [{"params": listed}]
    if wrong := [group for group in listed if not (isinstance(group, Mapping) and "params" in group)]:
        raise UserError(
            f"Expected groups with `params` from `grouped_parameters` of the module, got a {type(wrong[0]).__name__}."
        )
    groups = []
    for group in listed:
        params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        groups.append({**group, "params": [each[1] if isinstance(each, tuple) else each for each in params]})
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    missing = [name for name, each in module.named_parameters() if each.requires_grad and not counts[id(each)]]
    twice = [name for name, each in module.named_parameters() if counts[id(each)] > 1]
    for names, what in ((missing, "in no parameter group"), (twice, "in a parameter group twice")):
        if names:
            more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
            raise UserError(
                f"{names[0]}{more} {what}. Change `grouped_parameters` of the module; what shall not train needs "
                "requires_grad = False."
            )
    return groups
