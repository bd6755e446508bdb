"""Hugging Face's Trainer and Lightning's keep one record of the same model and data; what is read costs no memory."""

import copy
import gc
import json
import socket
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from callbacks import (
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerMeasures,
    LayerMeasuresCallback,
    RunRecorder,
    SaturationMonitor,
    SimilarityHeatmaps,
)
from callbacks.layer_measures_callback import _TrainersRun
from layersim.errors import UserError
from layersim.module import LayerwiseModule
from layersim.objectives import LastLayer
from layersim.report.records import read_records
from layersim.similarity import RSA
from tests import tiny
from tests.backbones import tiny_transformers
from tests.callbacks.test_monitors import trainer as lightning_trainer
from tests.reliability.children import Child
from tests.test_house import ROOT, imports

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="transformers' Trainer needs it")

FAMILIES = tiny_transformers.CLASSIFIERS | tiny_transformers.CAUSAL
N = 50


def model_of(family: str) -> Any:
    task = "language-modeling" if family in tiny_transformers.CAUSAL else "classification"
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


@pytest.mark.parametrize(
    ("family", "precision"),
    [*((family, "32-true") for family in ("BERT", "ViT", "GPT-2", "Llama")), ("BERT", "bf16-mixed")],
)
def test_the_same_weights_give_the_same_record_bit_for_bit(family: str, precision: Any, tmp_path: Path) -> None:
    backbone = model_of(family)
    lightning_trainer(tmp_path / "lightning", usual(), precision=precision).validate(
        LayerwiseModule(backbone, objective=LastLayer()), loader(rows(family)), verbose=False
    )
    told = {"test": rows(family), "bf16": precision != "32-true"}
    metrics = trainer(backbone.model, tmp_path / "hf", LayerMeasuresCallback(), **told).evaluate()
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
    own = copy.deepcopy(backbone).train()
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


def evaluate(folder: Path) -> None:
    warnings.simplefilter("ignore")
    for family in ("BERT", "GPT-2"):
        model = model_of(family).model
        trainer(model, folder / family, LayerMeasuresCallback(), test=rows(family), ddp_backend="gloo").evaluate()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """50 samples in batches of 8: accelerate fills the last round up with samples that were there before."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(one.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        Child(tmp_path / rank, evaluate, tmp_path, environment=meeting | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    assert [child.wait() for child in started] == [0, 0], started[0].said
    for family in ("BERT", "GPT-2"):
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


class Probe(transformers.TrainerCallback):  # type: ignore[misc]
    """Counts the bytes of all tensors there are, early in an evaluation and late."""

    def __init__(self) -> None:
        self.steps = 0
        self.bytes: list[int] = []

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps in (4, 24):
            gc.collect()
            held = [each.untyped_storage() for each in gc.get_objects() if type(each) is Tensor and not each.is_sparse]
            self.bytes.append(sum({each.data_ptr(): each.nbytes() for each in held}.values()))


def test_an_evaluations_memory_is_flat_where_hidden_states_grow(tmp_path: Path) -> None:
    data, model = rows("BERT", samples=24 * 8), model_of("BERT").model
    capped: list[Any] = [SimilarityHeatmaps({"rsa": RSA(max_samples=16)}), "accuracy", "saturation"]
    ours, theirs = Probe(), Probe()
    trainer(model, tmp_path / "ours", LayerMeasuresCallback(measures=capped), ours, test=data).evaluate()
    model.config.output_hidden_states = True
    run = trainer(model, tmp_path / "theirs", theirs, test=data)
    run.compute_metrics = lambda found: {}
    run.evaluate()
    per_batch = 4 * 8 * 8 * 24 * 4  # L + 1 tensors of 8 texts, 8 tokens, width 24, float32
    assert ours.bytes[1] - ours.bytes[0] < per_batch
    assert theirs.bytes[1] - theirs.bytes[0] >= 20 * per_batch


def test_predictions_are_a_test_where_there_are_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("callbacks.layer_measures_callback.rank_zero_info", said.append)
    run = trainer(model_of("BERT").model, tmp_path, LayerMeasuresCallback())
    run.predict(rows("BERT", labels=False))
    assert said == ["These predictions have no labels, so that layers are not measured."]
    run.predict(rows("BERT"))
    (record,) = read_records(tmp_path / "layers.jsonl")
    assert (record.stage, record.samples, record.layers) == ("test", N, 3)


def test_several_evaluation_sets_have_a_folder_each(tmp_path: Path) -> None:
    sets = {"near": rows("BERT"), "far": rows("BERT", samples=20)}
    trainer(model_of("BERT").model, tmp_path, LayerMeasuresCallback(measures="cosine"), test=sets).evaluate()
    samples = {name: read_records(tmp_path / name / "layers.jsonl")[0].samples for name in sets}
    assert samples == {"near": N, "far": 20}


def test_an_earlier_run_is_left_alone_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    data = rows("BERT", samples=16)
    for _ in range(2):
        run = trainer(
            *(model_of("BERT").model, tmp_path / "run", LayerMeasuresCallback(measures="cosine")),
            **{"train": data, "test": data, "num_train_epochs": 2, "save_strategy": "epoch"},
        )
        run.train()
    assert len(lines(tmp_path / "run")) == 2
    (again,) = (path.parent for path in tmp_path.glob("run/*/layers.jsonl"))
    assert len(lines(again)) == 2
    before = lines(tmp_path / "run")
    run = trainer(
        *(model_of("BERT").model, tmp_path / "run", LayerMeasuresCallback(measures="cosine")),
        **{"train": data, "test": data, "num_train_epochs": 3, "save_strategy": "no"},
    )
    run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    after = lines(tmp_path / "run")
    assert after[0] == before[0]
    assert [json.loads(line)["step"] for line in after] == [2, 4, 6]


def test_weights_and_biases_gets_numbers_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    told: list[dict[str, Any]] = []
    artifacts: list[str] = []
    run = SimpleNamespace(id="a1", log=told.append, log_artifact=lambda one: artifacts.append(one.name))
    monkeypatch.setattr(wandb, "run", run)
    monkeypatch.setattr(wandb, "Image", lambda path: Path(path).name)
    made = trainer(model_of("BERT").model, tmp_path, LayerMeasuresCallback(), test=rows("BERT"))
    made.args.report_to = ["wandb"]
    made.evaluate()
    numbers = next(each for each in told if "eval/accuracy/layer_01" in each)
    (record,) = read_records(tmp_path / "layers.jsonl")
    assert numbers["eval/accuracy/layer_03"] == record.values("accuracy")[2]
    assert numbers["train/global_step"] == 0
    images = {
        key: value for each in told for key, value in each.items() if key.startswith("eval/") and "png" in str(value)
    }
    assert images["eval/cka"] == "val-cka-epoch-0000.png"
    assert any("layers" in each for each in told)
    assert artifacts == ["report-a1"]
    assert _TrainersRun(run, "test", "far").prefix == "test/far/"


class Plain(nn.Module):
    """Anybody's model, as the Trainer takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny.backbone().model

    def forward(self, image: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(image)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


PARTS: dict[str, Any] = {"layers": "net.blocks.*", "norm": "net.norm", "head": "net.head"}


def digits(**others: Any) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(2)
    return [{"image": torch.randn(1, 8, 8, generator=draw), "labels": number % 10, **others} for number in range(20)]


def test_any_module_is_measured_by_the_names_of_its_parts(tmp_path: Path) -> None:
    model = Plain()
    trainer(model, tmp_path / "hf", LayerMeasuresCallback(**PARTS, measures="accuracy"), test=digits()).evaluate()
    (record,) = read_records(tmp_path / "hf" / "layers.jsonl")
    images, labels = torch.stack([row["image"] for row in digits()]), torch.tensor([row["labels"] for row in digits()])
    model.eval()
    right = (model(images)["logits"].argmax(-1) == labels).double().mean()
    assert record.values("accuracy")[-1] == pytest.approx(right.item())
    assert record.quantities["accuracy"].options["layers"] == ["net.blocks.0", "net.blocks.1", "net.blocks.2"]


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        ({**PARTS, "layers": "net.bloks.*"}, {}, r"no submodule matches \"net.bloks.\*\".*Did you mean net.blocks"),
        ({}, {}, r'Name the layers of a Plain that are measured, such as layers="net.blocks\.\*"'),
        (PARTS, {"torch_compile": True}, "leave torch_compile out"),
    ],
)
def test_what_cannot_be_measured_is_refused_as_the_trainer_is_made(
    callback: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trainer(Plain(), tmp_path, LayerMeasuresCallback(**callback), test=digits(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lable": "x"},
            r"There is no part 'lable'\. Did you mean label\? Choose from layers, pool, layout, norm, head,",
        ),
        ({**PARTS, "heads": "x"}, r"There is no part 'heads'\. Did you mean head\?"),
        ({"norm": "x"}, "norm='x': of a module whose layers are named"),
        ({"layers": "net.blocks.*", "pool": "clas"}, "clas"),
    ],
)
def test_a_part_that_there_is_not_is_refused_as_the_callback_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LayerMeasuresCallback(**options)


def test_labels_that_are_no_classes_or_kept_from_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="With label_smoothing_factor the Trainer keeps the labels from the model"):
        trainer(model_of("BERT").model, tmp_path, LayerMeasuresCallback(), label_smoothing_factor=0.1)
    model = tiny_transformers.build({**FAMILIES["BERT"], "problem_type": "regression"}).model
    with pytest.raises(UserError, match="this model is for regression: measure features alone"):
        trainer(model, tmp_path, LayerMeasuresCallback())
    features = LayerMeasuresCallback(measures="cosine")
    trainer(model_of("BERT").model, tmp_path, features, test=rows("BERT"), label_smoothing_factor=0.1).evaluate()
    assert [*read_records(tmp_path / "layers.jsonl")[0].quantities] == ["cosine"]


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_features_alone_are_measured_whatever_the_labels_are(kind: str, tmp_path: Path) -> None:
    model = tiny_transformers.build({**FAMILIES["BERT"], "problem_type": kind}).model
    data = [row | {"labels": torch.eye(7)[row["labels"]]} for row in rows("BERT", samples=16)]
    trainer(model, tmp_path / "soft", LayerMeasuresCallback(measures="cosine"), test=data).evaluate()
    model.config.problem_type = None
    hard = rows("BERT", samples=16)
    trainer(model, tmp_path / "hard", LayerMeasuresCallback(measures="cosine"), test=hard).evaluate()
    assert lines(tmp_path / "soft") == lines(tmp_path / "hard")
    batch = {key: torch.stack([row[key] for row in data]) for key in data[0]}
    with pytest.raises(UserError, match="for what reads the classifier, but found no classes"):
        LayerMeasures(model, measures="accuracy").update(batch)


def test_evaluations_that_are_missing_or_tell_nothing(tmp_path: Path) -> None:
    unlabelled = [{"image": row["image"]} for row in digits()]
    run = trainer(Plain(), tmp_path, LayerMeasuresCallback(**PARTS), test=unlabelled)
    with pytest.raises(UserError, match="gives the model image and no labels in evaluation"):
        run.evaluate()
    run = trainer(Plain(), tmp_path, LayerMeasuresCallback(**PARTS), train=digits(), eval_strategy="no")
    with pytest.warns(UserWarning, match="there are none while this trains: set eval_strategy"):
        run.train()
    late = trainer(Plain(), tmp_path, test=digits())
    late.add_callback(LayerMeasuresCallback(**PARTS))
    with pytest.raises(UserError, match=r"Give LayerMeasuresCallback to the Trainer as it is made"):
        late.evaluate()


def test_an_evaluations_folder_has_the_name_that_the_trainer_was_given(tmp_path: Path) -> None:
    """Whatever a metric is called."""
    home = tmp_path / "run"
    run = trainer(model_of("BERT").model, home, LayerMeasuresCallback(measures="cosine"), test=rows("BERT", samples=8))
    run.compute_metrics = lambda found: {"model_runtime": 1.0}
    run.evaluate()
    run.evaluate(metric_key_prefix="evaluation")
    run.evaluate(metric_key_prefix="eval_near/by")
    with pytest.raises(UserError, match=r"The record of 'eval_\.\./out' lies in a folder .* change metric_key_prefix"):
        run.evaluate(metric_key_prefix="eval_../out")
    kept = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("layers.jsonl"))
    assert kept == ["run", "run/evaluation", "run/near/by"]


def test_a_call_that_is_not_the_trainers_goes_on_with_what_cannot_be_measured(tmp_path: Path) -> None:
    """The Trainer's own evaluation is refused all the same."""
    model, data = Plain(), digits()[:8]
    run = trainer(model, tmp_path, LayerMeasuresCallback(**PARTS, measures="accuracy"), train=data, test=data)
    run.train()
    model.eval()
    image, soft = torch.randn(2, 1, 8, 8), torch.full((2, 10), 0.1)
    with torch.no_grad():
        assert torch.equal(model(image, labels=soft)["logits"], model(image)["logits"])
    with pytest.raises(UserError, match="Expected the integer classes of 8 samples in each batch"):
        run.evaluate([row | {"labels": [0.1] * 10} for row in data])


def test_the_callbacks_are_there_without_the_trainer() -> None:
    """transformers' Trainer is imported where it is asked for, and nowhere else."""
    asking = [
        path.name
        for folder in ("callbacks", "layersim")
        for path in (ROOT / folder).rglob("*.py")
        if {"transformers.TrainerCallback", "transformers.Trainer"} & imports(path)
    ]
    assert asking == ["layer_measures_callback.py"]
    others = [path for path in (ROOT / "callbacks").glob("[!_]*.py") if path.name != asking[0]]
    assert not any("callbacks.layer_measures_callback" in imports(path) for path in others)
