"""How much sooner texts are written when tokens leave early: seconds, not layers."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from layersim.evaluation import evaluating
from layersim.exits.generation import TokenExit
from layersim.exits.speed import wait


@dataclass(frozen=True)
class TokenSpeed:
    """Medians over rounds in which the ways to write took turns on the same prompts."""

    batch_size: int
    """Texts written side by side."""
    seconds: float
    """For a token, with exits."""
    full_seconds: float
    """For a token, by transformers' own greedy `generate`."""
    wall_gain: float
    """The time of `generate` divided by that with exits, of the same round."""
    mean_exit_layer: float
    """Of the tokens that were timed."""
    layer_gain: float
    """L / mean exit layer."""


def measure_token_speed(
    exits: TokenExit, input_ids: Tensor, new_tokens: int, batch_size: int, *, rounds: int = 3
) -> TokenSpeed:
    """The speed of writing behind prompts.

    Args:
        input_ids: (N, P), on the model's device.
        new_tokens: T, for each.
        batch_size: prompts at a time.
        rounds: at least 1; one more before the first is not counted.
    """
    batches = [input_ids[start : start + batch_size] for start in range(0, len(input_ids), batch_size)]
    tokens = len(input_ids) * new_tokens
    layers: list[float] = []
    model = exits.backbone.model
    greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    def whole(ids: Tensor) -> None:
        with evaluating(exits.backbone), torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **greedy)

    def early(ids: Tensor) -> None:
        layers.append(exits.generate(ids, None, new_tokens).mean_exit_layer())

    taken: dict[str, list[float]] = {"whole": [], "early": []}
    for _ in range(rounds + 1):
        for name, write in (("whole", whole), ("early", early)):
            wait()
            start = time.perf_counter()
            for batch in batches:
                write(batch)
            wait()
            taken[name].append(time.perf_counter() - start)
    full, sooner = taken["whole"][1:], taken["early"][1:]
    mean = sum(layers) / len(layers)
    gains = [a / b for a, b in zip(full, sooner, strict=True)]
    return TokenSpeed(
        batch_size,
        median(sooner) / tokens,
        median(full) / tokens,
        median(gains),
        mean,
        exits.backbone.num_layers / mean,
    )
