"""Hugging Face's Trainer and Lightning's keep one record of the same model and data; what is read costs no memory."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from callbacks import (
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerMeasuresCallback,
    RunRecorder,
    SaturationMonitor,
    SimilarityHeatmaps,
)
from layersim.module import LayerwiseModule
from layersim.objectives import LastLayer
from layersim.report.records import read_records
from tests.backbones import tiny_transformers
from tests.callbacks.test_monitors import trainer as lightning_trainer

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="transformers' Trainer needs it")

FAMILIES = tiny_transformers.CLASSIFIERS | tiny_transformers.CAUSAL
N = 50


def model_of(family: str) -> Any:
    task = "classification" if family in tiny_transformers.CLASSIFIERS else "language-modeling"
    return tiny_transformers.build(FAMILIES[family], task)


def rows(family: str, *, labels: bool = True, samples: int = N) -> list[dict[str, Any]]:
    """Texts of 4 … 8 tokens, padded to 8, or images; of seven classes, or each its own target."""
    draw, made = torch.Generator().manual_seed(1), []
    for number in range(samples):
        row: dict[str, Any] = {"labels": number % 7}
        if family == "ViT":
            row["pixel_values"] = torch.randn(3, 8, 8, generator=draw)
        else:
            length = int(torch.randint(4, 9, (1,), generator=draw))
            mask = torch.arange(8) < length
            row["input_ids"] = torch.randint(5, 50, (8,), generator=draw) * mask
            row["attention_mask"] = mask.long()
            if family in tiny_transformers.CAUSAL:
                row["labels"] = row["input_ids"].where(mask, torch.tensor(-100))
        if not labels:
            del row["labels"]
        made.append(row)
    return made


class InOrder(transformers.Trainer):  # type: ignore[misc]
    """Reads the training data as they lie."""

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trainer(model: Any, folder: Path, *callbacks: Any, train: Any = None, test: Any = None, **options: Any) -> Any:
    told = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "report_to": "none", "use_cpu": True}
    told |= {"disable_tqdm": True, "save_strategy": "no", "optim": "adamw_torch", "lr_scheduler_type": "constant"}
    told |= {"learning_rate": 1e-3, "max_grad_norm": 0, "dataloader_pin_memory": False}
    options = {"eval_strategy": "epoch" if train else "no"} | options
    args = transformers.TrainingArguments(str(folder), **(told | options))
    return InOrder(model, args, train_dataset=train, eval_dataset=test, callbacks=list(callbacks))


def usual() -> list[Any]:
    return [LayerAccuracyMonitor(), SimilarityHeatmaps(), SaturationMonitor(), ExitCurveMonitor(), RunRecorder()]


def in_our_names(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}
    names = {"labels": "label", "pixel_values": "image"}
    return {names.get(key, key): value for key, value in batch.items()}


def loader(data: list[dict[str, Any]]) -> DataLoader[Any]:
    return DataLoader(data, 8, collate_fn=in_our_names)  # type: ignore[arg-type]


def lines(folder: Path) -> list[str]:
    return (folder / "layers.jsonl").read_text().splitlines()


@pytest.mark.parametrize("family", ["BERT", "ViT", "GPT-2", "Llama"])
def test_the_same_weights_give_the_same_record_bit_for_bit(family: str, tmp_path: Path) -> None:
    backbone = model_of(family)
    lightning_trainer(tmp_path / "lightning", usual()).validate(
        LayerwiseModule(backbone, objective=LastLayer()), loader(rows(family)), verbose=False
    )
    metrics = trainer(backbone.model, tmp_path / "hf", LayerMeasuresCallback(), test=rows(family)).evaluate()
    assert lines(tmp_path / "hf") == lines(tmp_path / "lightning")
    assert (tmp_path / "hf" / "report.html").exists()
    assert (tmp_path / "hf" / "figures" / "val-cka-epoch-0000.png").exists()
    if family in ("BERT", "ViT"):
        record = json.loads(lines(tmp_path / "hf")[0])
        assert record["quantities"]["loss"]["values"][-1] == pytest.approx(metrics["eval_loss"], rel=1e-6)


def test_a_training_gives_the_same_record_bit_for_bit(tmp_path: Path) -> None:
    """The same weights, batches and optimizer, by the one loop and by the other."""
    backbone = model_of("BERT")
    for part in backbone.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    own = copy.deepcopy(backbone)
    data = rows("BERT", samples=48)
    trainer(backbone.model, tmp_path / "hf", LayerMeasuresCallback(), train=data, test=data, num_train_epochs=2).train()
    module = LayerwiseModule(
        own, objective=LastLayer(), optimizer=lambda parts: torch.optim.AdamW(parts, lr=1e-3, weight_decay=0.0)
    )
    run = lightning_trainer(tmp_path / "lightning", usual(), max_epochs=2)
    run.fit(module, loader(data), loader(data))
    assert lines(tmp_path / "hf") == lines(tmp_path / "lightning")
    assert [(each.epoch, each.step) for each in read_records(tmp_path / "hf" / "layers.jsonl")] == [(0, 6), (1, 12)]
    assert (tmp_path / "hf" / "report.html").exists()


def process(rank: int, folder: str, port: int) -> None:
    import os

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for family in ("BERT", "GPT-2"):
        torch.manual_seed(0)
        run = trainer(
            model_of(family).model,
            Path(folder) / family,
            LayerMeasuresCallback(),
            test=rows(family),
            ddp_backend="gloo",
        )
        run.evaluate()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """50 samples in batches of 8: accelerate fills the last round up with samples that were there before."""
    program = (
        "import sys; from pathlib import Path; from tests.callbacks.test_layer_measures_callback import process; "
        "process(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"
    )
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    children = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", program, rank, str(tmp_path), port]) for rank in "01"
    ]
    assert [child.wait() for child in children] == [0, 0]
    for family in ("BERT", "GPT-2"):
        torch.manual_seed(0)
        alone = tmp_path / f"{family} alone"
        trainer(model_of(family).model, alone, LayerMeasuresCallback(), test=rows(family)).evaluate()
        (two,), (one_,) = read_records(tmp_path / family / "layers.jsonl"), read_records(alone / "layers.jsonl")
        assert (two.samples, two.unit) == (one_.samples, one_.unit)
        assert two.values("saturation") == one_.values("saturation")
        assert two.values("accuracy") == one_.values("accuracy")
        for name, quantity in one_.quantities.items():
            found = torch.tensor(two.values(name), dtype=torch.float64)
            expected = torch.tensor(quantity.values, dtype=torch.float64)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, equal_nan=True, msg=name)
