"""A tuned lens of layersim beside that of the package tuned-lens, and beside its equations in float64.

    python experiments/benchmarks/lens.py [--train_steps 600] [--steps 250] [--tokens 2048]

A GPT of experiments/text/stdlib_code is trained for a minute (standard training) and frozen. Then lenses are trained on
the same tokens in the same order, for as many steps: the package's own `TunedLens` (extra `bench`; without it that
contestant is left out) and ours, both by the package's optimizer (SGD with Nesterov's momentum, its decay, clipping and
weight decay), the same equations written out in float64, and ours as `layersim lens` trains it. What is told is
KL(last layer ‖ layer) on tokens that nobody was trained on, in nats, and seconds a step.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from rounds import machine, table
from torch import Tensor, nn

from layersim import LayerwiseModule, TransformersBackbone, TunedLens
from layersim.objectives import KLToLast, LastLayer, Reading, Step
from layersim.outputs import LayerFeatures
from layersim.runs.models import make_data, read_features
from layersim.transfer.frozen_heads import BATCH, train_head

RECIPE = Path(__file__).parents[1] / "text/stdlib_code/last_layer.yaml"
Loss = Callable[[Tensor], Tensor]
"""(L, N, D) features → (L − 1,) divergences."""


def divergences(logits: list[Tensor]) -> Tensor:
    """Of L tables of logits, each layer's from the last's, as the package trains on them."""
    *below, last = (each.log_softmax(-1) for each in logits)
    return torch.stack([(last.exp() * (last - each)).sum(-1).mean() for each in below])


def ours(backbone: TransformersBackbone) -> tuple[TunedLens, Loss]:
    lens = TunedLens(backbone)
    layers = list(range(lens.num_layers))

    def loss(values: Tensor) -> Tensor:
        targets = torch.zeros(values.shape[1], dtype=torch.long)
        return Reading(lens, values, targets, layers, lens.num_layers, Step()).divergences()[:-1]

    return lens, loss


def theirs(backbone: TransformersBackbone) -> tuple[nn.Module, Loss]:
    from tuned_lens.nn.lenses import TunedLens as Published  # type: ignore[import-not-found]

    lens = Published.from_model(backbone.model)
    # its first map is of the embeddings, which are no layer here
    return lens, lambda values: divergences(
        [*(lens(rows, idx=at + 1) for at, rows in enumerate(values[:-1])), lens.unembed(values[-1])]
    )


def equations(backbone: TransformersBackbone) -> tuple[nn.Module, Loss]:
    maps = nn.ModuleList(nn.Linear(backbone.width, backbone.width) for _ in range(backbone.num_layers - 1)).double()
    for parameter in maps.parameters():
        nn.init.zeros_(parameter)
    norm, weight = backbone.final_norm, backbone.classifier.weight.double()

    def read(rows: Tensor) -> Tensor:
        centred = rows - rows.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return (normed * norm.weight.double() + norm.bias.double()) @ weight.T

    return maps, lambda values: divergences(
        [*(read(h + made(h)) for h, made in zip(values[:-1].double(), maps, strict=True)), read(values[-1].double())]
    )


def train(lens: nn.Module, loss: Loss, batches: list[Tensor], values: Tensor) -> float:
    """As the package's script does; gives seconds a step."""
    trained = [each for each in lens.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    begun = time.perf_counter()
    for rows in batches:
        optimizer.zero_grad(set_to_none=False)
        loss(values[:, rows]).sum().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    return (time.perf_counter() - begun) / len(batches)


def trained_gpt(steps: int) -> tuple[TransformersBackbone, dict[str, LayerFeatures]]:
    """A small GPT, frozen, and its features of tokens that lenses train on and are measured on."""
    recipe = yaml.safe_load(RECIPE.read_text())
    seed_everything(0)
    backbone = TransformersBackbone(**recipe["model"]["backbone"]["init_args"])
    module = LayerwiseModule(backbone, LastLayer(), optimizer=lambda given: torch.optim.AdamW(given, lr=0.002))
    quiet = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, "accelerator": "cpu"}
    Trainer(max_steps=steps, gradient_clip_val=1.0, **quiet).fit(module, make_data(recipe["data"]))
    data, found = (
        make_data(recipe["data"] | {"init_args": {**recipe["data"]["init_args"], "max_train_samples": 800}}),
        {},
    )
    for split in ("train", "val"):
        found[split] = read_features(backbone.requires_grad_(False).eval(), data, split=split, max_samples=32768)
    return backbone, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_steps", type=int, default=600, help="of the GPT")
    parser.add_argument("--steps", type=int, default=250, help="of the lenses")
    parser.add_argument("--tokens", type=int, default=2048, help="in a step")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone, features = trained_gpt(options.train_steps)
    values, held = features["train"].values, features["val"].values
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(values.shape[1], (options.tokens,), generator=draw) for _ in range(options.steps)]
    rows = {"shared head (no lens)": (ours(backbone)[1], 0.0)}
    for name, make in {"tuned-lens 0.2.0": theirs, "layersim": ours, "the equations, float64": equations}.items():
        try:
            lens, loss = make(backbone)
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        rows[name] = loss, train(lens, loss, batches, values)
    lens, loss = ours(backbone)
    begun, steps = time.perf_counter(), options.steps * options.tokens // BATCH  # of 512 tokens: as many in all
    train_head(lens, KLToLast(), Reading.divergences, features["train"], steps=steps)
    rows["layersim lens (Adam, best on held-out)"] = loss, (time.perf_counter() - begun) / options.steps
    cells = []
    with torch.no_grad():
        for name, (loss, seconds) in rows.items():
            found = [f"{each:.6f}" for each in loss(held).tolist()]
            cells.append([name, *found, f"{1000 * seconds:.0f}" if seconds else ""])
    print(f"{machine()}; {options.steps} steps of {options.tokens} tokens, {held.shape[1]} held out\n")
    print(table(["KL in nats", *(f"layer {at + 1}" for at in range(backbone.num_layers - 1)), "ms a step"], cells))


if __name__ == "__main__":
    main()
