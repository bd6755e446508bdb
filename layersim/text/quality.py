"""How good the texts are that each layer writes: perplexity, diversity and repetition.

Letters: N texts, P tokens of the longest prompt, T new tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.module import LayerwiseModule
from layersim.report.numbers import perplexity
from layersim.report.quality import LayerQuality
from layersim.text.generation import check_layers, generate, language_model, left_padded
from layersim.text.ngrams import diversity, repetition


def quality_by_layer(
    module: LayerwiseModule,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 128,
    top_p: float | None = 0.95,
    temperature: float = 1.0,
    seed: int = 0,
    eos_token_id: int | None = None,
    judge: LayerwiseModule | None = None,
    batch_size: int = 64,
) -> LayerQuality:
    """Continues the same prompts from each layer, with the same luck, and measures what was written.

    The defaults are those of arXiv 2406.14479, which continues prompts of 32 tokens. Perplexity is that of the new
    tokens, the end's included, under the *last* layer of the judge, given the prompt and what was written before: does
    a layer write what the whole model finds likely? A low one is no praise by itself, since texts that run in circles
    are likely too: read it beside diversity. By default a model judges itself; to set models against each other, let
    one judge all. Diversity and repetition are of the new tokens without the end's.

    Args:
        module: as in `generate`.
        input_ids: (N, P) prompts, padded on either side.
        attention_mask: (N, P), 1 where a token is no padding.
        layers: 1 … L, which write; all where None.
        max_new_tokens: T.
        top_p: as in `generate`; None: greedy.
        temperature: as in `generate`.
        seed: of the draws, the same at each layer.
        eos_token_id: as in `generate`.
        judge: a module with the same vocabulary; the module itself where None.
        batch_size: prompts continued at a time; it changes time and memory, no number.

    Raises:
        UserError: what `generate` refuses; a judge with another vocabulary.
    """
    judge = module if judge is None else judge
    backbone = language_model(module)
    chosen = sorted(set(range(1, module.num_layers + 1) if layers is None else layers))
    check_layers(backbone, chosen)
    if (tokens := language_model(judge).num_classes) != backbone.num_classes:
        raise UserError(f"Expected a judge with the model's {backbone.num_classes} tokens, but it has {tokens}.")
    if batch_size < 1:
        raise UserError(f"Expected batch_size of at least 1, but got {batch_size}. Change batch_size.")
    ids, mask = left_padded(input_ids, attention_mask)
    losses, diversities, repetitions = [], [], []
    for layer in chosen:
        generator = torch.Generator().manual_seed(seed)
        texts: list[list[int]] = []
        total, count = 0.0, 0
        for prompts in zip(torch.split(ids, batch_size), torch.split(mask, batch_size), strict=True):
            new = generate(
                module,
                *prompts,
                layer=layer,
                max_new_tokens=max_new_tokens,
                top_p=top_p,
                temperature=temperature,
                generator=generator,
                eos_token_id=eos_token_id,
            )
            loss, written = continuation_loss(judge, *prompts, new, eos_token_id=eos_token_id)
            total, count = total + loss * written, count + written
            texts += without_end(new, eos_token_id)
        losses.append(total / count)
        diversities.append(diversity(texts))
        repetitions.append(repetition(texts, 4))
    return LayerQuality(
        layers=chosen,
        samples=len(input_ids),
        perplexity=perplexity(losses),
        diversity=diversities,
        repetition=repetitions,
        options={"max_new_tokens": max_new_tokens, "top_p": top_p, "temperature": temperature, "seed": seed},
    )


@torch.no_grad()
def continuation_loss(
    module: LayerwiseModule,
    input_ids: Tensor,
    attention_mask: Tensor,
    new_tokens: Tensor,
    *,
    eos_token_id: int | None = None,
) -> tuple[float, int]:
    """Mean cross-entropy of new tokens at the last layer, in nats a token, and how many there are.

    Args:
        module: with a language model.
        input_ids: (N, P) prompts, padded on either side.
        attention_mask: (N, P), 1 where a token is no padding.
        new_tokens: (N, T), what `generate` gave for them.
        eos_token_id: the first of these ends a text, and is counted; what stands behind it is not.
    """
    backbone = language_model(module)
    device = backbone.model.device
    new_tokens = new_tokens.to(device)
    prompt, written = attention_mask.to(device) > 0, torch.ones_like(new_tokens, dtype=torch.bool)
    if eos_token_id is not None:
        ends = (new_tokens == eos_token_id).long()
        written = ends.cumsum(dim=1) == ends  # nothing ended before this token
    ids, mask = torch.cat([input_ids.to(device), new_tokens], dim=1), torch.cat([prompt, written], dim=1)
    label = ids.masked_fill(torch.cat([torch.ones_like(prompt), ~written], dim=1), -100)
    order = mask.long().argsort(dim=1, descending=True, stable=True)  # padding goes to the right: it moves no position
    longest = int(mask.sum(dim=1).max())
    whole = {"input_ids": ids * mask, "attention_mask": mask.long(), "label": label}
    batch = {key: part.gather(1, order)[:, :longest] for key, part in whole.items()}
    last = [backbone.num_layers - 1]
    with evaluating(module):
        features = backbone(batch, last)
        loss = module.head(features.values, features.targets, last).losses[0]
    return float(loss), features.values.shape[1]


def without_end(tokens: Tensor, eos_token_id: int | None) -> list[list[int]]:
    """N texts from (N, T) new tokens, each up to its end's token."""
    rows: list[list[int]] = tokens.tolist()
    if eos_token_id is None:
        return rows
    return [row[: row.index(eos_token_id)] if eos_token_id in row else row for row in rows]
