"""Callbacks on a real trainer: what each logger gets, and agreement with the functions on all samples at once."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from callbacks import LayerAccuracyMonitor, ProgressionMonitor, RunRecorder, SaturationMonitor, SimilarityHeatmaps
from layersim.errors import UserError
from layersim.metrics import measured_depth, saturation_layer
from layersim.report.records import read_records
from layersim.similarity import AngularDistance, CosineSimilarity, LinearCKA, cosine, linear_cka
from tests import tiny
from tests.measured import measured


def trainer(path: Path, callbacks: list[Any], **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"logger": False, "accelerator": "cpu", **quiet, **options}
    return Trainer(default_root_dir=path, callbacks=callbacks, **options)


def record(path: Path) -> dict[str, Any]:
    return measured(path)[-1]


def test_measurements_equal_the_functions_on_all_samples(tmp_path: Path) -> None:
    """Seven ragged batches through the callbacks against one pass over everything."""
    module, data = tiny.module(), tiny.digits(eval_batch_size=55)
    measures = {
        "cosine": CosineSimilarity(),
        "raw": CosineSimilarity(centering="none"),
        "minibatch": LinearCKA(batch_size=32),
        "debiased": LinearCKA(estimator="debiased"),
    }
    callbacks = [
        LayerAccuracyMonitor(epsilon=0.9, absolute_epsilon=0.3),
        SaturationMonitor(),
        SimilarityHeatmaps(measures),
        RunRecorder(),
    ]
    trainer(tmp_path, callbacks).validate(module, data, verbose=False)
    found = record(tmp_path)
    told = read_records(tmp_path / "layers.jsonl")[-1].quantities
    whole = tiny.digits(eval_batch_size=360)
    whole.setup()
    batch = next(iter(whole.val_dataloader()))
    order = batch["position"].argsort()
    with torch.no_grad():
        output = module.eval()(batch)
    features = output.features.values[:, order]
    expected: dict[str, Tensor] = {
        "cosine": cosine(features),
        "raw": cosine(features, centering="none"),
        "debiased": linear_cka(features, estimator="debiased"),
        "minibatch": linear_cka(features, batch_size=32),
    }
    for name, matrix in expected.items():
        similarities = torch.tensor(found[name], dtype=torch.float64)
        torch.testing.assert_close(similarities, matrix, rtol=0, atol=1e-6)
    assert told["minibatch"].options == {"estimator": "minibatch", "batch_size": 32, "order": "drawn by seed"}
    assert found["accuracy"] == (output.readout.predictions == batch["label"]).double().mean(1).tolist()
    right = output.readout.predictions == batch["label"]
    depth = measured_depth(right.long() @ right.long().T, 360, 0.9, 0.3)
    assert (found["effective_depth"], told["effective_depth"].options) == (depth["layer"], {"epsilon": 0.9})
    assert (found["best_layer"], found["behind_best"]) == (depth["best"], depth["behind"])
    assert told["behind_best"].interval == {"confidence": 0.95, "low": depth["low"], "high": depth["high"]}
    absolute = told["absolute_depth"]
    assert absolute.options == {"epsilon": 0.3}
    assert math.isnan(absolute.values), "an untrained model reaches 0.7 nowhere"
    assert depth["layer"] == 1, "0.9 is wide"
    counts = torch.bincount(saturation_layer(output.readout.predictions), minlength=4)[1:]
    assert found["saturation"] == counts.tolist()


def test_each_epoch_starts_anew(tmp_path: Path) -> None:
    module, data = tiny.module(), tiny.digits()
    callbacks = [LayerAccuracyMonitor(), SaturationMonitor(), RunRecorder()]
    run = trainer(tmp_path, callbacks, max_epochs=3, limit_train_batches=1)
    run.fit(module, data)
    lines = measured(tmp_path)
    assert [line["epoch"] for line in lines] == [0, 1, 2], "the sanity check is no epoch"
    assert [sum(line["saturation"]) for line in lines] == [360] * 3


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty")
def test_loggers_get_numbers_and_images(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="csv", version=""), TensorBoardLogger(str(tmp_path), name="tb", version="")]
    callbacks = [LayerAccuracyMonitor(), SaturationMonitor(), SimilarityHeatmaps(), RunRecorder()]
    trainer(tmp_path, callbacks, logger=loggers, max_epochs=1, limit_train_batches=2, log_every_n_steps=1).fit(
        tiny.module(), tiny.digits()
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    last = record(tmp_path)
    for layer in (1, 2, 3):
        (scalar,) = events.Scalars(f"val/accuracy/layer_{layer:02d}")
        assert scalar.value == pytest.approx(last["accuracy"][layer - 1])
        (scalar,) = events.Scalars(f"val/cosine_to_last/layer_{layer:02d}")
        assert scalar.value == pytest.approx(last["cosine"][layer - 1][-1])
    pictures = {"val/cosine", "val/cka", "val/layer_accuracy", "val/layer_loss", "val/saturation"}
    assert set(events.Tags()["images"]) == pictures
    (image,) = events.Images("val/cosine")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/accuracy", "val/loss", "val/effective_depth", "val/saturated_early"} <= set(header)


def test_without_loggers_the_record_and_pictures_are_there(tmp_path: Path) -> None:
    callbacks = [SimilarityHeatmaps(), RunRecorder()]
    trainer(tmp_path, callbacks).validate(tiny.module(), tiny.digits(), verbose=False)
    (line,) = read_records(tmp_path / "layers.jsonl")
    assert set(line.quantities) == {"cosine", "cka"}, "what no callback measured is not there"
    assert (tmp_path / "figures" / "val-cosine-epoch-0000.png").is_file()


def test_the_depth_is_logged_as_it_is_recorded(tmp_path: Path) -> None:
    for name, options in {"relative": {}, "both": {"epsilon": "interval", "absolute_epsilon": 0.01}}.items():
        run = trainer(tmp_path / name, [LayerAccuracyMonitor(**options), RunRecorder()])  # type: ignore[arg-type]
        run.validate(tiny.module(), tiny.digits(), verbose=False)
        told = read_records(tmp_path / name / "layers.jsonl")[-1].quantities
        for depth in ("effective_depth", "best_layer"):
            assert run.callback_metrics[f"val/{depth}"] == told[depth].values
        assert told["effective_depth"].options == {"epsilon": options.get("epsilon", 0.01)}
        assert ("val/absolute_depth" in run.callback_metrics) == (name == "both")
    assert run.callback_metrics["val/absolute_depth"].isnan(), "an untrained model reaches 0.99 nowhere"


@pytest.mark.parametrize("options", [{"epsilon": 1.5}, {"absolute_epsilon": -0.1}])
def test_an_epsilon_that_is_no_share_is_refused_when_the_monitor_is_made(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=rf"Expected LayerAccuracyMonitor's {name} at least 0 and at most 1"):
        LayerAccuracyMonitor(**options)


def test_tokens_have_no_interval_to_find_a_depth_by(tmp_path: Path) -> None:
    module = tiny.module()
    module.backbone.reads_tokens = True
    with pytest.raises(UserError, match="tokens of one text depend on each other"):
        trainer(tmp_path, [LayerAccuracyMonitor("interval")]).validate(module, tiny.digits(), verbose=False)


def test_numbers_can_be_monitored(tmp_path: Path) -> None:
    run = trainer(tmp_path, [LayerAccuracyMonitor()], max_epochs=1, limit_train_batches=1)
    run.fit(tiny.module(), tiny.digits())
    accuracy = run.callback_metrics["val/accuracy"]
    assert accuracy == run.callback_metrics["val/accuracy/layer_03"]
    assert 0 < accuracy < 1


def test_apples_gpu_is_refused_before_anything_runs() -> None:
    strategy = SimpleNamespace(root_device=torch.device("mps"))
    with pytest.raises(UserError, match=r"no float64.*--trainer\.accelerator=cpu"):
        SaturationMonitor().setup(SimpleNamespace(strategy=strategy), tiny.module(), "fit")  # type: ignore[arg-type]


def test_another_module_is_refused(tmp_path: Path) -> None:
    class Other(LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    with pytest.raises(UserError, match="LayerwiseModule, but got Other"):
        trainer(tmp_path, [SaturationMonitor()]).validate(Other(), tiny.digits())


def test_monitors_share_one_sample(tmp_path: Path) -> None:
    """The largest cap's, however many measures of how many monitors read it; it is gone when the epoch is."""
    heatmaps = SimilarityHeatmaps({"a": CosineSimilarity(max_samples=60), "b": CosineSimilarity(max_samples=50)})
    angles = SimilarityHeatmaps({"c": AngularDistance(centering="samples", max_samples=70)}, keep_on="host")
    progression, kept = ProgressionMonitor(max_samples=80), list[int]()

    class Look(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            monitors = (heatmaps, angles, progression)
            metrics = [metric for each in monitors for metric in each._metrics.values()]
            kept.extend(sum(map(len, getattr(metric, "features", []))) for metric in metrics)
            assert heatmaps._sample is not None
            kept.append(sum(map(len, heatmaps._sample.features)))
            assert heatmaps._sample.keep_on == "host"
            assert angles._sample is progression._sample is None

    trainer(tmp_path, [Look(), heatmaps, angles, progression]).validate(tiny.module(), tiny.digits(), verbose=False)
    assert kept == [0, 0, 0, 0, 0, 80]
    assert heatmaps._sample is None
    for name, cap in {"a": 60, "b": 50}.items():
        alone = SimilarityHeatmaps({"alone": CosineSimilarity(max_samples=cap)})
        trainer(tmp_path / name, [alone]).validate(tiny.module(), tiny.digits(), verbose=False)
        assert alone.quantities["alone"].values == heatmaps.quantities[name].values
