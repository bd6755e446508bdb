"""A tiny input for a transformers model, and what must hold of it before the model is trained or measured."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from layersim.backbones.families import OPTIONS, Task
from layersim.errors import UserError
from layersim.evaluation import evaluating


def tiny_batch(
    model: Any, task: Task, input_size: tuple[int, int, int] | None, *, left: bool = False
) -> dict[str, Tensor]:
    """A ramp of an image; or two texts with the same first token and other ones behind it, the second padded.

    Args:
        left: pad in front, for classifiers that look at the last token even where it is padding (XLNet).
    """
    config = model.config
    if input_size:
        ramp = torch.linspace(-1, 1, steps=torch.Size(input_size).numel(), device=model.device)
        return {"image": ramp.view(1, *input_size).to(model.dtype)}
    padding: int | None = getattr(config, "pad_token_id", None)
    eos = getattr(config, "eos_token_id", None)
    size = getattr(config.get_text_config(), "vocab_size", 16)  # CANINE hashes characters
    tokens = [token for token in range(min(size, 16)) if token not in (padding, eos)][-4:]
    if len(tokens) < 4:
        raise UserError(f"The vocabulary has {size} tokens: too few to try the model on. Change vocab_size.")
    a, b, c, d = tokens
    if config.is_encoder_decoder and isinstance(eos, int):
        d = eos  # where classifiers of encoder-decoders look (BART, T5)
    texts = torch.tensor([[a, b, c, d], [a, c, d, 0 if padding is None else padding]], device=model.device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], device=model.device)
    if padding is None and task == "classification":  # transformers' classifiers then refuse two texts
        texts, mask = texts[:1], mask[:1]
    if left:
        texts[1:], mask[1:] = texts[1:].roll(1), mask[1:].roll(1)
    return {"input_ids": texts, "attention_mask": mask}


def parameters_of(output: Tensor) -> set[Tensor]:
    """The parameters that a tensor was computed from, found in its graph without a backward."""
    found, seen, nodes = set(), set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        nodes += [before for before, _ in node.next_functions]
    return found


def check_causal(name: str, logits: Tensor) -> None:
    """Raises UserError where the logits (2, T, C) of `tiny_batch` differ at the first token, which the texts share."""
    if not _close(logits[0, 0], logits[1, 0]):
        raise UserError(
            f"{name} sees the tokens after the one to predict: it is no causal language model. "
            "Set the backbone's task to classification, or its is_decoder in config_args where it has that."
        )


def check_logits(name: str, found: Tensor, expected: Tensor, remedy: str = OPTIONS) -> None:
    """Raises UserError where the head at the last layer does not give the model's own logits."""
    if found.shape != expected.shape or not _close(found, expected):
        raise UserError(
            f"layersim cannot read {name}: its final norm, pooling and classifier, applied to the last block's output, "
            f"do not give the model's own logits. {remedy}"
        )


def check_last_token(backbone: Any, collated: Callable[[], Any]) -> None:
    """Raises UserError where a classifier that looks at a text's last token looks, of these texts, at another one than
    the last that is no padding: at an end of text which its language follows (mBART), or which is its padding too."""
    layout, parameters = getattr(backbone, "layout", None), [*backbone.parameters()]
    if layout is None or layout.pooling != "last" or backbone.reads_tokens or any(each.is_meta for each in parameters):
        return
    device = parameters[0].device
    batch = {key: each.to(device) for key, each in collated().items() if isinstance(each, Tensor)}
    with torch.no_grad(), evaluating(backbone):
        expected = backbone.model(**backbone.inputs(batch)).logits
        found = backbone.classifier(backbone.final_norm(backbone(batch).values[-1]))
    remedy = "Let the tokenizer end a text with the token that the model looks at, and pad with another one."
    check_logits(f"{backbone.name} on these texts", found, expected, remedy)


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= rounding(expected))


def rounding(logits: Tensor) -> Tensor:
    """By how much equal ones may differ, a share of the largest: some classifiers start with tiny weights."""
    coarse = logits.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(logits.device.type)
    return (5e-2 if coarse else 1e-3) * logits.abs().max()
