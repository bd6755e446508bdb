"""What the parser reads, whatever came before it."""

from pathlib import Path
from typing import Union

import pytest
import yaml

from layersim.__main__ import main
from layersim.commands.parser import Parser, call
from layersim.commands.sweep_check import Parsed
from layersim.errors import UserError
from tests import tiny


def test_a_whole_number_stays_one_in_any_order_of_types() -> None:
    parser = Parser()
    for name, kind in {"one": Union[float, int], "other": Union[int, float]}.items():  # noqa: UP007 - Python's cache
        parser.add_argument(f"--{name}", type=kind, default=0)
        for typed, meant in {"1": 1, "1.0": 1.0, "0.5": 0.5}.items():
            found = parser.parse_args([f"--{name}={typed}"])[name]
            assert (type(found), found) == (type(meant), meant)


def test_an_enumerations_default_is_written_as_its_text() -> None:
    """As that of Lightning's Timer, in the configuration that a run keeps."""
    timer = ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:10:00"]
    read = Parsed(["fit", *tiny.FLAGS, *timer])
    (written,) = yaml.safe_load(read.parser.dump(read.config))["fit"]["trainer"]["callbacks"][-1:]
    options = {"duration": "00:00:10:00", "interval": "step", "verbose": True}
    assert written == {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": options}


def test_a_list_of_paths_is_of_directories_patterns_being_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a sweep leaves them: `trial-001/output.log` beside the run, which `trial-001/*` names too."""
    monkeypatch.chdir(tmp_path)
    for trial in ("t1/a", "t1/b", "t2/c", "run[1]", "run1"):
        Path(trial).mkdir(parents=True)
    for log in ("t1/output.log", "t2/output.log"):
        Path(log).touch()

    def of(run: list[Path]) -> list[str]:
        return [*map(str, run)]

    passed = "Passed over, being no directory: {} paths, such as t1/output.log.\n"
    for typed, found, told in (
        (["t1/*"], ["t1/a", "t1/b"], passed.format("1 of 3")),  # in quotes
        (["t1/a", "t1/b", "t1/output.log"], ["t1/a", "t1/b"], passed.format("1 of 3")),  # as the shell gives it
        (["t?/*"], ["t1/a", "t1/b", "t2/c"], passed.format("2 of 5")),
        (["run[1]"], ["run[1]"], ""),
        (["run[12]"], ["run1"], ""),
        (["t1/output.log"], ["t1/output.log"], ""),  # nothing else is left: the verb itself says what it is
        (["t1/a", "none/*"], ["t1/a", "none/*"], ""),
    ):
        assert call(of, typed) == found
        assert capsys.readouterr().out == told


@pytest.mark.parametrize("verb", ["compare", "claims", "runs"])
def test_verbs_that_take_runs_say_of_a_file_what_it_is(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log := tmp_path / "output.log").touch()
    for given in (log, tmp_path / "*.log"):
        assert main([verb, *(["--standard"] if verb == "claims" else []), str(given)]) == 2
        told = capsys.readouterr().err
        assert f"{log}, which is no" in told
        assert told.startswith("layersim: error: --standard: ") == (verb == "claims")


def test_paths_that_are_left_over_may_come_from_a_pattern(tmp_path: Path) -> None:
    def one(run: Path) -> Path:
        return run

    for name in ("a", "b"):
        (tmp_path / name).touch()
    hint = "One path is taken: does a pattern match several?"
    with pytest.raises(UserError, match=rf"(?i)unrecognized arguments: {tmp_path}/b\. {hint[:-1]}"):
        call(one, [f"{tmp_path}/a", f"{tmp_path}/b"])
    with pytest.raises(UserError, match=rf"(?i)unrecognized arguments: {tmp_path}/c\.$"):
        call(one, [f"{tmp_path}/a", f"{tmp_path}/c"])
    with pytest.raises(UserError, match=r"(?i)unrecognized arguments: x+\.$"):
        call(one, [f"{tmp_path}/a", "x" * 300])  # longer than a name can be
