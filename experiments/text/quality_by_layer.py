"""The quality-by-layer curves of arXiv 2406.14479: how good the texts are that each layer of a language model writes.

    python experiments/text/quality_by_layer.py RUN_DIR … [--prompts 64] [--length 32] [--new 96] [--output quality.png]

Takes finished runs of language models, such as those of `stdlib_code/`. Every layer continues the same prompts from
held-out data by nucleus sampling at 0.95 (arXiv 1904.09751), with the same seed: the model is cut behind the layer
(`layersim.export.truncate`), and transformers' own `generate` writes. Perplexity is that of the new tokens under the
last layer of the first run: does a layer write what a whole model finds likely? A low one is no praise by itself, since
texts that run in circles are likely too: read it beside diversity. Some minutes on 2 cores.

Letters: N texts, P tokens of a prompt, T new tokens.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import nan, prod
from pathlib import Path
from typing import Any

import torch
from finished_runs import open_run
from torch import Tensor
from torch.nn.functional import cross_entropy

from layersim.data.blocks import first_tokens
from layersim.errors import UserError, as_user_error
from layersim.export import truncate
from layersim.module import LayerwiseModule
from layersim.report.drawing.pictures import beside, curves, save_picture
from layersim.report.quantity import RATIO, curve

MEASURES = ("perplexity of the texts", "diversity", "repetition of 4-grams")


def cut(module: LayerwiseModule, layer: int) -> Any:
    """The stock model of transformers that ends with a layer 1 … L."""
    return truncate(module.backbone, module.head, layer)


def continued(model: Any, prompts: Tensor, new: int, *, top_p: float = 0.95, seed: int = 0) -> Tensor:
    """(N, T) new tokens behind prompts (N, P) of one length, drawn from the nucleus; nothing ends a text."""
    torch.manual_seed(seed)
    options = {"do_sample": True, "top_p": top_p, "top_k": 0, "temperature": 1.0}
    options |= {"max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0}
    with as_user_error("transformers cannot continue the prompts", "Change --prompts, --length or --new"):
        texts: Tensor = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    return texts[:, prompts.shape[1] :]


@torch.no_grad()
def perplexity(judge: Any, prompts: Tensor, new: Tensor) -> float:
    """exp of the mean cross-entropy of new tokens (N, T) behind their prompts (N, P)."""
    logits = judge(torch.cat([prompts, new], dim=1)).logits[:, prompts.shape[1] - 1 : -1].double()
    return float(cross_entropy(logits.flatten(0, 1), new.flatten()).exp())


def repetition(texts: Iterable[Sequence[int]], n: int) -> float:
    """rep-n: the share of n-grams that their own text has had before, 0 … 1 (arXiv 1908.04319); NaN of none.

    Of sums over all texts, so that a long text counts for more than a short one.
    """
    grams = [list(zip(*(text[start:] for start in range(n)), strict=False)) for text in texts]
    count = sum(map(len, grams))
    return 1 - sum(len(set(own)) for own in grams) / count if count else nan


def diversity(texts: Sequence[Sequence[int]]) -> float:
    """Π (1 − rep-n) over n = 2, 3, 4: 1 where no text repeats two tokens, 0 … 1 (arXiv 2202.06417)."""
    return prod(1 - repetition(texts, n) for n in (2, 3, 4))


def quality_by_layer(module: LayerwiseModule, judge: Any, prompts: Tensor, new: int) -> list[tuple[float, ...]]:
    """MEASURES of what each layer writes, the first first."""
    found = []
    for layer in range(1, module.num_layers + 1):
        written = continued(cut(module, layer), prompts, new)
        texts = written.tolist()
        found.append((perplexity(judge, prompts, written), diversity(texts), repetition(texts, 4)))
    return found


def draw(found: Mapping[str, Sequence[tuple[float, ...]]], output: Path) -> None:
    """One panel a measure, one curve a run."""
    panels = []
    for place, measure in enumerate(MEASURES):
        kind: dict[str, Any] = {"unit": RATIO} if place == 0 else {"range": (0, 1)}
        shown = {name: curve([row[place] for row in rows], **kind) for name, rows in found.items()}
        panels.append(curves(shown, measure.capitalize(), width=260, height=200))
    save_picture(beside(panels, 3), output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--length", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=96, help="tokens to write")
    parser.add_argument("--output", type=Path, default=Path("quality.png"))
    options = parser.parse_args()
    opened = [open_run(run) for run in options.run]
    _, first, data = opened[0]
    prompts, judge = first_tokens(data.splits["val"], options.prompts, options.length), cut(first, first.num_layers)
    found = {name: quality_by_layer(module, judge, prompts, options.new) for name, module, _ in opened}
    print(f"{len(prompts)} prompts of {options.length} tokens, {options.new} new ones, nucleus 0.95\n")
    print(f"| run | layer | {' | '.join(MEASURES)} |\n| --- | --- | --- | --- | --- |")
    for name, rows in found.items():
        for layer, (likely, diverse, repeated) in enumerate(rows, start=1):
            print(f"| {name} | {layer} | {likely:.1f} | {diverse:.3f} | {repeated:.3f} |")
    draw(found, options.output)
    print(f"\nFigure: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
