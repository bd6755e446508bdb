"""What it gains to let a language model draft from one of its own layers (arXiv 2404.16710, LayerSkip).

transformers does the work: `generate(assistant_early_exit=k)` lets the first k blocks, the final norm and the
classifier write a few tokens, and the whole model verify them in one pass. A token is accepted while it is the whole
model's own most likely one; the one that stands there instead, or behind the last, it gives itself. So the text is that
of plain greedy decoding, and what a layer that speaks through the last classifier gains is time.

Letters: L layers, N prompts, P tokens of the longest prompt, T new tokens.
"""

from collections.abc import Sequence
from itertools import takewhile
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation import BaseStreamer

from layersim.errors import UserError
from layersim.module import LayerwiseModule
from layersim.report.speculation import Drafts, Speculation
from layersim.text.drafting import check_drafting, generating_model, undisturbed
from layersim.text.generation import left_padded

TIE = {torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""How far two logits may be apart, as a share of the largest (of 1, where that is larger), and still be a tie; 1e-5 in
other precisions. One pass over many tokens rounds otherwise than a pass for each."""


def speculation_by_layer(
    model: LayerwiseModule | PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 64,
    repeats: int = 3,
) -> Speculation:
    """Writes the same texts plainly and with drafts from each layer, and tells what is accepted and what it gains.

    Each text is written greedily by `model.generate`, one at a time as transformers demands, first to count and to
    compare, and then `repeats` times for the clock, the plain way and all layers in turn. How long a draft is and what
    ends a text is for the model's generation configuration to say (`num_assistant_tokens`,
    `assistant_confidence_threshold`, `eos_token_id`). Readings at a layer are transformers': the final norm, then the
    one classifier, whichever head a module has.

    The text must be plain greedy decoding's. Where the two part, a forward over the text so far is asked: if both
    tokens are as likely as any (see TIE), rounding decided, and the text counts as parted at a tie; else nothing is
    measured.

    Args:
        model: a module with a causal language model, or such a model of transformers, as an export loads.
        input_ids: (N, P) prompts, padded on either side.
        attention_mask: (N, P), 1 where a token is no padding.
        layers: 1 … L − 1, to draft from; all where None.
        max_new_tokens: T.
        repeats: timed rounds.

    Raises:
        UserError: a model that is no causal language model, or of a family that transformers cannot leave early; a
            layer beyond 1 … L − 1, an option out of its range; a prompt that is empty, has tokens beyond the
            vocabulary or leaves T tokens no room; texts that are not plain greedy decoding's.
    """
    own = generating_model(model)
    rows = _prompts(own, input_ids, attention_mask, max_new_tokens)
    num_layers = own.config.get_text_config().num_hidden_layers
    chosen = sorted(set(range(1, num_layers) if layers is None else layers))
    if not chosen or chosen[0] < 1 or chosen[-1] >= num_layers:
        raise UserError(
            f"Expected layers to draft from, 1 … {num_layers - 1} of a model with {num_layers}, but got "
            f"{', '.join(map(str, chosen)) or 'none'}. Change layers."
        )
    if repeats < 1:
        raise UserError(f"Expected repeats of at least 1, but got {repeats}. Change repeats.")
    check_drafting(own)
    with undisturbed(own):
        plain = [_write(own, row, None, max_new_tokens) for row in rows]
        counts = [_count(own, rows, plain, layer, max_new_tokens) for layer in chosen]
        seconds = _time(own, rows, [None, *chosen], max_new_tokens, repeats)
    drafts = [
        Drafts(
            layer=layer,
            **count,
            seconds=median(own_seconds),
            speeds=tuple(before / after for before, after in zip(seconds[0], own_seconds, strict=True)),
        )
        for layer, count, own_seconds in zip(chosen, counts, seconds[1:], strict=True)
    ]
    return Speculation(
        num_layers=num_layers,
        prompts=len(rows),
        max_new_tokens=max_new_tokens,
        plain_seconds=median(seconds[0]),
        drafts=tuple(drafts),
    )


class _Watch(BaseStreamer):  # type: ignore[misc]  # transformers is untyped
    """Counts drafts from outside: between two deliveries of tokens the model runs once a drafted token, then to verify.

    A streamer is given what each verification lets pass, and the prompt before; a hook before the model's forward sees
    the passes, and in the last of them the draft at the end of its input.
    """

    def __init__(self) -> None:
        self.passes = self.drafted = self.accepted = self.verifications = 0
        self.input_ids = torch.empty(1, 0, dtype=torch.long)

    def before_forward(self, _: nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        self.passes += 1
        self.input_ids = inputs["input_ids"]

    def put(self, tokens: Tensor) -> None:
        if not self.passes:  # the prompt
            return
        drafted, self.passes = self.passes - 1, 0
        draft = self.input_ids[0, self.input_ids.shape[1] - drafted :].tolist()
        self.verifications += 1
        self.drafted += drafted
        self.accepted += _agreeing(draft, tokens[0].tolist())

    def end(self) -> None:
        """Nothing is left to be told."""


def _count(
    model: PreTrainedModel, rows: Sequence[Tensor], plain: Sequence[list[int]], layer: int, max_new_tokens: int
) -> dict[str, int]:
    """The counts of `Drafts` at a layer.

    Raises:
        UserError: a text is not the plain one, and does not part from it at a tie.
    """
    watch = _Watch()
    tokens = ties = 0
    hook = model.register_forward_pre_hook(watch.before_forward, with_kwargs=True)
    try:
        texts = [_write(model, row, layer, max_new_tokens, watch) for row in rows]
    finally:
        hook.remove()
    for place, (row, text, expected) in enumerate(zip(rows, texts, plain, strict=True)):
        tokens += len(text)
        if text != expected:
            _check_tie(model, row, text, expected, f"prompt {place + 1}, drafts from layer {layer}")
            ties += 1
    return {
        "tokens": tokens,
        "drafted": watch.drafted,
        "accepted": watch.accepted,
        "verifications": watch.verifications,
        "ties": ties,
    }


def _time(
    model: PreTrainedModel, rows: Sequence[Tensor], ways: Sequence[int | None], max_new_tokens: int, repeats: int
) -> list[list[float]]:
    """Seconds for all prompts, by way (a layer; None: plainly) and repeat; the ways take turns at each prompt."""
    seconds = [[0.0] * repeats for _ in ways]
    for repeat in range(repeats):
        for row in rows:
            for place, layer in enumerate(ways):
                start = perf_counter()
                _write(model, row, layer, max_new_tokens)
                seconds[place][repeat] += perf_counter() - start
    return seconds


def _write(
    model: PreTrainedModel, row: Tensor, layer: int | None, max_new_tokens: int, watch: _Watch | None = None
) -> list[int]:
    """New tokens behind one prompt (P,), on the host, so that a clock that is read behind has waited for them."""
    text = model.generate(
        row.unsqueeze(0),
        attention_mask=torch.ones_like(row).unsqueeze(0),
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        assistant_early_exit=layer,
        streamer=watch,
    )
    new: list[int] = text[0, len(row) :].tolist()
    return new


@torch.no_grad()
def _check_tie(model: PreTrainedModel, row: Tensor, text: list[int], expected: list[int], where: str) -> None:
    """Raises UserError where two texts that differ do not part at a tie."""
    same = _agreeing(text, expected)
    if same == min(len(text), len(expected)):
        why = f"one has {len(text)} and the other {len(expected)} tokens"
    else:
        before = torch.cat([row, row.new_tensor(expected[:same])]).unsqueeze(0)
        logits = model(input_ids=before, attention_mask=torch.ones_like(before)).logits[0, -1].double()
        gap = float(logits.max() - logits[[text[same], expected[same]]].min())
        allowed = TIE.get(model.dtype, 1e-5) * max(1.0, float(logits.abs().max()))
        if gap <= allowed:
            return
        why = f"logits are {gap:.1e} apart, and rounding explains {allowed:.1e}"
    raise UserError(
        f"transformers' assisted generation does not give plain greedy decoding's text ({where}): they part at new "
        f"token {same + 1} and at no tie, since {why}. Do not use assistant_early_exit with this "
        f"{model.config.model_type} model."
    )


def _agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def _prompts(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int) -> list[Tensor]:
    """N prompts without their padding, on the model's device."""
    ids, mask = left_padded(input_ids.to(model.device), attention_mask.to(model.device))
    if max_new_tokens < 1:
        raise UserError(f"Expected max_new_tokens of at least 1, but got {max_new_tokens}. Change max_new_tokens.")
    rows = [row[real > 0] for row, real in zip(ids, mask, strict=True)]
    if not rows or not min(map(len, rows)):
        raise UserError("Expected one prompt or more, each of one token or more. Start an empty one with a token.")
    config = model.config.get_text_config()
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size:
        raise UserError(
            f"Expected input_ids in the vocabulary 0 … {config.vocab_size - 1}, but got "
            f"{int(ids.min())} … {int(ids.max())}. Use the tokenizer that the model was trained with."
        )
    room, longest = getattr(config, "max_position_embeddings", None), max(map(len, rows))
    if room is not None and longest + max_new_tokens > room:
        raise UserError(
            f"The model has positions for {room} tokens, but the longest prompt has {longest} and max_new_tokens is "
            f"{max_new_tokens}. Shorten the prompts, or lower max_new_tokens."
        )
    return rows
