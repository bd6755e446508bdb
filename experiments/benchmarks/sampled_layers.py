"""What sampling layers of the aligned loss buys: time for a training step against the quality it reaches.

    python experiments/benchmarks/sampled_layers.py [--steps 300] [--vocabulary 16000] [--threads 2]

A GPT of 6 layers, 128 wide, on the standard library's source files in a byte-pair vocabulary learnt from them, so large
that the classifier costs more than the blocks. Every objective starts from the same weights, takes the same batches in
the same order, and in turn: step s of one, step s of the next, so that a busy machine slows them alike. Quality is each
layer's mean cross-entropy on held-out files. About 20 minutes on 2 cores.
"""

import argparse
import time
from collections.abc import Iterator
from statistics import median

import torch
from rounds import machine, ratio, table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from layersim.backbones import TransformersBackbone
from layersim.data import StdlibCode
from layersim.data.tokenizers import ByteTokenizer
from layersim.heads import SharedHead
from layersim.objectives import Aligned, LastLayer, Objective, Reading, Step

LENGTH = 128


def token_streams(vocabulary: int) -> dict[str, Tensor]:
    """Tokens of the training and of the held-out files, end to end."""
    data = StdlibCode(block_size=2**16)
    data.setup()
    texts = {
        role: [
            bytes(token for token in split[n]["input_ids"] if token < ByteTokenizer.eos_id).decode(errors="replace")
            for n in range(len(split))
        ]
        for role, split in data.splits.items()
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts["train"], trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    )
    return {
        role: torch.tensor([token for encoding in tokenizer.encode_batch(rows) for token in encoding.ids])
        for role, rows in texts.items()
    }


def batches(stream: Tensor, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Blocks from random places, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(stream) - LENGTH, (size, 1), generator=generator)
        ids = stream[starts + torch.arange(LENGTH)]
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": ids}


class Contestant:
    """A model in training with one objective."""

    def __init__(self, objective: Objective, vocabulary: int, steps: int) -> None:
        torch.manual_seed(0)
        shape = {"n_layer": 6, "n_embd": 128, "n_head": 4, "n_positions": LENGTH, "vocab_size": vocabulary}
        self.backbone = TransformersBackbone(
            task="language-modeling",
            pretrained=False,
            config_args={"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0, **shape},
        )
        self.head = SharedHead(self.backbone)
        self.objective = objective
        self.optimizer = torch.optim.AdamW(self.backbone.parameters(), lr=2e-3, weight_decay=0.1)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 2e-3, total_steps=steps, pct_start=0.1)
        self.seconds: list[float] = []

    def step(self, number: int, batch: dict[str, Tensor]) -> None:
        start = time.perf_counter()
        step, num_layers = Step(number), self.backbone.num_layers
        layers = self.objective.layers(num_layers, step)
        features = self.backbone(batch, layers)
        loss = self.objective(Reading(self.head, features.values, features.targets, layers, num_layers, step))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def losses(self, held_out: list[dict[str, Tensor]]) -> Tensor:
        """(L,) mean cross-entropies, in nats."""
        self.backbone.eval()
        features = [self.backbone(batch) for batch in held_out]
        every = range(self.backbone.num_layers)
        return torch.stack([self.head(one.values, one.targets, every).losses for one in features]).mean(dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    streams = token_streams(options.vocabulary)
    objectives = {
        "LastLayer": LastLayer(),
        "Aligned, all 6 layers": Aligned(),
        "Aligned, sampled_layers 1": Aligned(sampled_layers=1),
        "Aligned, sampled_layers 2": Aligned(sampled_layers=2),
        "Aligned, sampled_layers 3": Aligned(sampled_layers=3),
    }
    contestants = {name: Contestant(each, options.vocabulary, options.steps) for name, each in objectives.items()}
    training = batches(streams["train"], 8, seed=0)
    for number in range(options.steps):
        batch = next(training)
        for contestant in contestants.values():
            contestant.step(number, batch)
    source = batches(streams["val"], 8, seed=1)
    held_out = [next(source) for _ in range(24)]
    aligned = contestants["Aligned, all 6 layers"].seconds
    rows = []
    for name, contestant in contestants.items():
        losses = [f"{loss:.3f}" for loss in contestant.losses(held_out).tolist()]
        rows.append([name, f"{median(contestant.seconds):.2f}", f"{ratio(contestant.seconds, aligned):.2f}", *losses])
    print(f"{machine()}; {options.threads} threads, {options.steps} steps, vocabulary {options.vocabulary}\n")
    print(table(["objective", "s a step", "÷ all layers", *(f"layer {n}" for n in range(1, 7))], rows))


if __name__ == "__main__":
    main()
