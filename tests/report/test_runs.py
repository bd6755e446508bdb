import contextlib
import importlib
import io
import os
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import layersim.report
from layersim.commands.runs import runs as list_runs
from layersim.errors import UserError
from layersim.report.claims import read_arms
from layersim.report.json_report import Report
from layersim.report.records import RECORDS_FILE
from layersim.report.runs import RunsTable, age, find_runs
from tests.report.claims.synthetic import make as make_finished
from tests.report.test_compare import make_run, record

NOW = 1_000_000_000.0
CONFIG = "experiment: digits\nmodel:\n  objective:\n    class_path: layersim.objectives.Aligned\n"
BACKBONE = "  backbone:\n    class_path: layersim.backbones.{}\n    init_args:\n      {}\n"
HEAD = "  head:\n    class_path: layersim.{}Head{}\n"


def make(directory: Path, seconds_ago: float, *records, config: str = CONFIG) -> Path:  # type: ignore[no-untyped-def]
    directory.mkdir(parents=True, exist_ok=True)
    make_run(directory, *records)
    (directory / "config.yaml").write_text(config)
    for path in directory.iterdir():
        os.utime(path, (NOW - seconds_ago, NOW - seconds_ago))
    return directory


def lines(root: Path) -> list[str]:
    console = Console(record=True, width=120, file=io.StringIO())
    with contextlib.chdir(root):
        console.print(RunsTable(find_runs([Path()]), NOW))
    return [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip()]


def test_each_run_has_its_line_the_newest_first(tmp_path: Path) -> None:
    make(tmp_path / "digits/old", 3 * 86400, record(epoch=1), record(effective_depth=2))
    make(
        tmp_path / "digits/new",
        45,
        record(accuracy=[0.5, 0.25], epoch=7),
        record(stage="test", epoch=8),
        config=CONFIG + HEAD.format("Shared", ""),
    )
    make(tmp_path / "started", 7300, config=CONFIG + HEAD.format("Separate", "s"))
    assert lines(tmp_path)[2:] == [
        "digits/new Aligned 7 0.250 45 s",
        "started Aligned + SeparateHeads 2 h",
        "digits/old Aligned 2 0.875 2 of 2 3 d",
    ]


def test_language_models_have_a_perplexity_and_the_others_no_cell_there(tmp_path: Path) -> None:
    assert "perplexity" not in lines(make(tmp_path / "vit", 60, record()).parent)[0]
    make(tmp_path / "gpt", 45, record(unit="tokens", perplexity=[9.0, 8.125]))
    assert lines(tmp_path) == [
        "run objective epoch perplexity accuracy age",
        lines(tmp_path)[1],
        "gpt Aligned 2 8.125 45 s",
        "vit Aligned 2 0.875 60 s",
    ]


@pytest.mark.parametrize(
    ("kind", "options", "shown"),
    [
        ("TimmBackbone", "name: vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        ("TransformersBackbone", "name_or_path: package:minilm/model", "minilm/model"),
        ("TransformersBackbone", "name_or_path: /home/somebody/models/small/bert", "small/bert"),
        ("TransformersBackbone", "config_args: {model_type: gpt2}", "gpt2"),
        ("Own", "depth: 3", "Own"),
    ],
)
def test_the_model_is_named(kind: str, options: str, shown: str, tmp_path: Path) -> None:
    make(tmp_path / "look", 45, record(), config="model:\n" + BACKBONE.format(kind, options))
    assert lines(tmp_path)[0].startswith("run model epoch")
    assert lines(tmp_path)[2] == f"look {shown} 2 0.875 45 s"


def test_what_wandb_keeps_is_no_run_but_runs_may_be_kept_below_a_folder_of_that_name(tmp_path: Path) -> None:
    root = tmp_path / "wandb" / "runs"
    make(root / "a", 45, record())
    make(root / "a" / "wandb" / "run-1" / "files", 45)
    for roots in ([root], [root / "a"], [root, root / "a"]):
        assert [run.directory for run in find_runs(roots)] == [root / "a"]
    assert find_runs([tmp_path]) == []


def resumable(run: Path) -> bool:
    (run / "environment.json").write_text('{"verb": "fit"}')
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    (found,) = find_runs([run])
    return found.resumable


@pytest.mark.parametrize(
    ("trainer", "epoch", "left"),
    [
        ({"max_epochs": 3}, 1, True),
        ({"max_epochs": 3}, 2, False),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 1, False),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, 1, True),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, 3, False),
        ({"max_epochs": 3, "check_val_every_n_epoch": None}, 1, True),
        ({"max_epochs": 3, "check_val_every_n_epoch": 0}, 1, True),
    ],
)
def test_what_can_go_on_is_what_claims_call_unfinished(
    trainer: dict[str, Any], epoch: int, left: bool, tmp_path: Path
) -> None:
    run = make_finished(tmp_path / "run", "aligned", 0, {"accuracy": [0.5] * 4, "epoch": epoch}, **trainer)
    assert resumable(run) == left
    if left:
        with pytest.raises(UserError, match=f"its last validation is of epoch {epoch + 1} of {trainer['max_epochs']}"):
            read_arms({"aligned": [run]})
    else:
        assert [*read_arms({"aligned": [run]}).runs["aligned"]] == ["0"]


def test_a_training_without_a_record_can_go_on(tmp_path: Path) -> None:
    trainer = "trainer:\n  max_epochs: 3\n  check_val_every_n_epoch: 4\n"
    assert resumable(make(tmp_path / "run", 45, config=CONFIG + trainer))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/bert", "bert"),
        ("bert", "bert"),
        ("/models/bert", "models/bert"),
        ("/all/models/bert", "models/bert"),
        ("hf_hub:timm/vit", "timm/vit"),
    ],
)
def test_claims_name_a_model_as_the_list_of_runs_does(name: str, told: str, tmp_path: Path) -> None:
    run = make_finished(tmp_path / "run", "aligned", 0)
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("name_or_path: tiny", f"name_or_path: {name}"))
    assert find_runs([run])[0].model == told
    assert read_arms({"aligned": [run]}).task == f"Digits, {told}, 4 layers"


def test_what_is_broken_is_listed_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = make(tmp_path / "cut", 1, record())
    with (cut / RECORDS_FILE).open("a") as file:
        file.write('{"epoch": 3, "st')
    make(tmp_path / "broken", 1, record(), config="model: [\n")
    runs = {run.directory.name: run for run in find_runs([tmp_path])}
    assert runs["cut"].record == record()
    assert "cut by an interruption" in str(runs["cut"].notice)
    assert runs["broken"].record == record()
    assert runs["broken"].objective == "?"
    assert "expected YAML" in str(runs["broken"].notice)
    list_runs([tmp_path])
    said = capsys.readouterr().out
    assert "cut by an interruption" in said
    assert "expected YAML" in said


def test_what_is_deleted_while_runs_are_looked_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stays", "emptied", "gone"):
        make(tmp_path / name, 45, record())
    walk = os.walk

    def deleting(root: Path, **options: Any) -> Iterator[Any]:
        shutil.rmtree(tmp_path / "gone", ignore_errors=True)  # before it is reached
        yield from walk(root, **options)
        shutil.rmtree(tmp_path / "emptied", ignore_errors=True)  # after it was

    monkeypatch.setattr(os, "walk", deleting)
    assert [run.directory.name for run in find_runs([tmp_path])] == ["stays"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path / "disk" / "one", 45, record())
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "here")
    (tmp_path / "disk" / "latest").symlink_to(tmp_path / "disk" / "one")
    assert len(find_runs([tmp_path / "here"])) == 1
    (tmp_path / "disk" / "a-link").symlink_to(tmp_path / "disk" / "one")
    assert [run.directory.name for run in find_runs([tmp_path / "disk"])] == ["one"]


def test_no_run_and_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_runs([tmp_path])
    assert "No run in" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"expected a directory of runs, got .*absent"):
        list_runs([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_age(seconds: float, said: str) -> None:
    assert age(seconds) == said


def test_a_directory_is_known_by_each_verbs_file(tmp_path: Path) -> None:
    for module in pkgutil.walk_packages(layersim.report.__path__, "layersim.report."):
        importlib.import_module(module.name)
    files = {each.FILE: each.VERB for each in Report.__subclasses__() if each.__module__.startswith("layersim.")}
    for file in files:
        (tmp_path / file).mkdir()
        (tmp_path / file / file).write_text("{}")
    assert {run.directory.name: run.verbs for run in find_runs([tmp_path])} == {
        file: (verb,) for file, verb in files.items()
    }
    assert {"exits", "transfer", "similarity"} <= {*files.values()}
