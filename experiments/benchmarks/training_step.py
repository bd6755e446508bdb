"""What the aligned loss costs: one training step with each objective against standard training.

    python experiments/benchmarks/training_step.py [--batch 16] [--rounds 7] [--threads 2]

ViT-S/16 at 224 pixels, 12 layers, 10 classes, AdamW, float32, the modules of `layersim` as `fit` uses them. Ratios are
medians over interleaved rounds. About 3 minutes on 2 cores.
"""

import argparse
from collections.abc import Callable

import torch
from rounds import interleave, machine, ratio, table

from layersim.backbones import TimmBackbone
from layersim.heads import Head, SeparateHeads, SharedHead
from layersim.objectives import Aligned, CosineRegularized, LastLayer, Objective, Reading, Step, UncertaintyWeighted


def training_step(objective: Objective, make_head: Callable[[TimmBackbone], Head], batch: int) -> Callable[[], None]:
    """A step of forward, loss, backward and optimizer on one fixed batch."""
    torch.manual_seed(0)
    backbone = TimmBackbone("vit_small_patch16_224", num_classes=10)
    head = make_head(backbone)
    objective.build(backbone.num_layers)
    parameters = [*backbone.parameters(), *head.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(list(dict.fromkeys(parameters)), lr=1e-4)
    data = {"image": torch.randn(batch, 3, 224, 224), "label": torch.randint(0, 10, (batch,))}
    layers = objective.layers(backbone.num_layers, Step())

    def step() -> None:
        optimizer.zero_grad()
        values = backbone(data, layers).values
        objective(Reading(head, values, data["label"], layers, backbone.num_layers, Step())).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contestants = {
        "LastLayer, shared head (standard)": training_step(LastLayer(), SharedHead, options.batch),
        "Aligned, shared head": training_step(Aligned(), SharedHead, options.batch),
        "Aligned uniform, separate heads": training_step(Aligned("uniform"), SeparateHeads, options.batch),
        "CosineRegularized, shared head": training_step(CosineRegularized(), SharedHead, options.batch),
        "UncertaintyWeighted, shared head": training_step(UncertaintyWeighted(), SharedHead, options.batch),
    }
    seconds = interleave(contestants, options.rounds)
    standard = next(iter(seconds.values()))
    rows = [
        [name, f"{sorted(times)[len(times) // 2]:.2f}", f"{ratio(times, standard):.3f}"]
        for name, times in seconds.items()
    ]
    print(f"{machine()}; {options.threads} threads, batch {options.batch}, {options.rounds} rounds\n")
    print(table(["objective", "s a step", "÷ standard"], rows))


if __name__ == "__main__":
    main()
