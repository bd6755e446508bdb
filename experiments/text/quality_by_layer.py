"""The quality-by-layer curves of arXiv 2406.14479: how good the texts are that each layer of a language model writes.

    python experiments/text/quality_by_layer.py RUN_DIR … [--prompts 64] [--output quality.png]

Takes finished runs of the recipes in `stdlib_code/`. Every layer continues the same 32-byte prompts from held-out files
to the model's 128 positions, by nucleus sampling at 0.95; the last layer of the first run judges all. Some minutes on 2
cores.
"""

import argparse
from pathlib import Path

import torch
import yaml

from layersim import LayerwiseModule, StdlibCode
from layersim.report import quality_figure, save_figure
from layersim.text import quality_by_layer

PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("quality.png"))
    options = parser.parse_args()
    modules = {
        yaml.safe_load((run / "config.yaml").read_text())["experiment"].split("/")[-1]: (
            LayerwiseModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu")
        )
        for run in options.run
    }
    data = StdlibCode(block_size=PROMPT, max_eval_samples=options.prompts, keep_partial=False)
    data.setup()
    prompts = torch.stack([torch.as_tensor(sample["input_ids"]).long() for sample in data.splits["val"]])
    judge = next(iter(modules.values()))
    room = judge.backbone.max_positions - PROMPT
    found = {
        name: quality_by_layer(module, prompts, torch.ones_like(prompts), max_new_tokens=room, judge=judge)
        for name, module in modules.items()
    }
    print(f"{len(prompts)} prompts of {PROMPT} bytes, {room} new ones, nucleus 0.95\n")
    print(
        "| run | layer | perplexity of the texts | diversity | repetition of 4-grams |\n| --- | --- | --- | --- | --- |"
    )
    for name, quality in found.items():
        columns = (quality.layers, quality.perplexity, quality.diversity, quality.repetition)
        for layer, perplexity, diversity, repetition in zip(*columns, strict=True):
            print(f"| {name} | {layer} | {perplexity:.1f} | {diversity:.3f} | {repetition:.3f} |")
    save_figure(quality_figure(found), options.output)
    print(f"\nFigure: {options.output}")


if __name__ == "__main__":
    main()
