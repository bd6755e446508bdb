"""How the source is sorted must not matter: what is measured by default, against the exact value on all data.

Each control takes the same features in the file's order, where groups of neighbours are groups of one class, of one
document, or of one phase: minibatch CKA is then far off, and its interval does not say so.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pyarrow import parquet
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import PredictionWriter, RunRecorder, SimilarityHeatmaps
from layersim.backbones import Backbone, TransformersBackbone
from layersim.data import LanguageModeling, Split, SplitDataModule
from layersim.data.splits import Sample
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures
from layersim.report.records import LayerRecord, read_records
from layersim.similarity import LinearCKA, cosine, linear_cka

L, N, D, C = 3, 1600, 12, 25
CONFIDENCE = 0.999
ORDERS: dict[str, Any] = {
    "by class": np.arange(N) // (N // C),
    "by length": np.arange(N) // (N // C),
    "with a period": np.arange(N) // 64 % 5,
}


def features_of(labels: np.ndarray[Any, Any], seed: int = 0) -> Tensor:
    """(L, N, D): classes that deeper layers tell apart better, in directions of each layer's own, and noise."""
    generator = torch.Generator().manual_seed(seed)
    of_class, noise = torch.randn(C, D, generator=generator), torch.randn(len(labels), D, generator=generator)
    turns = [torch.linalg.qr(torch.randn(D, D, generator=generator)).Q for _ in range(L)]
    return torch.stack(
        [
            (1.5 * layer * of_class[torch.as_tensor(labels)] + noise @ turn) * (layer + 1)
            for layer, turn in enumerate(turns)
        ]
    )


class Rows(Split):
    """Features of every layer, kept in the order of the file."""

    def __init__(self, features: Tensor, labels: np.ndarray[Any, Any], seed: int, by_length: bool) -> None:
        super().__init__("rows", np.arange(len(labels)), labels.astype(np.int64), seed=seed)
        self.features = features
        if by_length:
            self.lengths = self.labels

    def inputs(self, place: int) -> Sample:
        return {"image": self.features[:, place]}


class Stored(SplitDataModule):
    def __init__(self, labels: np.ndarray[Any, Any], by_length: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.stored = labels
        self.by_length = by_length

    def load(self) -> dict[str, Split]:
        features = features_of(self.stored)
        return {role: Rows(features, self.stored, self.seed, self.by_length) for role in ("train", "val")}


class Stated(Backbone):
    """Its layers' features are what the batch says."""

    num_layers, num_classes = L, C
    input_size = (L, D, 1)

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(D, C)

    @property
    def final_norm(self) -> nn.Module:
        return nn.Sequential()

    @property
    def classifier(self) -> nn.Module:
        return self.read

    def forward(self, batch: Mapping[str, Any], layers: Sequence[int] | None = None) -> LayerFeatures:
        return LayerFeatures(batch["image"].transpose(0, 1), batch.get("label"), batch.get("position"))


class Plain(LightningModule):
    """A module that is not ours, on a loader of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(L))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        for layer, features in zip(self.layers, batch.unbind(1), strict=True):
            layer(features)


def trainer(path: Path, *callbacks: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(default_root_dir=path, accelerator="cpu", callbacks=list(callbacks), **quiet)


def assert_true(record: LayerRecord, features: Tensor) -> None:
    exact = {"cosine": cosine(features.double()), "cka": linear_cka(features.double(), estimator="debiased")}
    for name, value in exact.items():
        interval = record.quantities[name].interval
        assert interval is not None
        low, high = (torch.tensor(interval[end]) for end in ("low", "high"))
        assert ((low - 1e-6 <= value) & (value <= high + 1e-6)).all(), name
        assert (torch.tensor(record.values(name)) - value).abs().max() < 0.03, name


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> LanguageModeling:
    """Forty documents, each in an alphabet of its own of three letters."""
    folder = tmp_path_factory.mktemp("documents")
    letters = np.random.default_rng(0).integers(0, 3, (40, 200))
    rows = [{"text": "".join(chr(33 + 2 * n + int(letter)) for letter in row)} for n, row in enumerate(letters)]
    for role in ("train", "validation"):
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = LanguageModeling(folder, tokenizer="bytes", val_split="validation", block_size=50)
    data.setup()
    return data


@pytest.fixture(scope="module")
def language_model() -> LayerwiseModule:
    torch.manual_seed(0)
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 258, "n_positions": 64}
    backbone = TransformersBackbone(pretrained=False, task="language-modeling", config_args=config)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.mul_(10)
    return LayerwiseModule(backbone).eval()


@torch.no_grad()
def features_of_all(module: LayerwiseModule, blocks: Split, collate: Any) -> Tensor:
    """(L, tokens, D) of the blocks in the order of the file."""
    return module(collate([blocks[place] for place in range(len(blocks))])).features.values


@pytest.mark.parametrize("order", ORDERS)
def test_default_measures_are_true_however_the_data_are_sorted(order: str, tmp_path: Path) -> None:
    """By length: batches are of one length then, as they are read, and groups are not."""
    labels = ORDERS[order]
    data = Stored(labels, by_length=order == "by length")
    measured = SimilarityHeatmaps(confidence=CONFIDENCE)
    trainer(tmp_path, measured, RunRecorder()).validate(LayerwiseModule(Stated()), data, verbose=False)
    (record,) = read_records(tmp_path / "layers.jsonl")
    assert record.quantities["cka"].options == {"estimator": "minibatch", "batch_size": 64, "order": "drawn by seed"}
    assert record.quantities["cosine"].options["order"] == "drawn by seed"
    assert_true(record, features_of(labels))


def test_a_module_of_ones_own_on_a_sorted_loader_is_measured_truly_too(tmp_path: Path) -> None:
    labels = ORDERS["by class"]
    rows = features_of(labels).transpose(0, 1).contiguous()
    measured = SimilarityHeatmaps(layers="layers.*", confidence=CONFIDENCE)
    trainer(tmp_path, measured, RunRecorder()).validate(Plain(), DataLoader(rows, 50), verbose=False)  # type: ignore[arg-type]
    (record,) = read_records(tmp_path / "layers.jsonl")
    assert (record.quantities["cka"].options["estimator"], record.quantities["cka"].options["order"]) == (
        "debiased",
        "as read",
    )
    assert_true(record, features_of(labels))


@pytest.mark.parametrize("labels", ORDERS.values(), ids=ORDERS)
def test_in_the_files_order_minibatch_cka_is_wrong_and_does_not_know_it(labels: np.ndarray[Any, Any]) -> None:
    assert_outside(features_of(labels))


def assert_outside(features: Tensor) -> None:
    """Minibatch CKA of neighbours is off by more than its interval."""
    metric = LinearCKA()
    metric.update(features, torch.arange(features.shape[1]))
    found, exact = metric.interval(CONFIDENCE), linear_cka(features, estimator="debiased")
    outside = (exact < found.low) | (found.high < exact)
    assert outside[0, -1]
    assert (found.value - exact).abs().max() > 0.03


def test_default_measures_of_tokens_are_true_though_neighbours_are_of_one_document(
    documents: LanguageModeling, language_model: LayerwiseModule, tmp_path: Path
) -> None:
    measured = SimilarityHeatmaps(confidence=CONFIDENCE)
    trainer(tmp_path, measured, RunRecorder()).validate(language_model, documents, verbose=False)
    (record,) = read_records(tmp_path / "layers.jsonl")
    features = features_of_all(language_model, documents.splits["val"], documents.collate)
    assert record.quantities["cka"].options == {"estimator": "debiased", "max_samples": 4096, "order": "drawn by seed"}
    assert features.shape[1] > 4096
    assert_true(record, features)


def test_groups_of_neighbouring_tokens_are_wrong_and_do_not_know_it(
    documents: LanguageModeling, language_model: LayerwiseModule
) -> None:
    assert_outside(features_of_all(language_model, documents.splits["val"], documents.collate))


def test_any_part_of_evaluation_is_a_random_sample(tmp_path: Path) -> None:
    """`limit_val_batches` of data sorted by class sees all classes."""
    data = Stored(ORDERS["by class"], batch_size=100)
    data.setup()
    first = next(iter(data.val_dataloader()))
    assert len(first["label"].unique()) > C * 0.9
    again = Stored(ORDERS["by class"], batch_size=7)
    again.setup()
    read = torch.cat([batch["index"] for batch in again.val_dataloader()])
    assert torch.equal(read[:100], first["index"]), "one order, whatever the batch size"
    other = Stored(ORDERS["by class"], batch_size=100, seed=1)
    other.setup()
    assert not torch.equal(next(iter(other.val_dataloader()))["index"], first["index"])


def test_predictions_keep_the_files_order(tmp_path: Path) -> None:
    labels = ORDERS["by class"]
    trainer(tmp_path, PredictionWriter()).predict(LayerwiseModule(Stated()), Stored(labels), return_predictions=False)
    table = parquet.read_table(tmp_path / "predictions.parquet")
    assert table["index"].to_pylist() == list(range(N))
    assert table["target"].to_pylist() == labels.tolist()
