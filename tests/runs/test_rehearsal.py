"""What a run will log is known before it begins, and too few samples are told then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from callbacks import (
    EpochSimilarity,
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerF1Monitor,
    ProgressionMonitor,
    ReportWriter,
    RunRecorder,
    SaturationMonitor,
    SimilarityHeatmaps,
)
from layersim import LayerwiseModule
from layersim.errors import UserError
from layersim.heads import SeparateHeads
from layersim.outputs import LayerFeatures
from layersim.report.records import read_records
from layersim.runs.rehearsal import check_monitors, classifier_width, evaluated, logged_names, require_logged
from layersim.similarity import PWCCA, CosineSimilarity, LinearCKA
from tests import tiny
from tests.test_own_backbone import EncoderBackbone

MONITORS = [
    LayerAccuracyMonitor,
    SaturationMonitor,
    ExitCurveMonitor,
    SimilarityHeatmaps,
    ProgressionMonitor,
    EpochSimilarity,
    lambda: SimilarityHeatmaps(confidence=0.9),
    lambda: SimilarityHeatmaps({"tapped": CosineSimilarity()}, layers="backbone.model.blocks.*"),
]


@pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:similarity", "ignore:progression")
@pytest.mark.parametrize("head", ["shared", "separate"])
def test_what_is_foretold_is_what_is_logged(head: str, tmp_path: Path) -> None:
    """Of every monitor there is, over two epochs, as the trainer's own store of logged numbers tells."""
    callbacks: list[Callback] = [make() for make in MONITORS[:-2]]
    callbacks += [MONITORS[-1](), RunRecorder(), ReportWriter(), LearningRateMonitor()]
    module = tiny.module(**({"head": SeparateHeads} if head == "separate" else {}))
    names = logged_names(callbacks, module, 360, stage="val")
    assert names is not None
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=callbacks, max_epochs=2, accelerator="cpu", limit_train_batches=2,
        logger=True, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, tiny.digits())
    logged = set(trainer.callback_metrics) - {"lr-AdamW"}
    assert "val/cka_to_epoch_0" in logged
    certain = {name for name in names if "tapped" not in name and "*" not in name}
    assert certain - {"epoch", "step"} == {name for name in logged if "tapped" not in name} - {"val/cka_to_epoch_0"}
    for name in trainer.callback_metrics:
        require_logged(name, names, "ModelCheckpoint", "monitor")


@pytest.mark.parametrize("make", MONITORS)
def test_a_rehearsal_leaves_no_trace(make: Callable[[], Any]) -> None:
    callback, module = make(), tiny.module()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first = logged_names([callback], module, stage="test", verb="test")
    assert first == logged_names([callback], module, 300, stage="test", verb="test")
    assert first is not None
    assert all(name.startswith("test/") for name in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Own(Callback):
    """A user's, which may log anything."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/mine", 1.0)


def test_a_name_that_nobody_logs_is_refused_where_all_who_log_are_known() -> None:
    module = tiny.module()
    monitors = [LayerAccuracyMonitor(), ModelCheckpoint(monitor="val/accuracy"), EarlyStopping("val/acuracy")]
    with pytest.raises(
        UserError, match=r"EarlyStopping waits for 'val/acuracy', .* Did you mean val/accuracy.* Change `monitor`"
    ):
        check_monitors(monitors, logged_names(monitors, module, stage="val"))
    for wanted in ("val/loss/layer_03", "train/loss", "lr-AdamW"):
        check_monitors([ModelCheckpoint(monitor=wanted)], logged_names(monitors[:1], module, stage="val"))
    for wanted in ("val/loss/layer_04", "test/accuracy", "val_loss"):
        with pytest.raises(UserError, match="does not log"):
            check_monitors([ModelCheckpoint(monitor=wanted)], logged_names(monitors[:1], module, stage="val"))
    check_monitors(monitors, logged_names([*monitors, Own()], module, stage="val"))


def two_classes() -> LayerwiseModule:
    return LayerwiseModule(tiny.backbone(num_classes=2))


def test_a_forward_that_takes_no_small_batch_is_no_matter() -> None:
    class Labelled(EncoderBackbone):
        def forward(self, batch: Any, layers: Any = None) -> Any:
            return LayerFeatures(super().forward(batch, layers).values, batch["label"], None)

    own = Labelled()
    own.model.head = torch.nn.Sequential(own.model.head)
    assert classifier_width(LayerwiseModule(own)) == 8
    assert classifier_width(LayerwiseModule(EncoderBackbone())) == 16


def test_two_classes_have_f1() -> None:
    names = logged_names([LayerF1Monitor()], two_classes(), stage="val")
    assert names is not None
    assert "val/f1" in names


@pytest.mark.parametrize(
    ("callback", "needed"),
    [
        (SimilarityHeatmaps({"cka": LinearCKA()}), 4),
        (SimilarityHeatmaps({"cka": LinearCKA(estimator="debiased")}), 4),
        (SimilarityHeatmaps({"cosine": CosineSimilarity()}), 2),
        (SimilarityHeatmaps({"cka": LinearCKA(batch_size=512)}, confidence=0.9), 516),
        (SimilarityHeatmaps({"pwcca": PWCCA()}), 33),
        (ProgressionMonitor(), 4),
    ],
    ids=["minibatch", "debiased", "cosine", "interval", "width", "progression"],
)
def test_too_few_samples_for_what_was_asked_for_are_refused(callback: Callback, needed: int) -> None:
    module = tiny.module()
    assert logged_names([callback], module, needed, stage="val") == logged_names([callback], module, stage="val")
    few = needed - 1
    with pytest.raises(UserError, match=rf"would measure {few} val samples, but .*limit_val_batches"):
        logged_names([callback], module, few, stage="val")


def test_too_few_samples_for_a_default_leave_it_out_and_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    module, callback = tiny.module(), SimilarityHeatmaps()
    names = logged_names([callback], module, 3, stage="val")
    assert names is not None
    assert {name for name in names if "_to_last" in name} == {f"val/cosine_to_last/layer_0{n}" for n in (1, 2, 3)}
    assert logged_names([callback], module, 3, stage="val") == names
    told = caplog.text
    assert told.count("leaves cka out") == 1
    assert "at least 4 samples, got 3" in told
    with pytest.raises(UserError, match="would measure 3 val samples"):
        logged_names([SimilarityHeatmaps(confidence=0.9)], module, 3, stage="val")


@pytest.mark.parametrize(
    ("limit", "read"), [(None, 100), (1.0, 100), (0.5, 64), (2, 64), (9, 100), (0, 0), (0.0, 0), (0.1, 0)]
)
def test_a_limit_counts_batches(limit: float | None, read: int) -> None:
    assert evaluated(100, 32, limit) == read


FEW = [*tiny.FLAGS, "--data.eval_batch_size=3", "--trainer.limit_val_batches=1", "--trainer.limit_train_batches=2"]


@pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:similarity")
def test_a_tiny_data_set_is_trained_on_and_measured_as_far_as_it_goes(
    layersim: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    directory = layersim("fit", *FEW)
    (line,) = [record.message for record in caplog.records if "leaves cka out" in record.message]
    assert "needs at least 4 samples, got 3" in line
    (record,) = read_records(directory / "layers.jsonl")
    assert list(record.matrices) == ["cosine"]
    assert record.samples == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--trainer.callbacks+=SimilarityHeatmaps", "--trainer.callbacks.measures={debiased: {class_path: "
             "layersim.similarity.LinearCKA, init_args: {estimator: debiased}}}"],
            "SimilarityHeatmaps would measure 3 val samples",
        ),
        (["--trainer.callbacks+=ProgressionMonitor"], "ProgressionMonitor would measure 3 val samples"),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acuracy"],
            "EarlyStopping waits for 'val/acuracy', which this run does not log",
        ),
        (
            ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val_loss"],
            "ModelCheckpoint waits for 'val_loss', which this run does not log",
        ),
    ],
)  # fmt: skip
def test_the_command_refuses_before_a_run_is_made(
    flags: list[str], message: str, layersim: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layersim("fit", *FEW, *flags, status=2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
