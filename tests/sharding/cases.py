"""Small trainings that one process does alone, or two do on a sharded model: what they came to, for comparison."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor

from callbacks import LayerAccuracyMonitor, RunRecorder, SaturationMonitor, SimilarityHeatmaps
from layersim.backbones import TransformersBackbone
from layersim.backbones.lora import Lora
from layersim.data.base import SplitDataModule
from layersim.data.splits import Split
from layersim.evaluation import everywhere
from layersim.heads import SeparateHeads, TunedLens
from layersim.module import LayerwiseModule
from layersim.objectives import Aligned, Alternating, Distilled, KLToLast, Objective, UncertaintyWeighted
from layersim.optimization.parameter_groups import ParameterGroups
from layersim.outputs import LayerOutput
from layersim.runs.whole_checkpoints import WholeCheckpoints, WholeShards
from layersim.similarity import CosineSimilarity, LinearCKA
from tests import tiny

TRAIN, VAL = 23, 11
"""Samples; of batches of 8, the last has 7, which is 3 and 4, and of 3 batches of 4 one process reads 2."""
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
LLAMA = {"model_type": "llama", **TEXT, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 41, "n_positions": 8}
GPT2 |= {"pad_token_id": 0} | dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0)
BERT = {"model_type": "bert", **TEXT, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    model: dict[str, Any] | None = None
    """The configuration in transformers; None: timm's small ViT."""
    objective: Any = Aligned
    options: dict[str, Any] = field(default_factory=dict)
    """Of the backbone, the module or the trainer, by their names."""
    tolerance: float = 1e-5


CASES = {
    "ViT": Case(),
    "ViT, separate heads, learned weights": Case(objective=UncertaintyWeighted, options={"head": SeparateHeads}),
    "ViT, distilled": Case(objective=Distilled),
    "ViT, bf16-mixed": Case(options={"precision": "bf16-mixed"}, tolerance=1e-2),
    "ViT, bf16-true": Case(options={"precision": "bf16-true"}, tolerance=5e-2),
    "BERT, alternating": Case(BERT, Alternating),
    "GPT-2, tied": Case(GPT2, options={"gradient_clip_val": 0.05}),
    "GPT-2, alternating, accumulated": Case(GPT2, Alternating, {"accumulate_grad_batches": 2}),
    "Llama, tied": Case(LLAMA | {"tie_word_embeddings": True}, options={"activation_checkpointing": [2]}),
    "Llama, untied, alternating": Case(LLAMA | {"tie_word_embeddings": False}, Alternating),
    "Llama, adapters": Case(LLAMA | {"tie_word_embeddings": False}, options={"lora": Lora(r=2)}),
    "GPT-2, frozen, lens": Case(GPT2 | {"initializer_range": 0.5}, KLToLast, {"head": TunedLens, "freeze": "backbone"}),
}


RESUMED = {
    "GPT-2, groups": Case(GPT2, options={"parameter_groups": ParameterGroups(decay_norms_and_biases=False)}),
    "Llama, adapters, AdamW": CASES["Llama, adapters"],
}
"""What is saved after an epoch, by AdamW, and goes on with half of the learning rate."""


class Made(Split):
    """Images, or texts of six tokens and fewer; of a language model the labels are the tokens."""

    def __init__(self, role: str, case: Case) -> None:
        size = TRAIN if role == "train" else VAL
        draw = torch.Generator().manual_seed(size)
        labels = torch.randint(0, 5, (size,), generator=draw)
        self.tokens = torch.randint(1, 40, (size, 6), generator=draw)
        self.mask = (torch.arange(6) < torch.randint(3, 7, (size, 1), generator=draw)).long()
        self.images = torch.randn(size, 1, 8, 8, generator=draw) + labels.view(-1, 1, 1, 1)
        self.kind = "image" if case.model is None else case.model["model_type"]
        given = labels.numpy() if self.kind in ("image", "bert") else None
        super().__init__(role, np.arange(size), given, seed=0)

    def inputs(self, place: int) -> dict[str, Any]:
        if self.kind == "image":
            return {"image": self.images[place]}
        text = {"input_ids": self.tokens[place], "attention_mask": self.mask[place]}
        labels = self.tokens[place].where(self.mask[place] > 0, -100)
        return text if self.kind == "bert" else text | {"label": labels}


class Data(SplitDataModule):
    def __init__(self, case: Case, processes: int) -> None:
        super().__init__(batch_size=8 // processes, eval_batch_size=4)
        self.case = case

    def load(self) -> dict[str, Split]:
        return {role: Made(role, self.case) for role in ("train", "val")}


def build(case: Case, optimizer: Any) -> LayerwiseModule:
    """The module, the same on every process."""
    options = dict(case.options)
    own = {"lora": options["lora"]} if "lora" in options else {}
    if case.model is None:
        backbone: Any = tiny.backbone()
    else:
        torch.manual_seed(0)
        task: Any = "classification" if case.model["model_type"] == "bert" else "language-modeling"
        classes = 10 if task == "classification" else None
        backbone = TransformersBackbone(
            task=task, pretrained=False, num_classes=classes, config_args=dict(case.model), **own
        )
    objective: Objective = case.objective()
    ours = {
        key: options[key]
        for key in ("head", "freeze", "parameter_groups", "activation_checkpointing")
        if key in options
    }
    return LayerwiseModule(backbone, objective, optimizer=optimizer, **ours)


class Gathers(DefaultAllGather):
    """Counts a group's."""

    def __init__(self, name: str, counts: Counter[str]) -> None:
        self.name, self.counts = name, counts

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.counts[self.name] += 1
        return super().__call__(*args, **options)


class Scatters(DefaultReduceScatter):
    """Counts how often a group's gradients are summed."""

    def __init__(self, name: str, counts: Counter[str]) -> None:
        self.name, self.counts = f"{name} (gradients)", counts

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.counts[self.name] += 1
        return super().__call__(*args, **options)


class Noted(Callback):
    """The first step's gradients, the losses, what evaluation found, and how often each step gathered each group."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.counted: list[dict[str, int]] = []
        self.gradients: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.features = torch.empty(0)
        self.predictions = torch.empty(0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, part in pl_module.named_modules():
            if isinstance(part, FSDPModule):
                part.set_custom_all_gather(Gathers(name, self.counts))
                part.set_custom_reduce_scatter(Scatters(name, self.counts))

    def on_train_batch_start(self, *_: Any) -> None:
        self.counts.clear()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self.gradients:
            named = {name: each.grad for name, each in pl_module.named_parameters() if each.grad is not None}
            self.gradients = {name: whole(gradient) for name, gradient in named.items()}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.counted.append(dict(self.counts))
        self.losses.append(float(trainer.callback_metrics["train/loss_step"]))

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.seen = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, output: Any, *_: Any) -> None:
        assert isinstance(output, LayerOutput)
        assert output.features.position is not None
        self.seen.append((output.features.position, output.features.values, output.readout.predictions))

    def on_validation_epoch_end(self, *_: Any) -> None:
        seen = everywhere(self.seen)
        order = torch.cat([position for position, *_ in seen]).argsort()
        self.features, self.predictions = (torch.cat([each[k] for each in seen], 1)[:, order] for k in (1, 2))


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def train(
    case: Case, directory: Path, processes: int, *, sharded: bool | None = None, folder: bool = False, **options: Any
) -> dict[str, Any]:
    """One epoch of three steps, and a validation: what came of it, whole, on every process.

    Args:
        case: of plain SGD, whose gradients are its steps, unless another `optimizer` is given.
        directory: of the run, with its checkpoint `end.ckpt`.
        processes: of which this is one.
        sharded: whether the model is; of several processes it is.
        folder: whether each process saves its own part.
        **options: `optimizer`; `ckpt_path`, to go on from; and the trainer's.
    """
    sharded = processes > 1 if sharded is None else sharded
    module, noted = build(case, options.pop("optimizer", partial(torch.optim.SGD, lr=0.1))), Noted()
    ckpt_path = options.pop("ckpt_path", None)
    measures = {"cosine": CosineSimilarity(), "cka": LinearCKA(estimator="debiased", max_samples=100)}
    callbacks = [
        noted,
        LayerAccuracyMonitor(),
        SaturationMonitor(),
        SimilarityHeatmaps(measures),
        recorder := RunRecorder(),
        ModelCheckpoint(directory, filename="end"),
    ]
    trainers = ("gradient_clip_val", "accumulate_grad_batches", "precision")
    trainer = Trainer(
        default_root_dir=directory,
        accelerator="cpu",
        devices=processes,
        strategy=WholeShards(save_distributed_checkpoint=folder) if sharded else "auto",
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=2,  # of which one process has one
        **{"max_epochs": 1, **{key: case.options[key] for key in trainers if key in case.options}, **options},
    )
    trainer.fit(module, Data(case, processes), ckpt_path=ckpt_path)
    assert isinstance(module, FSDPModule) == sharded
    return {
        "losses": noted.losses,
        "counted": noted.counted,
        "gradients": noted.gradients,
        "weights": {name: whole(weight) for name, weight in module.state_dict().items()},
        "features": noted.features,
        "predictions": noted.predictions,
        "record": recorder.records[-1].to_line(),
    }


def go_on(case: Case, directory: Path, processes: int, ckpt_path: Path, **options: Any) -> dict[str, Any]:
    """A second epoch, from a checkpoint of the first."""
    return train(case, directory, processes, ckpt_path=ckpt_path, optimizer=adam(0.005), max_epochs=2, **options)


def adam(rate: float = 0.01) -> Any:
    """AdamW that does not make a step of the rounding of a gradient that is nought."""
    return partial(torch.optim.AdamW, lr=rate, eps=1e-3)
