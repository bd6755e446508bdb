"""W&B: what really arrives in an offline run, how runs are continued, and what an unreachable server does."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml

from layersim.report.lens import read_lens_record
from layersim.runs.tracking import Wandb
from tests import tiny
from tests.measured import measured

Command = Callable[..., Path]

FLAGS = [flag for flag in tiny.FLAGS if "logger" not in flag]

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def transactions(directory: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind of the one W&B run in a run's directory, as W&B itself reads them."""
    (file,) = directory.glob("wandb/*run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [record[kind] for record in map(json.loads, lines) if record["type"] == kind]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run without a key."""
    from layersim.__main__ import main

    root = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("NETRC", str(root / "netrc"))
        assert main(["fit", *FLAGS, f"--trainer.default_root_dir={root}", "--trainer.max_epochs=2"]) == 0
    (directory,) = root.glob("default/*")
    return directory


def test_without_a_key_the_run_is_offline_and_says_how_to_sync(
    layersim: Command, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        directory = layersim("validate", *[flag for flag in FLAGS if "max_epochs" not in flag])
    (place,) = directory.glob("wandb/offline-run-*")
    assert f"wandb sync {place}" in caplog.text


def test_configuration_keys_are_the_flags_once_each(offline: Path) -> None:
    updates = [key for record in transactions(offline, "config") for key in record["update"]]
    keys = [key for key in updates if key != "_wandb"]
    assert len(keys) == len(set(keys))
    assert set(keys) == set(flat(yaml.safe_load((offline / "config.yaml").read_text())))
    assert "model.optimizer.init_args.lr" in keys


def test_every_layer_number_has_its_own_metric_against_the_epoch(offline: Path) -> None:
    definitions = {
        metric.get("name") or metric["glob_name"]: metric.get("step_metric")
        for metric in transactions(offline, "metric")
    }
    for layer in (1, 2, 3):
        for name in ("accuracy", "loss", "cosine_to_last", "cka_to_last"):
            assert definitions[f"val/{name}/layer_{layer:02d}"] == "epoch"
    for name in ("cosine", "cka", "layer_accuracy", "saturation", "saturated_early"):
        assert definitions[f"val/{name}"] == "epoch"
    assert [name for name in definitions if "*" in name] == ["*"], "no glob but WandbLogger's own"


def test_history_holds_what_the_records_hold(offline: Path) -> None:
    lines = measured(offline)
    rows = [record["item"] for record in transactions(offline, "history")]
    for line in lines:
        (row,) = [row for row in rows if row.get("epoch") == line["epoch"] and "val/accuracy/layer_01" in row]
        for layer in (1, 2, 3):
            assert row[f"val/accuracy/layer_{layer:02d}"] == pytest.approx(line["accuracy"][layer - 1])
            assert row[f"val/loss/layer_{layer:02d}"] == pytest.approx(line["loss"][layer - 1])
        assert row["val/effective_depth"] == line["effective_depth"]
        images = [row for row in rows if row.get("epoch") == line["epoch"] and "val/cosine.path" in row]
        assert len(images) == 1


def test_a_resumed_training_continues_its_wandb_run(offline: Path, layersim: Command) -> None:
    checkpoint = offline / "checkpoints/last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["layersim"]
    assert saved["wandb_run_id"] == offline.name
    resumed = layersim(
        "fit",
        f"--config={offline}/config.yaml",
        f"--ckpt_path={checkpoint}",
        "--trainer.default_root_dir=runs",
        "--trainer.max_epochs=3",
    )
    assert resumed.name != offline.name
    (run,) = transactions(resumed, "run")
    assert run["run_id"] == offline.name
    fresh = layersim("fit", f"--config={offline}/config.yaml", "--trainer.default_root_dir=runs")
    (run,) = transactions(fresh, "run")
    assert run["run_id"] == fresh.name


def test_what_a_lens_finds_joins_the_trainings_run(offline: Path, layersim: Command, tmp_path: Path) -> None:
    layersim("lens", f"--ckpt_path={offline}", "--kind=tuned", "--steps=2", "--device=cpu", f"--to={tmp_path / 'out'}")
    (run,) = transactions(tmp_path / "out", "run")
    assert run["run_id"] == offline.name
    (row,) = (record["item"] for record in transactions(tmp_path / "out", "history"))
    record = read_lens_record(tmp_path / "out")
    assert record is not None
    assert row["lens._type"] == "image-file"
    assert row["trainer/global_step"] == torch.load(offline / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    (table,) = (tmp_path / "out").glob(f"wandb/offline-run-*/files/{row['lens_layers.path']}")
    told = json.loads(table.read_text())
    assert told["columns"] == ["layer", *record.quantities]
    assert told["data"] == [
        [layer + 1, *(pytest.approx(quantity.values[layer]) for quantity in record.quantities.values())]
        for layer in range(3)
    ]


def test_an_unreachable_server_stops_nothing(
    layersim: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    with caplog.at_level("INFO"):
        directory = layersim("fit", *FLAGS, "--trainer.logger=Wandb", "--trainer.logger.init_timeout=2")
    assert "going on offline" in caplog.text
    assert list(directory.glob("wandb/offline-run-*"))
    assert (directory / "layers.jsonl").is_file()
    assert (directory / "checkpoints/last.ckpt").is_file()


def test_tensorboard_settles_in_the_runs_directory(layersim: Command) -> None:
    directory = layersim("fit", *FLAGS, "--trainer.logger=TensorBoard", "--trainer.limit_train_batches=2")
    (events,) = (directory / "tensorboard").glob("events.out.tfevents.*")
    assert events.stat().st_size > 10_000, "numbers and images"
    assert not (directory / "wandb").exists()


HERE = "http://wandb.here:8080"


@pytest.mark.parametrize(
    ("machine", "password", "environment", "settings", "mode"),
    [
        ("api.wandb.ai", "0" * 40, "", "", "online"),
        ("api.forge.coreweave.com", "0" * 40, "", "", "online"),
        ("wandb.here:8080", "0" * 40, HERE, "", "online"),
        ("wandb.here:8080", "0" * 40, "", f"base_url = {HERE}", "online"),
        ("api.wandb.ai", "short", "", "", "online"),
        ("nobody", "", "", f"api_key = {'0' * 40}", "online"),
        ("api.wandb.ai", "0" * 40, HERE, "", "offline"),
        ("wandb.here:8080", "0" * 40, "", "", "offline"),
    ],
)
def test_a_key_is_looked_for_where_wandb_looks(
    machine: str,
    password: str,
    environment: str,
    settings: str,
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key that W&B finds to be none is left to W&B, which says so; a key for another server is none."""
    (tmp_path / "netrc").write_text(f"machine {machine}\n  login user\n  password {password or 'none'}\n")
    (tmp_path / "settings").write_text(f"[default]\n{settings}\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    if environment:
        monkeypatch.setenv("WANDB_BASE_URL", environment)
    wandb.teardown()  # it reads its settings once in a process
    try:
        assert Wandb()._wandb_init["mode"] == mode
    finally:
        wandb.teardown()
