"""Text written from any layer of a causal language model.

Letters: N texts, P tokens of the longest prompt, T new tokens, D width, V vocabulary.
"""

from collections.abc import Sequence
from inspect import signature
from math import isfinite
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import DynamicCache, TopPLogitsWarper

from layersim.backbones import TransformersBackbone
from layersim.backbones.passage import watched
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.module import LayerwiseModule


@torch.no_grad()
def generate(
    module: LayerwiseModule,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    layer: int,
    max_new_tokens: int,
    top_p: float | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    eos_token_id: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continues prompts with what the head says at one layer, each token in turn; blocks above the layer do not run.

    At the last layer greedy decoding gives the tokens of transformers' own `generate(do_sample=False)`. What a prompt
    is continued with depends neither on its padding nor on the other prompts; the draws of sampling belong to a
    prompt's row. The module is in evaluation mode meanwhile, whatever it was before.

    Args:
        module: with a `TransformersBackbone` for language modelling, and either head.
        input_ids: (N, P) prompts, padded on either side.
        attention_mask: (N, P), 1 where a token is no padding.
        layer: 1 … L.
        max_new_tokens: T.
        top_p: None: greedy, always the most likely token. Otherwise one is drawn from the nucleus, the smallest set of
            most likely tokens whose probability reaches this number (arXiv 1904.09751); 1.0: from all tokens.
        temperature: what logits are divided by before the nucleus is taken.
        generator: of the draws; torch's global one where None. It yields N × T numbers, row by row, so that layers
            started from the same seed share their luck, and batches in turn have the draws of all rows at once.
        eos_token_id: ends a text; no token does where None.
        use_cache: keep the keys and values of the blocks that run. It changes time, never tokens; a family without
            `past_key_values` goes without.

    Returns:
        (N, T) new tokens, without the prompts; after a text's end the end's token again.

    Raises:
        UserError: a backbone that is no causal language model, a layer beyond 1 … L, an option out of its range, a
            prompt that is empty, has tokens beyond the vocabulary, or leaves T tokens no room in the model's positions.
    """
    backbone = language_model(module)
    check_layers(backbone, [layer])
    _check_options(backbone, max_new_tokens, top_p, temperature, eos_token_id)
    device = backbone.model.device
    ids, mask = left_padded(input_ids.to(device), attention_mask.to(device))
    _check_prompts(backbone, ids, mask, max_new_tokens)
    draws = None if top_p is None else _uniform(len(ids), max_new_tokens, generator).to(device)
    tokens = ids.new_full((len(ids), max_new_tokens), 0 if eos_token_id is None else eos_token_id)
    open_texts = torch.ones(len(ids), dtype=torch.bool, device=device)
    base = backbone.model.base_model
    accepted = signature(base.forward).parameters
    cache = DynamicCache(config=base.config) if use_cache and "past_key_values" in accepted else None
    with evaluating(module):
        for step in range(max_new_tokens):
            fresh = ids.shape[1] if step == 0 or cache is None else 1
            inputs = {
                "input_ids": ids[:, -fresh:],
                "attention_mask": mask,
                "position_ids": _places(mask)[:, -fresh:],
                "past_key_values": cache,
                "use_cache": cache is not None,
            }
            features = _features_at(backbone, layer, {key: inputs[key] for key in inputs if key in accepted})[:, -1]
            logits = module.head.logits(features.unsqueeze(0), [layer - 1])[0].float()
            if draws is None or top_p is None:
                chosen = logits.argmax(dim=-1)
            else:
                chosen = draw(nucleus(logits / temperature, top_p), draws[:, step])
            tokens[:, step] = torch.where(open_texts, chosen, tokens[:, step])
            if eos_token_id is not None:
                open_texts &= chosen != eos_token_id
                if not open_texts.any():
                    break
            ids = torch.cat([ids, chosen.unsqueeze(1)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return tokens


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits (N, V) with −∞ at all but the smallest set of most likely tokens whose probability reaches `top_p`."""
    kept: Tensor = TopPLogitsWarper(top_p)(None, logits)  # the tokens so far, which it takes first, do not matter to it
    return kept


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (N,) drawn from logits (N, V): of each row the one where its cumulated probability reaches 1 − u.

    Args:
        logits: −∞ where a token must not be drawn.
        uniform: (N,) numbers u in 0 ≤ u < 1, so that what is to be reached lies above 0 and within reach.
    """
    reached = logits.double().softmax(dim=-1).cumsum(dim=-1)
    return torch.searchsorted(reached, (1 - uniform.double()).unsqueeze(1) * reached[:, -1:]).squeeze(1)


def language_model(module: LayerwiseModule) -> TransformersBackbone:
    """The module's backbone.

    Raises:
        UserError: it is no causal language model.
    """
    backbone = module.backbone
    if isinstance(backbone, TransformersBackbone) and backbone.task == "language-modeling":
        return backbone
    task = f" for {backbone.task}" if isinstance(backbone, TransformersBackbone) else ""
    raise UserError(
        f"Generation needs a causal language model, but the backbone is a {type(backbone).__name__}{task}. "
        "Use a TransformersBackbone with task: language-modeling."
    )


def check_layers(backbone: TransformersBackbone, layers: Sequence[int]) -> None:
    """Raises UserError where one of the layers, of which there must be some, is none of 1 … L."""
    if not layers or min(layers) < 1 or max(layers) > backbone.num_layers:
        raise UserError(
            f"Expected a layer of {backbone.name}, 1 … {backbone.num_layers}, but got "
            f"{', '.join(map(str, layers)) or 'none'}. Change layer, or layers."
        )


def left_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and mask (N, P) with all padding moved to the left, where new tokens do not meet it; padding becomes 0.

    Raises:
        UserError: the two are not both (N, P).
    """
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise UserError(
            "Expected input_ids and attention_mask of one shape, prompts × tokens, but got "
            f"{tuple(ids.shape)} and {tuple(mask.shape)}."
        )
    real = (mask > 0).long()
    order = real.argsort(dim=1, stable=True)
    real = real.gather(1, order)
    return ids.gather(1, order) * real, real


class _Reached(Exception):
    """No error: the way out of a model's forward."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


def _features_at(backbone: TransformersBackbone, layer: int, inputs: dict[str, Any]) -> Tensor:
    """The block output (N, tokens, D) at a layer 1 … L, where the model's own forward is left."""
    ran = 0

    def leave(features: Tensor, _: bool) -> None:
        nonlocal ran
        ran += 1
        if ran == layer:
            raise _Reached(features)

    try:
        with watched(backbone.blocks, None, leave):
            backbone.model.base_model(**inputs)
    except _Reached as reached:
        return reached.features
    raise AssertionError(f"{backbone.name} ran {ran} blocks, so that layer {layer} was never reached")


def _places(mask: Tensor) -> Tensor:
    """(N, P) position of each token in its text, from 0; padding, which nothing looks at, stands at 0 as well."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _uniform(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.rand(rows, columns, generator=generator, dtype=torch.float64, device=device)


def _check_options(
    backbone: TransformersBackbone,
    max_new_tokens: int,
    top_p: float | None,
    temperature: float,
    eos_token_id: int | None,
) -> None:
    def refuse(option: str, expected: str, came: object, hint: str = "") -> NoReturn:
        raise UserError(f"Expected {option} {expected}, but got {came}. Change {option}{hint}.")

    if max_new_tokens < 1:
        refuse("max_new_tokens", "of at least 1", max_new_tokens)
    if top_p is not None and not 0 < top_p <= 1:
        refuse("top_p", "above 0 and at most 1", top_p, ", or leave it out for greedy decoding")
    if not (isfinite(temperature) and temperature > 0):
        refuse("temperature", "above 0", temperature)
    if top_p is None and temperature != 1:
        raise UserError(
            f"Greedy decoding takes the most likely token at any temperature, but temperature is {temperature}. "
            "Set top_p, 1.0 to draw from all tokens, or leave temperature out."
        )
    if eos_token_id is not None and not 0 <= eos_token_id < backbone.num_classes:
        refuse("eos_token_id", f"in the vocabulary 0 … {backbone.num_classes - 1}", eos_token_id)


def _check_prompts(backbone: TransformersBackbone, ids: Tensor, mask: Tensor, max_new_tokens: int) -> None:
    lengths = mask.sum(dim=1)
    if not len(ids) or int(lengths.min()) == 0:
        raise UserError("Expected one prompt or more, each of one token or more. Start an empty one with a token.")
    if int(ids.min()) < 0 or int(ids.max()) >= backbone.num_classes:
        raise UserError(
            f"Expected input_ids in the vocabulary 0 … {backbone.num_classes - 1} of {backbone.name}, but got "
            f"{int(ids.min())} … {int(ids.max())}. Use the tokenizer that the model was trained with."
        )
    room, longest = backbone.max_positions, int(lengths.max())
    if room is not None and longest + max_new_tokens > room:
        raise UserError(
            f"{backbone.name} has positions for {room} tokens, but the longest prompt has {longest} and max_new_tokens "
            f"is {max_new_tokens}. Shorten the prompts, or lower max_new_tokens."
        )
