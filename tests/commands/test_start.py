"""A run's first screen, how long an epoch takes, and the commands that are worth typing when it has ended."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning.pytorch import Trainer

from layersim.__main__ import main
from layersim.commands import start
from layersim.commands.screens import print_facts
from layersim.commands.start import EpochTime, exits_command, start_facts
from layersim.report.runs import find_runs
from tests import tiny

Command = Callable[..., Path]


def test_a_training_begins_with_one_screen_and_ends_with_commands_that_run(
    layersim: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    more = ["--model.freeze=backbone", "--model.head=SeparateHeads", "--seed_everything=3", "--data.batch_size=100"]
    run = layersim("fit", *tiny.FLAGS, *more)
    said = capsys.readouterr().out
    first = said.partition("validate,")[0]
    assert max(map(len, first.splitlines())) <= 80
    facts = {line[:9].strip(): line[9:] for line in first.splitlines() if line[:9].strip()}
    assert [*facts] == ["Train", "Data", "Size", "Seed", "Kept in", "Time"]
    assert facts["Data"] == "Digits: 1,437 samples in train, 360 in val; 10 classes; batches of 100"
    backbone = sum(each.numel() for each in tiny.backbone().parameters())
    heads = 2 * (16 * 10 + 10)  # the last layer's is the backbone's own
    expected = f"{backbone + heads:,} parameters, {heads:,} of them trained; on cpu, precision 32-true"
    assert facts["Size"] == expected
    assert (facts["Seed"], facts["Kept in"]) == ("3", str(run.relative_to(Path.cwd())))
    assert re.match(r"an epoch takes about \d+ s, with its validation \(the first one did\)", facts["Time"])
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("  layersim")]
    assert [words[1] for words in commands] == ["exits", "lens"]
    assert main(["exits", *commands[0][2:], "--measure_speed=false", "--trainer.logger=false"]) == 0
    assert Path(commands[1][2].removeprefix("--ckpt_path=")).is_file()
    (run / "lens.json").touch()
    listed = {each.directory.name: (each.verbs, each.resumable) for each in find_runs([Path("runs")])}
    assert listed.pop(run.name) == (("fit", "lens"), False)
    assert [*listed.values()] == [(("exits",), False)]


def test_a_stopped_training_can_go_on_and_the_list_says_so_at_80_columns(
    layersim: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = layersim("fit", *tiny.FLAGS, "--trainer.limit_train_batches=2")
    config = run / "config.yaml"  # as if it had been stopped after the first of two epochs
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 2"))
    place = str(run.relative_to(Path.cwd()))
    assert "\nWeights" not in capsys.readouterr().out, "which are those that it trained"
    measured = layersim("validate", *tiny.FLAGS[:-4], "--trainer.logger=false", f"--experiment={'long' * 9}")
    assert "\nWeights  random: nothing is trained yet\n" in capsys.readouterr().out
    layersim("export", *tiny.FLAGS[:-4], "--to=exported")
    assert capsys.readouterr().out.startswith("Weights  random: nothing is trained yet\n")
    layersim("export", f"--ckpt_path={run}", "--to=trained")
    assert "Weights" not in capsys.readouterr().out
    capsys.readouterr()
    for columns in ("80", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["runs"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert f"  {place}  (can go on)" in lines
        assert f"  {measured.relative_to(Path.cwd())}" in lines
        table = [line for line in lines[:-1] if not line.startswith("  ")]
        assert max(len(line.rstrip()) for line in table) <= int(columns)
    assert lines[-1].endswith("layersim fit --resume=RUN")
    monkeypatch.setenv("COLUMNS", "160")
    main(["runs"])
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if place in line]
    assert (row[0], row[1], row[-1]) == (place, "fit", "can")


def test_what_is_measured_is_told_in_short(layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    layersim("test", *tiny.FLAGS[:-4], "--trainer.logger=false", "--data.test_fraction=0.1")
    said = capsys.readouterr().out
    assert said.startswith("Measure  TimmBackbone vit_tiny_patch16_224, 3 layers")
    assert "Digits: 180 samples in test; 10 classes\n" in said
    assert "Time" not in said
    assert "layersim exits" not in said, "there is no checkpoint"


def test_the_other_processes_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start.rank_zero_only, "rank", 1)
    config = {"model": {"backbone": {"class_path": "x.Own"}}}
    with start.told("fit", tiny.module(), tiny.digits(), cast(Trainer, None), config):
        pass
    EpochTime()._tell(cast(Trainer, SimpleNamespace(max_epochs=1, max_steps=-1, current_epoch=0)), 3.0, "")
    assert capsys.readouterr().out == ""


def test_an_epoch_is_estimated_from_its_first_seconds_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, *(10.0 + 2 * step for step in range(6)), 99.0])  # the first step takes 10 s, each other one 2
    monkeypatch.setattr(start.time, "monotonic", lambda: next(clock))
    trainer: Any = SimpleNamespace(num_training_batches=50, max_epochs=4, max_steps=-1, current_epoch=0)
    call = EpochTime()
    call.on_train_epoch_start(trainer, tiny.module())
    for _ in range(6):
        call.on_train_batch_end(trainer, tiny.module())
    call.on_train_epoch_end(trainer, tiny.module())
    said = " ".join(capsys.readouterr().out.split())
    assert said == (
        "Time an epoch takes about 100 s, without its validation (3 of its 50 steps took 6 s); 4 epochs about 6 min."
    )


def test_facts_of_what_has_few(tmp_path: Path) -> None:
    data = tiny.digits()
    data.setup()
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, barebones=True)
    facts = start_facts("fit", tiny.module(), data, trainer, {"model": {"backbone": {"class_path": "mine.Own"}}})
    assert facts["Train"] == "Own, 3 layers; objective Aligned, head SharedHead"
    assert (facts["Weights"], facts["Seed"], facts["Kept in"]) == ("", "", "")


@pytest.mark.parametrize(("samples", "risk"), [(10_000, "0.01"), (360, "0.02"), (100, "0.05"), (30, None)])
def test_the_risk_that_is_proposed_can_be_promised(samples: int, risk: str | None) -> None:
    commands = [*exits_command("a.ckpt", samples).values()]
    assert commands == ([] if risk is None else [["layersim", "exits", "--ckpt_path=a.ckpt", f"--risk={risk}"]])


def test_paths_come_out_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    print_facts({"Kept in": "/a-long/" * 12, "Note": ["many words " * 6, ""], "Left out": ""})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Kept in  " + "/a-long/" * 12 or lines[1].strip() == "/a-long/" * 12
    assert "Left out" not in "\n".join(lines)
    assert max(len(line) for line in lines if "long" not in line) <= 50
