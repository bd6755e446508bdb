"""The run's record: what anybody measures is in it, under a name of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from callbacks import ExitCurveMonitor, LayerAccuracyMonitor, RunRecorder, SimilarityHeatmaps
from layersim import LayerwiseModule
from layersim.__main__ import main
from layersim.errors import UserError
from layersim.report.quantity import Quantity
from layersim.report.records import RECORDS_FILE, read_records
from layersim.similarity import LinearCKA
from tests import tiny
from tests.callbacks.own import Lengths, Weights
from tests.callbacks.test_monitors import trainer
from tests.measured import measured
from tests.runs.test_tracking import transactions


def test_what_a_monitor_of_ones_own_measures_is_found_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record, the loggers' numbers and pictures, the terminal's table, the run's page, and a comparison."""
    monkeypatch.chdir(tmp_path)
    flags = [flag for flag in tiny.FLAGS if "logger" not in flag]
    loggers = "[Wandb, TensorBoard, {class_path: CSVLogger, init_args: {save_dir: csv, name: '', version: ''}}]"
    own = ["--trainer.callbacks+=tests.callbacks.own.Lengths", f"--trainer.logger={loggers}"]
    assert main(["fit", *flags, *own, "--trainer.limit_train_batches=2"]) == 0
    (directory,) = Path("runs/default").iterdir()
    printed = capsys.readouterr().out

    module = LayerwiseModule.load_from_checkpoint(directory / "checkpoints/last.ckpt").eval()
    data = tiny.digits()
    data.setup()
    with torch.no_grad():
        features = torch.cat([module.backbone(batch).values for batch in data.val_dataloader()], dim=1)
    lengths = features.double().norm(dim=2).mean(1).tolist()
    (record,) = read_records(directory / RECORDS_FILE)
    assert record.values("length") == pytest.approx(lengths, rel=1e-6)

    names = [f"val/length/layer_{layer:02d}" for layer in (1, 2, 3)]
    numbers = dict(zip([*names, "val/length"], [*lengths, lengths[-1]], strict=True))
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    (row,) = [row["item"] for row in transactions(directory, "history") if "val/length" in row["item"]]
    for name, number in numbers.items():
        assert events.Scalars(name)[0].value == row[name] == pytest.approx(number)
    axes = {metric.get("name"): metric.get("step_metric") for metric in transactions(directory, "metric")}
    assert {axes[name] for name in (*numbers, "val/layer_length")} == {"epoch"}
    picture = (directory / "figures" / "val-layer_length-epoch-0000.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "val/layer_length" in events.Tags()["images"]
    assert [item for item in transactions(directory, "history") if "val/layer_length.path" in item["item"]]

    rows = [line.split() for line in printed.splitlines()]
    for layer, length in enumerate(lengths, start=1):
        assert f"{length:.3f}" in next(row for row in rows if row[:1] == [str(layer)])
    assert "length of features" in (directory / "report.html").read_text()
    assert main(["compare", str(directory)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "length of features" in line]
    assert row.split()[-1] == f"{lengths[-1]:.3f}", row
    assert "length of features" in Path("comparison.html").read_text()


def test_what_a_callback_publishes_is_in_the_record(tmp_path: Path) -> None:
    """One value a layer, and values over an axis of its own; a monitor of layersim's stands beside it."""
    module = tiny.module()
    run = trainer(tmp_path, [Weights(), LayerAccuracyMonitor(), RunRecorder()])
    data = tiny.digits()
    data.left_out = 7
    run.validate(module, data, verbose=False)
    (line,) = read_records(tmp_path / RECORDS_FILE)
    assert line.left_out == 7, "of the data that was measured"
    squares = [
        [sum(weight.square().sum().item() for weight in part.parameters()) for part in (block.attn, block.mlp)]
        for block in module.backbone.model.blocks  # type: ignore[union-attr]
    ]
    assert line.quantities["weights"].axes == ("layer",)
    assert line.values("weights") == pytest.approx([sum(row) for row in squares])
    by_kind = line.quantities["weights_by_kind"]
    assert (by_kind.axes, by_kind.ticks) == (("kind",), {"kind": ["attn", "mlp"]})
    assert by_kind.values == pytest.approx([sum(column) for column in zip(*squares, strict=True)])
    assert "accuracy" in line.quantities
    assert measured(tmp_path)[-1]["weights_by_kind"] == by_kind.values, "in the file itself"


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (
            Quantity(values=[0.1, 0.2], axes=("layer",)),
            r"mine: expected numbers over layer \(3\), got 2 of type float64",
        ),
        (Quantity(values=[0.1] * 3, axes=("layer", "layer")), r"mine: expected numbers over layer \(3\) × layer \(3\)"),
        (Quantity(values=[[0.1] * 3, [0.2]], axes=("epoch", "layer")), "mine: .* got rows of different lengths"),
        (Quantity(values=["a"] * 3, axes=("layer",)), r"mine: expected numbers over layer \(3\), got 3 of type <U1"),
    ],
)
@pytest.mark.parametrize("monitor", [True, False])
def test_what_does_not_fit_its_axes_is_refused(
    quantity: Quantity, message: str, monitor: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback: Callback
    if monitor:
        callback = Lengths()
        monkeypatch.setattr(callback, "measure", lambda metrics: {"mine": quantity})
    else:
        callback = Weights()
        callback.quantities = {"mine": quantity}
        monkeypatch.setattr(callback, "on_validation_epoch_start", lambda *_: None)
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, [callback, RunRecorder()]).validate(tiny.module(), tiny.digits(), verbose=False)
    assert not (tmp_path / RECORDS_FILE).exists()


@pytest.mark.parametrize(
    ("two", "name"),
    [
        ([SimilarityHeatmaps(), SimilarityHeatmaps({"cka": LinearCKA(estimator="debiased")})], "cka_to_last"),
        ([SimilarityHeatmaps(layers="backbone.model.blocks.*"), SimilarityHeatmaps()], "cka_to_last, cosine_to_last"),
        ([Lengths(), Lengths()], "length"),
        ([ExitCurveMonitor(), ExitCurveMonitor()], "accuracy_at_half_layers, exit_curve_area"),
    ],
)
def test_one_name_for_two_monitors_is_refused_before_training(two: list[Callback], name: str, tmp_path: Path) -> None:
    module = tiny.module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError, match=f"Two callbacks measure {name}, but a run's record holds one"):
        trainer(tmp_path, [*two, RunRecorder()], max_epochs=1).fit(module, tiny.digits())
    assert all(value.equal(before[name]) for name, value in module.state_dict().items()), "nothing was trained"
    assert not (tmp_path / RECORDS_FILE).exists()


class Whatever(Callback):
    """Publishes without saying before what."""

    def __init__(self, name: str) -> None:
        self.quantities = {name: Quantity(values=0.5)}


def test_one_name_for_two_callbacks_that_nobody_knew_of_is_refused_when_the_epoch_is_recorded(tmp_path: Path) -> None:
    two = [Whatever("mine"), Whatever("theirs"), Whatever("mine"), RunRecorder()]
    with pytest.raises(UserError, match="Two callbacks measure mine, but a run's record holds one"):
        trainer(tmp_path, two).validate(tiny.module(), tiny.digits(), verbose=False)
    assert not (tmp_path / RECORDS_FILE).exists()


def test_a_script_that_runs_again_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    def lines(folder: Path) -> list[str]:
        return [f"{record.stage} {record.epoch}" for record in read_records(folder / RECORDS_FILE)]

    def run(**options: Any) -> Trainer:
        made = trainer(tmp_path, [LayerAccuracyMonitor(), RunRecorder()], limit_train_batches=1, **options)
        made.fit(tiny.module(), tiny.digits())
        return made

    first = run(max_epochs=1)
    first.validate(tiny.module(), tiny.digits(), verbose=False)
    assert lines(tmp_path) == ["validate 0", "validate 1"], "one trainer, one run"
    second = run(max_epochs=2)
    own = Path(second.default_root_dir)
    assert own.parent == tmp_path
    assert lines(own) == ["validate 0", "validate 1"]
    assert (own / "figures" / "val-layer_accuracy-epoch-0001.png").is_file()
    assert lines(tmp_path) == ["validate 0", "validate 1"], "the first is as it was"
    second.save_checkpoint(own / "last.ckpt")
    resumed = trainer(own, [LayerAccuracyMonitor(), RunRecorder()], limit_train_batches=1, max_epochs=3)
    resumed.fit(tiny.module(), tiny.digits(), ckpt_path=own / "last.ckpt")
    assert lines(Path(resumed.default_root_dir)) == ["validate 0", "validate 1", "validate 2"], "the whole training"
    assert lines(own) == ["validate 0", "validate 1"]


def test_a_recorder_keeps_two_trainings_in_one_directory_apart(tmp_path: Path) -> None:
    recorder, data, homes = RunRecorder(), tiny.digits(test_fraction=0.2), []
    for _ in range(2):
        run = trainer(tmp_path, [Lengths(), recorder], max_epochs=1, limit_train_batches=1)
        run.validate(tiny.module(), data, verbose=False)
        run.fit(tiny.module(), data)
        run.test(tiny.module(), data, verbose=False)
        homes.append(Path(run.default_root_dir))
    assert homes[0] == homes[1].parent == tmp_path
    stages = [[record.stage for record in read_records(home / RECORDS_FILE)] for home in homes]
    assert stages == [["validate", "validate", "test", "validate"], ["validate", "test"]], (
        "the second's begins with fit"
    )


def test_a_loader_is_not_what_an_earlier_calls_data_are(tmp_path: Path) -> None:
    """Lightning's trainer keeps the DataModule that it was given last."""
    rows = [{"image": torch.randn(1, 8, 8), "label": number % 10} for number in range(40)]
    run = trainer(tmp_path, [SimilarityHeatmaps(), RunRecorder()])
    run.validate(tiny.module(), tiny.digits(), verbose=False)
    run.validate(tiny.module(), DataLoader(rows, 8), verbose=False)  # type: ignore[arg-type]
    drawn, as_read = (record.quantities["cka"].options for record in read_records(tmp_path / RECORDS_FILE))
    assert (drawn["order"], drawn["estimator"]) == ("drawn by seed", "minibatch")
    assert (as_read["order"], as_read["estimator"]) == ("as read", "debiased")


def test_a_recorder_keeps_each_directorys_run_apart(tmp_path: Path) -> None:
    """Its checkpoint too, and a training that goes on from there."""
    recorder, data = RunRecorder(), tiny.digits()
    options: dict[str, Any] = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer(tmp_path / "one", [Lengths(), recorder], max_epochs=2, **options).fit(tiny.module(), data)
    second = trainer(tmp_path / "two", [Lengths(), recorder], max_epochs=1, **options)
    second.fit(tiny.module(), data)
    second.save_checkpoint(tmp_path / "two.ckpt")
    third = trainer(tmp_path / "three", [Lengths(), recorder], max_epochs=2, **options)
    third.fit(tiny.module(), data, ckpt_path=tmp_path / "two.ckpt")
    epochs = {
        name: [record.epoch for record in read_records(tmp_path / name / RECORDS_FILE)]
        for name in ("one", "two", "three")
    }
    assert epochs == {"one": [0, 1], "two": [0], "three": [0, 1]}
    (told,) = (state for name, state in torch.load(tmp_path / "two.ckpt")["callbacks"].items() if "RunRec" in name)
    assert told["lines"] == (tmp_path / "two" / RECORDS_FILE).read_text().splitlines()


def test_a_prediction_tells_nothing_of_the_records_in_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control is the validation, which has a table of what it measured."""
    data = tiny.digits()
    run = trainer(tmp_path, [Lengths(), RunRecorder()], max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    run.fit(tiny.module(), data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    run.validate(tiny.module(), data, verbose=False)
    assert "Records and figures: " in capsys.readouterr().out
    recorder = RunRecorder()
    again = trainer(tmp_path / "again", [recorder], limit_predict_batches=1)
    again.predict(tiny.module(), data, ckpt_path=tmp_path / "one.ckpt")
    assert len(recorder.records) == 1
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "again" / RECORDS_FILE).exists()
