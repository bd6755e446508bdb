"""What the aligned loss costs a language model: memory and time of one step, beside the obvious ways.

    python experiments/benchmarks/vocabulary_loss.py [--threads 2] [--rounds 3] [--tokens 4 256] [--autocast]

One forward and backward of a GPT-2 with random weights (12 layers, width 768, vocabulary 50 257, tied embeddings, its
own dropout): `standard` is the cross-entropy at the last layer, `plain` the aligned loss as a loop over the layers with
stored logits, `layersim` the aligned loss by `layered_cross_entropy`. Peak memory is that of a process of its own above
what it held with the model loaded (Linux). Times are interleaved: each round runs every contestant once, and a ratio is
the median over the rounds of the two times of one round. About 10 minutes on 2 cores that do nothing else.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import GPT2Config, GPT2Model

from layersim.objectives import layer_weights
from layersim.objectives.vocabulary_loss import layered_cross_entropy

MEBIBYTE = 2**20


def standard(model: GPT2Model, tokens: Tensor, targets: Tensor) -> Tensor:
    features = model(tokens).last_hidden_state
    return cross_entropy(linear(features, model.wte.weight).flatten(0, 1), targets)


def plain(model: GPT2Model, tokens: Tensor, targets: Tensor) -> Tensor:
    features = normed(model, tokens)
    weights = layer_weights("linear", len(features))
    losses = [cross_entropy(linear(layer, model.wte.weight), targets) for layer in features]
    return sum((weight * loss for weight, loss in zip(weights, losses, strict=True)), torch.zeros(()))


def ours(model: GPT2Model, tokens: Tensor, targets: Tensor) -> Tensor:
    features = torch.stack(normed(model, tokens))
    weights = layer_weights("linear", len(features))
    return layered_cross_entropy(features, model.wte.weight, None, targets, weights)[0]


def normed(model: GPT2Model, tokens: Tensor) -> list[Tensor]:
    """(N, D) features of every layer behind the final norm, which the library has applied to the last already."""
    *below, last = model(tokens, output_hidden_states=True).hidden_states[1:]
    return [layer.flatten(0, 1) for layer in [*map(model.ln_f, below), last]]


CONTESTANTS = {"standard": standard, "plain": plain, "layersim": ours}


def steps(arguments: argparse.Namespace) -> Callable[[str], None]:
    """A function that runs one step of the contestant named, all on the same model."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(use_cache=False)).train()
    batch, length = arguments.tokens
    tokens = torch.randint(model.config.vocab_size, (batch, length))
    targets = torch.randint(model.config.vocab_size, (batch * length,))

    def run(name: str) -> None:
        model.zero_grad()  # gradients are made anew, as in a training step
        with torch.autocast("cpu", enabled=arguments.autocast):
            loss = CONTESTANTS[name](model, tokens, targets)
        loss.backward()

    return run


def peak(name: str, arguments: argparse.Namespace) -> int:
    """Bytes of a step above the loaded model, in this process."""
    run = steps(arguments)
    loaded = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    run(name)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - loaded


def peaks(flags: list[str]) -> dict[str, int]:
    """Each contestant's peak, from a process of its own."""
    command = [sys.executable, __file__, *flags, "--peak"]
    return {name: int(subprocess.check_output([*command, name], text=True)) for name in CONTESTANTS}


def times(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every round, after a standard step that warms up."""
    run = steps(arguments)
    run("standard")
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.rounds):
        for name in CONTESTANTS:
            start = time.perf_counter()
            run(name)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs=2, default=[4, 256], metavar=("BATCH", "LENGTH"))
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16")
    parser.add_argument("--peak", choices=CONTESTANTS, help="only print one contestant's peak memory in bytes")
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak, arguments))
        return
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, ", end="")
    print("×".join(map(str, arguments.tokens)), "tokens, autocast" if arguments.autocast else "tokens, float32")
    memory, seconds = peaks(sys.argv[1:]), times(arguments)
    print("\n| step | peak, MiB | ÷ standard | time, s | ÷ plain | ÷ standard |\n|" + " --- |" * 6)
    for name in CONTESTANTS:
        ratios = [
            statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))
            for other in ("plain", "standard")
        ]
        cells = [f"{memory[name] / MEBIBYTE:.0f}", f"{memory[name] / memory['standard']:.2f}"]
        cells += [f"{statistics.median(seconds[name]):.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
