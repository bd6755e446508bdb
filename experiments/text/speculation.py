"""What it gains to let a language model draft from one of its own layers (arXiv 2404.16710, LayerSkip).

    python experiments/text/speculation.py RUN_DIR [--prompts 8] [--length 32] [--new 64] [--repeats 3]

transformers does the work: `generate(assistant_early_exit=k)` lets the first k blocks, the final norm and the
classifier write a few tokens, and the whole model verify them in one pass. A token is accepted while it is the whole
model's own most likely one. So the text is that of plain greedy decoding, and what a layer that speaks through the last
classifier gains is time. Drafting lowers `config.num_hidden_layers` while the model runs, which works where its forward
heeds the number (Llama, Qwen2, Mistral, Gemma, Gemma 2 in transformers 5.23); GPT-2, GPT-NeoX and OPT run all blocks
and fail, and are refused here. A run to try it on:

    layersim fit --config experiments/text/stdlib_code/aligned.yaml --experiment stdlib_code/llama \\
      --model.backbone.config_args '{model_type: llama, num_hidden_layers: 6, hidden_size: 128, intermediate_size: 256,
      num_attention_heads: 4, max_position_embeddings: 128, vocab_size: 258, pad_token_id: 257, eos_token_id: 256}'

Letters: N prompts, P tokens of each, T new tokens.
"""

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from finished_runs import open_run
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import BaseStreamer

from layersim.data.blocks import first_tokens
from layersim.errors import UserError, as_user_error
from layersim.evaluation import evaluating

TIE = {torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""How far two logits may be apart, as a share of the largest (of 1, where that is larger), and still be a tie; 1e-5 in
other precisions. One pass over many tokens rounds otherwise than a pass for each."""


@dataclass(frozen=True)
class Drafts:
    """What drafting from a layer gave, over all prompts."""

    tokens: int
    drafted: int
    accepted: int
    verifications: int
    ties: int
    """Texts that part from plain greedy decoding's where its two most likely tokens were a tie."""


class Watch(BaseStreamer):
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
        self.accepted += agreeing(draft, tokens[0].tolist())

    def end(self) -> None:
        """Nothing is left to be told."""


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """In here a model may generate, in evaluation mode; then it is as it was, its number of layers too."""
    config, generation = model.base_model.config, model.generation_config
    layers = config.num_hidden_layers
    model.generation_config = copy.deepcopy(generation)
    model.generation_config.assistant_early_exit = None  # which a call's own None would not override
    try:
        with evaluating(model):
            yield
    finally:
        model.generation_config, config.num_hidden_layers = generation, layers


def check_drafting(model: PreTrainedModel) -> None:
    """Raises UserError unless one block alone runs where the configuration asks for one."""
    ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
    cache = DynamicCache()  # made without a configuration, it grows by a layer with every block that runs
    family = model.config.model_type
    with undisturbed(model), torch.no_grad(), as_user_error(f"A {family} model fails with one layer"):
        model.base_model.config.num_hidden_layers = 1
        model(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    if (ran := len(cache.layers)) != 1:
        raise UserError(
            f"generate(assistant_early_exit=…) does not work with the family {family!r}: its forward in transformers "
            f"runs {ran} blocks where the configuration asks for one. Train a llama, qwen2, mistral or gemma for it."
        )


def draft(model: PreTrainedModel, prompts: Tensor, plain: Sequence[list[int]], layer: int, new: int) -> Drafts:
    """What drafting from a layer gives for (N, P) prompts.

    Raises:
        UserError: a text is not the plain one, and does not part from it at a tie.
    """
    watch = Watch()
    hook = model.register_forward_pre_hook(watch.before_forward, with_kwargs=True)
    try:
        texts = [write(model, row, layer, new, watch) for row in prompts]
    finally:
        hook.remove()
    parted = [(row, text, own) for row, text, own in zip(prompts, texts, plain, strict=True) if text != own]
    for row, text, own in parted:
        check_tie(model, row, text, own)
    return Drafts(sum(map(len, texts)), watch.drafted, watch.accepted, watch.verifications, len(parted))


def write(model: PreTrainedModel, row: Tensor, layer: int | None, new: int, watch: Watch | None = None) -> list[int]:
    """New tokens behind one prompt (P,), on the host, so that a clock that is read behind has waited for them."""
    ids = row.unsqueeze(0)
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": new}
    text = model.generate(
        ids, attention_mask=torch.ones_like(ids), **options, assistant_early_exit=layer, streamer=watch
    )
    return text[0, len(row) :].tolist()


def seconds_by_way(
    model: PreTrainedModel, prompts: Tensor, ways: Sequence[int | None], new: int, repeats: int
) -> list[list[float]]:
    """Seconds for all prompts, by way (a layer; None: plainly) and repeat; the ways take turns at each prompt."""
    seconds = [[0.0] * repeats for _ in ways]
    for repeat in range(repeats):
        for row in prompts:
            for place, layer in enumerate(ways):
                start = perf_counter()
                write(model, row, layer, new)
                seconds[place][repeat] += perf_counter() - start
    return seconds


@torch.no_grad()
def check_tie(model: PreTrainedModel, row: Tensor, text: list[int], expected: list[int]) -> None:
    """Raises UserError where two texts that differ do not part at a tie."""
    same = agreeing(text, expected)
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
    raise UserError(f"A text is not plain greedy decoding's: they part at new token {same + 1}, and {why}.")


def agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to write")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    _, module, data = open_run(options.run)
    model: Any = module.backbone.model
    check_drafting(model)
    prompts, layers = first_tokens(data.splits["val"], options.prompts, options.length), range(1, module.num_layers)
    with undisturbed(model):
        plain = [write(model, row, None, options.new) for row in prompts]
        found = [draft(model, prompts, plain, layer, options.new) for layer in layers]
        seconds, *drafting = seconds_by_way(model, prompts, [None, *layers], options.new, options.repeats)
    print(f"{len(prompts)} prompts, {options.new} new tokens each; plain greedy decoding {median(seconds):.2f} s\n")
    print("| draft from layer | accepted | tokens a verification | seconds | speed ÷ plain (range) | ties |")
    print("| --- | --- | --- | --- | --- | --- |")
    for layer, one, taken in zip(layers, found, drafting, strict=True):
        speeds = [before / after for before, after in zip(seconds, taken, strict=True)]
        print(
            f"| {layer} | {one.accepted / max(1, one.drafted):.1%} | {one.tokens / one.verifications:.2f} | "
            f"{median(taken):.2f} | {median(speeds):.2f} ({min(speeds):.2f} … {max(speeds):.2f}) | {one.ties} |"
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
