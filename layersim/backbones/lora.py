"""Low-rank adapters in a transformers model (LoRA, Hu et al. 2021, arXiv 2106.09685), put there by peft.

In each chosen linear map, W x becomes W x + (α / r) B A x with A (r × inputs) and B (outputs × r), and W stays.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from layersim.errors import UserError
from layersim.precision import widened


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Which maps get adapters, and of what size."""

    r: int = 8
    """The rank, at least 1."""
    alpha: float = 16.0
    """α > 0: adapters are scaled by α / r."""
    target_modules: list[str] | None = None
    """Names of the maps, such as q_proj; all linear maps of the blocks where None."""
    dropout: float = 0.0
    """Of what goes into the adapters, 0 … 1."""
    norms: bool = False
    """Whether the blocks' norms train as well; not beside weights of half precision."""

    def __post_init__(self) -> None:
        if self.target_modules is not None and (isinstance(self.target_modules, str) or not self.target_modules):
            told = f"Expected a list of names of maps, or null for all, but got {self.target_modules!r}"
            raise UserError(f"{told}. Change the backbone's lora.")
        if self.r < 1 or not (self.alpha > 0 and isfinite(self.alpha)) or not 0 <= self.dropout < 1:
            raise UserError(
                f"Expected r ≥ 1, alpha > 0 and 0 ≤ dropout < 1, but got r {self.r}, alpha {self.alpha}, dropout "
                f"{self.dropout}. Change the backbone's lora."
            )


def adapt(model: nn.Module, blocks: nn.Module, head: Sequence[nn.Module], lora: Lora) -> None:
    """Puts adapters into the model's blocks, in place; these, the head's parts and, if asked, the blocks' norms train,
    and nothing else.

    Adapters start at zero (B = 0), so that the model says what it said. Beside weights of half precision, which would
    swallow small steps, what trains is of float32: the adapters, and the head, which then reads its input in float32. A
    head that is tied to the embeddings stays as it is there, and does not train; a warning says so.

    Raises:
        UserError: peft is not installed; no map in the blocks has such a name; norms of half precision shall train.
    """
    try:
        peft: Any = import_module("peft")
    except ImportError as error:
        raise UserError(
            "The backbone's lora needs peft, which is not installed. Run `pip install 'layersim[lora]'`."
        ) from error
    norms = [module for module in blocks.modules() if "Norm" in type(module).__name__]
    if lora.norms and any(map(_is_half, norms)):
        raise UserError(
            "The blocks' norms are of half precision, in which weights near one hardly move. Set the backbone's lora: "
            "{norms: false}, or its dtype to float32."
        )
    transposed = any(type(module).__name__ == "Conv1D" for module in blocks.modules())  # GPT-2's maps
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(blocks, lora.target_modules),
        fan_in_fan_out=transposed,
    )
    peft.inject_adapter_in_model(config, blocks)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = widened(parameter.data)
    for norm in norms if lora.norms else []:
        norm.requires_grad_(True)
    if any(map(_is_half, head)) and _is_tied(head, model):
        warnings.warn(
            "The classifier is tied to embeddings of half precision, which would swallow its steps: the head stays as "
            "it is, and the adapters train alone. Set the backbone's dtype to float32 to train the head.",
            stacklevel=4,
        )
        return
    for part in head:
        part.requires_grad_(True)
        if _is_half(part):
            _widen(part)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights with its adapters added to them, W + (α / r) B A, by the names that they had without.

    Sums of half-precision weights are taken in float32 and rounded once. A model without adapters gives its state.
    """
    weights = {
        name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if ".lora_" not in name
    }
    for place, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            base = module.base_layer.weight
            (adapter,) = module.active_adapters
            weights[f"{place}.weight"] = (widened(base) + widened(module.get_delta_weight(adapter))).to(base.dtype)
    return weights


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear map, of torch's or of transformers', whose weights are (F, D)."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_half(module: nn.Module) -> bool:
    return any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in module.parameters())


def _is_tied(head: Sequence[nn.Module], model: nn.Module) -> bool:
    """Whether other modules of the model use the head's parameters, too."""
    inside = {module for part in head for module in part.modules()}
    shared = {parameter for part in head for parameter in part.parameters()}
    others = (module for module in model.modules() if module not in inside)
    return any(parameter in shared for module in others for parameter in module.parameters(recurse=False))


def _widen(part: nn.Module) -> None:
    """Makes its weights float32, and what comes in of their type, whoever calls it."""
    for module in part.modules():
        for parameter in (own := list(module.parameters(recurse=False))):
            parameter.data = widened(parameter.data)
        if own:
            module.register_forward_pre_hook(_with_fitting_input)


def _with_fitting_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A trainer of precision bf16-true narrows the weights again, so that they are asked each time."""
    return args[0].to(next(module.parameters(recurse=False)).dtype), *args[1:]


def _targets(blocks: nn.Module, wanted: list[str] | None) -> list[str]:
    maps = {name.rpartition(".")[2] for name, module in blocks.named_modules() if is_linear(module)}
    if unknown := sorted(set(wanted or []) - maps):
        raise UserError(
            f"The blocks have no linear map {', '.join(unknown)}; they have {', '.join(sorted(maps))}. Change the "
            "backbone's lora: {target_modules: […]}."
        )
    return wanted or sorted(maps)
