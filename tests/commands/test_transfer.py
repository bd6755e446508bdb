"""`layersim transfer` on a short training, against its own record and against a probe fitted by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from layersim import LayerwiseModule
from layersim.__main__ import main
from layersim.commands.outcome import run_directory
from layersim.errors import UserError
from layersim.report import read_records
from layersim.report.transfer import TransferReport
from layersim.runs.models import make_data
from tests import tiny

Command = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short training."""
    root = tmp_path_factory.mktemp("transfer")
    record = "--trainer.callbacks=[{class_path: callbacks.LayerAccuracyMonitor}, {class_path: callbacks.RunRecorder}]"
    save = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {filename: last}}"
    place = [f"--trainer.default_root_dir={root}", "--experiment=a"]
    assert (
        main(["fit", *tiny.FLAGS, record, save, *place, "--model.optimizer=AdamW", "--model.optimizer.lr=0.003"]) == 0
    )
    (directory,) = (root / "a").iterdir()
    return directory


def read(directory: Path) -> TransferReport:
    report = TransferReport.read(directory)
    assert report is not None
    assert (directory / "transfer.png").read_bytes().startswith(b"\x89PNG")
    return report


def test_shifts_and_probe_into_the_runs_directory(
    run: Path, layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["--to_data=Digits", "--to_data.val_fraction=0.3", "--to_data.seed=1"]
    layersim("transfer", f"--ckpt_path={run}", "--strengths.rotation=[20, 40]", "--strengths.blur=[]", *task)
    report = read(run)
    assert report.accuracy == read_records(run / "layers.jsonl")[-1].values("accuracy")
    assert [step["strength"] for step in report.shifts["rotation"]] == [20, 40]
    assert list(report.shifts) == ["rotation", "noise"]
    assert len(report.shifts["noise"]) == 5
    assert report.data["class_path"] == "layersim.data.Digits"
    assert report.probe is not None
    assert (report.probe["train_samples"], report.probe["samples"], report.probe["classes"]) == (1257, 540, 10)
    module = LayerwiseModule.load_from_checkpoint(run / "checkpoints/last.ckpt").eval()
    data = tiny.digits(val_fraction=0.3, seed=1)
    data.setup()
    sides = []
    for split in (data.splits["train"], data.splits["val"]):
        batch = data.collate([split[place] for place in np.argsort(split.index)])
        with torch.no_grad():
            sides.append((module.backbone(batch).values[2].double(), batch["label"].numpy()))
    (features, targets), (others, other_targets) = sides
    mean, spread = features.mean(dim=0), features.std(dim=0, correction=0)
    probe = LogisticRegression(C=1 / report.probe["penalty"][2], max_iter=5000)
    probe.fit((features - mean) / spread, targets)
    by_hand = probe.score((others - mean) / spread, other_targets)
    assert report.probe["accuracy"][2] == pytest.approx(by_hand, abs=2 / 540)
    assert f"{report.probe['accuracy'][2]:.3f}" in capsys.readouterr().out


def test_elsewhere(run: Path, layersim: Command) -> None:
    options = ["--strengths.rotation=[5]", "--strengths.noise=[]", "--strengths.blur=[0.1]"]
    layersim("transfer", f"--ckpt_path={run}/checkpoints/last.ckpt", "--to=out", *options)
    report = read(Path("out"))
    assert list(report.shifts) == ["rotation", "blur"]
    assert report.probe is None
    assert json.loads(Path("out/transfer.json").read_text())["probe"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ckpt_path=timm:vit_tiny_patch16_224"], "Expected a run's directory, or a checkpoint"),
        (["--ckpt_path={run}", "--device=abacus"], "Change --device"),
        (["--ckpt_path={run}", "--max_samples=-3"], "max_samples must be at least 4, got -3: change --max_samples"),
        (["--ckpt_path={run}", "--to={run}/config.yaml"], "Change --to"),
        (["--ckpt_path={run}", "--split=test"], "there is no test split: set --data.test_fraction"),
        (
            ["--ckpt_path={run}", "--strengths.blur=[0.4]"],
            "0.4 of the width reaches 10 pixels to each side, further than",
        ),
        (["--ckpt_path={run}", "--strengths.noise=[-1]"], "--strengths.noise: expected finite numbers of 0 or more"),
        (["--ckpt_path={run}", "--to_data=Docstrings"], "The data do not fit the probe (--to_data)"),
        (["--ckpt_path={run}", "--to_data=Images", "--to_data.path=/none"], "folder /none: change --to_data.path"),
        (["--ckpt_path={run}", "--to_data=Digits", "--to_data.val_fraction=3"], "Change --to_data.val_fraction"),
        (
            ["--ckpt_path={run}", *(f"--strengths.{kind}=[]" for kind in ("rotation", "noise", "blur"))],
            "Nothing to measure",
        ),
    ],
)
def test_refusals(
    options: list[str],
    said: str,
    run: Path,
    layersim: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is measured."""
    monkeypatch.setattr("layersim.transfer.shifted_accuracies", lambda *args, **named: pytest.fail("measured"))
    layersim("transfer", *(option.format(run=run) for option in options), status=2)
    assert said in capsys.readouterr().err


def test_a_recipes_data_stay_as_they_are_when_they_are_made() -> None:
    """jsonargparse turns nested classes into objects of its own, in place, which no report can hold."""
    crop = {"class_path": "torchvision.transforms.v2.RandomCrop", "init_args": {"size": 32}}
    section = {"class_path": "layersim.data.Images", "init_args": {"path": "folder", "train_transforms": [crop]}}
    before = json.dumps(section)
    assert make_data(section).num_workers == make_data(section).num_workers  # and so can be made again
    assert json.dumps(section) == before


def test_a_checkpoint_stands_for_its_run_a_sharded_one_too(tmp_path: Path) -> None:
    whole, sharded = (tmp_path / f"{name}/checkpoints/last.ckpt" for name in ("whole", "sharded"))
    sharded.mkdir(parents=True)
    whole.parent.mkdir(parents=True)
    whole.touch()

    for path in (whole, sharded):
        assert run_directory(str(path)) == run_directory(str(path.parents[1])) == path.parents[1]
    with pytest.raises(UserError, match="lies in no run's directory"):
        run_directory(str(tmp_path / "loose.ckpt"))
