"""W&B online: what really arrives at a server, what `wandb sync` sends, and what a server that fails does to a run."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wandb
import yaml

from layersim.__main__ import main
from layersim.report.lens import read_lens_record
from tests import tiny
from tests.measured import measured
from tests.runs.test_tracking import flat
from tests.wandb_server import Run, Store, WandbServer
from tests.wandb_server.server import Fault

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

FLAGS = [flag for flag in tiny.FLAGS if "logger" not in flag]
IMAGES = ("cosine", "cka", "layer_accuracy", "saturation", "exit_curve")


def records(directory: Path) -> list[dict[str, Any]]:
    return measured(directory)


def fit(server: WandbServer, home: Path, *flags: str, lensed: bool = False, **environment: str) -> Path:
    """Trains in this process, told of this server, and reads it by a lens where asked; gives the run's directory."""
    wandb.teardown()  # its service remembers the server before
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (server.environment(home) | environment).items():
            patch.setenv(name, value)
        before = set(home.glob("runs/*/*"))
        assert main(["fit", *FLAGS, f"--trainer.default_root_dir={home}/runs", "--trainer.max_epochs=2", *flags]) == 0
        (directory,) = set(home.glob("runs/*/*")) - before
        lens = ["lens", f"--ckpt_path={directory}", "--kind=tuned", "--steps=1", "--device=cpu"]
        assert not lensed or main(lens) == 0
    os.environ.pop("LAYERSIM_RUN_DIRECTORY", None)
    wandb.teardown()
    return directory


def sync(server: WandbServer, home: Path, place: Path) -> None:
    command = [sys.executable, "-m", "wandb", "sync", "--no-skip-online", str(place)]
    done = subprocess.run(command, cwd=home, env=server.process_environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def assert_holds_what_the_records_hold(run: Run, directory: Path) -> None:
    """History, images, configuration and summary of a run against `layers.jsonl` and `config.yaml`."""
    lines = records(directory)
    for line in lines:
        rows = [row for row in run.history if row.get("epoch") == line["epoch"]]
        (row,) = [row for row in rows if "val/accuracy" in row]
        for layer, (accuracy, loss) in enumerate(zip(line["accuracy"], line["loss"], strict=True), start=1):
            assert row[f"val/accuracy/layer_{layer:02d}"] == pytest.approx(accuracy)
            assert row[f"val/loss/layer_{layer:02d}"] == pytest.approx(loss)
            for measure in ("cosine", "cka"):
                assert row[f"val/{measure}_to_last/layer_{layer:02d}"] == pytest.approx(line[measure][layer - 1][-1])
        assert row["val/saturated_early"] == pytest.approx(line["saturated_early"])
        for name in IMAGES:
            (image,) = [row[f"val/{name}"] for row in rows if f"val/{name}" in row]
            drawn = directory / f"figures/val-{name}-epoch-{line['epoch']:04d}.png"
            assert run.uploads[image["path"]] == drawn.read_bytes()
    assert run.settings == flat(yaml.safe_load((directory / "config.yaml").read_text())), "keys are flags, once each"
    assert run.summary["val/accuracy"] == pytest.approx(lines[-1]["accuracy"][-1])
    assert run.summary["val/accuracy/layer_01"] == pytest.approx(lines[-1]["accuracy"][0])
    for name in (*IMAGES, "accuracy", "accuracy/layer_01", "loss/layer_03", "cka_to_last/layer_02"):
        assert run.axes[f"val/{name}"] == "epoch"


class Arrived(NamedTuple):
    """A training of two epochs and its continuation to a third."""

    directory: Path
    store: Store
    continued_directory: Path
    continued_store: Store


@pytest.fixture(scope="module")
def arrived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arrived]:
    home = tmp_path_factory.mktemp("online")
    with WandbServer() as server:
        patience = ["--trainer.logger.init_timeout=600", "--trainer.logger.finish_timeout=600"]
        directory = fit(server, home, "--trainer.logger.log_model=true", *patience)
        first = copy.deepcopy(server.store)
        resume = [f"--config={directory}/config.yaml", f"--ckpt_path={directory}/checkpoints/last.ckpt"]
        continued = fit(
            server, home, *resume, "--trainer.max_epochs=3", "--trainer.logger.log_model=false", *patience, lensed=True
        )
        yield Arrived(directory, first, continued, server.store)


def test_what_arrives_online_is_what_the_run_recorded(arrived: Arrived) -> None:
    run = arrived.store.only_run
    assert run.name == arrived.directory.name
    assert (run.state, run.exit_code) == ("finished", 0)
    assert_holds_what_the_records_hold(run, arrived.directory)


def test_the_comparison_fails_for_another_runs_records(arrived: Arrived) -> None:
    other = copy.deepcopy(arrived.store.only_run)
    history = other.lines["wandb-history.jsonl"]
    other.lines["wandb-history.jsonl"] = [
        line and line.replace("val/loss/layer_02", "val/loss/other") for line in history
    ]
    with pytest.raises(KeyError, match="layer_02"):
        assert_holds_what_the_records_hold(other, arrived.directory)


def test_checkpoints_arrive_as_artifacts(arrived: Arrived) -> None:
    last = (arrived.directory / "checkpoints/last.ckpt").read_bytes()
    models = [data for name, data in arrived.store.artifact_files.items() if name.endswith("model.ckpt")]
    assert last in models
    assert {artifact["state"] for artifact in arrived.store.artifacts.values()} == {"COMMITTED"}


def test_the_page_and_a_table_of_the_layers_arrive(arrived: Arrived) -> None:
    store, run = arrived.store, arrived.store.only_run
    page = (arrived.directory / "report.html").read_bytes()
    assert [data for name, data in store.artifact_files.items() if name.endswith("report.html")] == [page]
    (entry,) = [artifact for artifact in store.artifacts.values() if "report-" in str(artifact)]
    assert run.name in str(entry)
    (name,) = [name for name in run.uploads if name.startswith("media/table/layers_")]
    table, last = json.loads(run.uploads[name]), records(arrived.directory)[-1]
    assert table["columns"][:3] == ["layer", "accuracy", "loss"]
    assert [row[:3] for row in table["data"]] == [
        [layer, pytest.approx(accuracy), pytest.approx(loss)]
        for layer, (accuracy, loss) in enumerate(zip(last["accuracy"], last["loss"], strict=True), start=1)
    ]


def test_what_a_lens_finds_afterwards_arrives_in_the_run(arrived: Arrived) -> None:
    run = arrived.continued_store.only_run
    (row,) = (row for row in run.history if "lens" in row)
    assert run.uploads[row["lens"]["path"]] == (arrived.continued_directory / "lens.png").read_bytes()
    told = json.loads(run.uploads[row["lens_layers"]["path"]])
    record = read_lens_record(arrived.continued_directory)
    assert record is not None
    assert [line[1] for line in told["data"]] == pytest.approx(record.values("readable"))
    assert row == run.history[-1], "behind what the training logged"
    assert (run.state, run.exit_code) == ("finished", 0)


def test_a_continued_training_goes_on_in_its_run(arrived: Arrived) -> None:
    before, run = arrived.store.only_run, arrived.continued_store.only_run
    assert run.name == before.name
    assert run.history[: len(before.history)] == before.history, "no row is lost or written over"
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    epochs = [row["epoch"] for row in run.history if "val/accuracy" in row]
    assert epochs == [record["epoch"] for record in records(arrived.continued_directory)] == [0, 1, 2]
    last = records(arrived.continued_directory)[-1]
    assert run.summary["val/accuracy"] == pytest.approx(last["accuracy"][-1])


@pytest.mark.parametrize(
    ("server", "environment", "said"),
    [
        (WandbServer, {"WANDB_API_KEY": "f" * 40}, "does not know the key.*wandb login"),
        (lambda: WandbServer(read_only=True), {}, "permission denied.*--trainer.logger.entity"),
        (lambda: WandbServer(fault="hangs"), {}, "deadline exceeded"),
    ],
    ids=["wrong key", "a project of others", "a server that hangs"],
)
def test_a_run_that_the_server_refuses_goes_on_offline_and_can_be_sent_later(
    server: Any, environment: dict[str, str], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server() as refusing, caplog.at_level("INFO"):
        patience = 2 if "deadline" in said else 600  # a busy machine may keep a server that answers waiting
        directory = fit(refusing, tmp_path, f"--trainer.logger.init_timeout={patience}", **environment)
        assert not refusing.store.runs
    (message,) = [record.message for record in caplog.records if "going on offline" in record.message]
    assert re.search(said, message, re.DOTALL), message
    (place,) = directory.glob("wandb/offline-run-*")
    assert f"wandb sync {place}" in caplog.text
    if environment:  # once is enough
        with WandbServer() as healthy:
            sync(healthy, tmp_path, place)
            assert_holds_what_the_records_hold(healthy.store.only_run, directory)


@pytest.mark.parametrize("fault", ["errors", "hangs", "dies"])
def test_a_server_that_fails_while_a_run_is_on_costs_no_record(fault: Fault, tmp_path: Path) -> None:
    with WandbServer(fault=fault, fault_when=lambda store: bool(store.runs)) as failing:
        patience = ["--trainer.logger.init_timeout=600", "--trainer.logger.finish_timeout=5"]
        directory = fit(failing, tmp_path, *patience)
        run = failing.store.only_run
        assert failing.failed > 0
        assert (run.state, run.history) == ("running", []), "the server knows the run, and nothing of it"
    assert [record["epoch"] for record in records(directory)] == [0, 1]
    if fault == "dies":  # once is enough
        (place,) = directory.glob("wandb/run-*")
        with WandbServer() as healthy:
            sync(healthy, tmp_path, place)
            assert_holds_what_the_records_hold(healthy.store.only_run, directory)
