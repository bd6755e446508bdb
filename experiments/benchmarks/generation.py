"""What tokens that leave early gain in time, beside the peers: tokens a second, at a risk that each promises.

    python experiments/benchmarks/generation.py RUN… [--risk 0.02] [--texts 200] [--new 32] [--rounds 5] [--threads 1]

RUN: a directory of `layersim fit` with a language model, such as

    layersim fit --config recipe:stdlib_code/aligned --experiment generation/aligned --model.backbone.config_args
      '{model_type: llama, num_hidden_layers: 12, hidden_size: 256, intermediate_size: 684, num_attention_heads: 4,
      max_position_embeddings: 128, vocab_size: 258, pad_token_id: 257, bos_token_id: 256, eos_token_id: 256}'

Half of the texts choose thresholds, the other half is written to measure. *plain* is transformers' own greedy
`generate`; *copied* and *exact* are ours, where keys and values of skipped layers come from; *self-speculation* is
`generate(assistant_early_exit=k)` with the fastest k, which gives plain's text (of one text at a time, and of families
that heed it); *economize* is that package's CALM with its own calibration for the same risk and confidence (of families
that it knows, and where it is installed). A token *disagrees* where the full model would have written another behind
the same words; a text *differs* from plain's in so many places. Rounds are interleaved; *gain* is plain's time ÷ its.
"""

import argparse
import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rounds import interleave, machine, ratio, table
from torch import Tensor
from torch.nn.functional import cross_entropy

from layersim.data.blocks import first_tokens
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.exits import Confidence, TokenExit, calibrate_tokens
from layersim.module import LayerwiseModule

sys.path.append(str(Path(__file__).resolve().parents[1] / "text"))
from finished_runs import open_run
from speculation import check_drafting, undisturbed, write

PROMPT, CONFIDENCE = 32, 0.95
HEADER = ["run", "texts at a time", "way", "threshold", "mean exit layer", "disagrees", "differs", "tokens/s", "gain"]
HEADER += ["gain ÷ layers"]


@dataclass
class Way:
    """One way to write."""

    name: str
    threshold: str
    run: Callable[[Tensor], Tensor]
    """(n, P) prompts → (n, T) new tokens."""
    layers: Callable[[], float] | None = None
    """The mean exit layer of what was written last."""
    alone: bool = False
    """Whether it writes one text at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--risk", type=float, default=0.02)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timed", type=int, default=16, help="texts that are timed, one by one and all at a time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}, {options.threads} thread(s); risk {options.risk:g}, confidence {CONFIDENCE:g}\n")
    rows = []
    for directory in options.runs:
        name, module, data = open_run(directory)
        texts = first_tokens(data.splits["val"], options.texts, PROMPT + options.new)
        half = len(texts) // 2
        ways = [plain(module, options.new), *ours(module, texts[:half], options)]
        ways += [*speculation(module, texts[half : half + 4, :PROMPT], options.new)]
        ways += [*economize(module, texts[:half, :PROMPT], options)]
        rows += measured(name, module, ways, texts[half:], options)
        loss = own_loss(module, texts[half:])
        print(f"{name}: the full model's perplexity on what really followed is {math.exp(loss):.3f}", file=sys.stderr)
    print(table(HEADER, rows))


def greedy(module: LayerwiseModule, new: int) -> Callable[[Tensor], Tensor]:
    model: Any = module.backbone.model
    asked = {"do_sample": False, "num_beams": 1, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}

    def run(ids: Tensor) -> Tensor:
        with evaluating(module), torch.inference_mode():
            text: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **asked)
        return text[:, ids.shape[1] :]

    return run


def plain(module: LayerwiseModule, new: int) -> Way:
    return Way("plain", "", greedy(module, new), lambda: float(module.num_layers))


def ours(module: LayerwiseModule, texts: Tensor, options: argparse.Namespace) -> list[Way]:
    ways = []
    for kv in ("copied", "exact"):
        full = TokenExit(module.backbone, module.head, Confidence(), None, kv=kv)  # type: ignore[arg-type]
        prompts, following = texts[:, :PROMPT], texts[:, PROMPT:]
        found = calibrate_tokens(full, prompts, following, target=options.risk, confidence=CONFIDENCE)
        ways.append(_exits(f"exits, {kv}", full.at(found.threshold), options.new))
    return ways


def _exits(name: str, exits: TokenExit, new: int) -> Way:
    means = [0.0]

    def run(ids: Tensor) -> Tensor:
        written = exits.generate(ids, None, new)
        means[0] = written.mean_exit_layer()
        return written.tokens

    return Way(name, f"{exits.threshold:.4g}" if exits.threshold else "none", run, lambda: means[0])


def speculation(module: LayerwiseModule, few: Tensor, new: int) -> list[Way]:
    """With the layer that drafts fastest on a few prompts."""
    model: Any = module.backbone.model
    try:
        check_drafting(model)
    except UserError as error:
        print(error, file=sys.stderr)
        return []

    def drafting(layer: int) -> Callable[[Tensor], Tensor]:
        def run(ids: Tensor) -> Tensor:
            with undisturbed(model), torch.inference_mode():
                return torch.stack([ids.new_tensor(write(model, row, layer, new)) for row in ids])

        return run

    seconds = interleave({str(k): lambda k=k: drafting(k)(few) for k in range(1, module.num_layers, 2)}, 2)
    best = min(seconds, key=lambda layer: median(seconds[layer]))
    return [Way("self-speculation", f"layer {best}", drafting(int(best)), alone=True)]


def economize(module: LayerwiseModule, prompts: Tensor, options: argparse.Namespace) -> list[Way]:
    if find_spec("economize") is None:
        print("economize is not installed (extra `bench`).", file=sys.stderr)
        return []
    import economize
    from economize.techniques.dynamic_depth.calm import CalmConfig, calibrate_threshold

    base = copy.deepcopy(module.backbone.model).eval()
    try:
        model = economize.apply(base, CalmConfig(threshold=1.0))
    except Exception as error:
        print(f"economize: {error}", file=sys.stderr)
        return []
    found = calibrate_threshold(model, list(prompts), options.new, delta=1 - CONFIDENCE, epsilon=options.risk)
    calm = model.techniques["calm"]
    calm.config = CalmConfig(threshold=found)

    def run(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            results = model.decode_batch(list(ids), options.new)
        return torch.stack([torch.as_tensor(result.tokens[-options.new :]) for result in results])

    return [Way("economize", f"{found:.4g}", run)]


def measured(
    name: str, module: LayerwiseModule, ways: list[Way], texts: Tensor, options: argparse.Namespace
) -> list[list[str]]:
    """A row a way and batch size."""
    prompts = texts[:, :PROMPT]
    full = TokenExit(module.backbone, module.head, Confidence(), None)
    reference = ways[0].run(prompts)
    few, rows = prompts[: options.timed], []
    risks = {}
    for way in ways:
        written = way.run(prompts)
        choices = full.full_logits(prompts, written).argmax(dim=-1)
        disagrees, differs = ((written != each).double().mean().item() for each in (choices, reference))
        risks[way.name] = (disagrees, differs, "" if way.layers is None else f"{way.layers():.2f}")
    for size in (1, len(few)):
        taking = [way for way in ways if size == 1 or not way.alone]
        batches = few.split(size)  # type: ignore[no-untyped-call]
        seconds = interleave({way.name: partial(_all, way, batches) for way in taking}, options.rounds)
        for way in taking:
            disagrees, differs, mean = risks[way.name]
            gain = ratio(seconds["plain"], seconds[way.name])
            rate = few.shape[0] * options.new / median(seconds[way.name])
            per_layer = f"{gain * float(mean) / module.num_layers:.2f}" if mean else ""
            cells = [way.threshold, mean, f"{disagrees:.4f}", f"{differs:.3f}", f"{rate:.0f}", f"{gain:.2f}", per_layer]
            rows.append([name, str(size), way.name, *cells])
    return rows


def _all(way: Way, batches: Sequence[Tensor]) -> None:
    for ids in batches:
        way.run(ids)


def own_loss(module: LayerwiseModule, texts: Tensor) -> float:
    full = TokenExit(module.backbone, module.head, Confidence(), None)
    logits = full.full_logits(texts[:, :PROMPT], texts[:, PROMPT:])
    return cross_entropy(logits.flatten(0, 1), texts[:, PROMPT:].flatten()).item()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
