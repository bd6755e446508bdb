"""Files are whole or absent, and what a killed process left is cleared."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from layersim.writing import clear_leftovers, locked, refusal, written_whole

ROOT = Path(__file__).parent.parent


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with written_whole(path) as part:
        part.write_text("new, half")
        assert path.read_text() == "old"
        part.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def write() -> None:
        with written_whole(path) as part:
            part.write_text("new, half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from layersim.writing import written_whole
with written_whole(Path("a")) as part:
    part.write_text("new, half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_old_file_whole_and_the_next_write_clears_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "old"
    (leftover,) = tmp_path.glob(".a.*.part")
    assert leftover.read_text() == "new, half"
    with written_whole(tmp_path / "b") as part:
        part.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_all_is_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "a", []

    def fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append((folder, os.fstat(descriptor).st_size if not folder else -1, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with written_whole(path) as part:
        part.write_text("three")
    assert seen == [(False, 5, False), (True, -1, True)]


def test_leftovers_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, living, folder = tmp_path / ".a.0.part", tmp_path / ".b.1.part", tmp_path / ".c.2.part"
    for path in (dead, living):
        path.touch()
    (folder / "in").mkdir(parents=True)
    with locked(living) as held:
        assert held
        clear_leftovers(tmp_path, ".*.part")
        assert list(tmp_path.iterdir()) == [living]
    with written_whole(tmp_path / "a") as part:
        assert {path.name for path in tmp_path.iterdir()} == {part.name}


def test_two_writers_of_one_file_do_not_clear_each_other(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a") as first:
        first.write_text("first")
        with written_whole(tmp_path / "a") as second:
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"


def test_a_new_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with written_whole(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_names_the_file_and_what_is_lacking(tmp_path: Path) -> None:
    def write(error: OSError) -> str:
        try:
            with written_whole(tmp_path / "a", 1 << 60):
                raise error
        except OSError as raised:
            return refusal(raised)

    told = write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert re.fullmatch(
        rf"The system refuses {tmp_path}/a: No space left on device \(1,152,921,504,606,846,976 bytes are needed, "
        r"[\d,]+ are free\)",
        told,
    )
    told = write(OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / ".a.part")))
    assert told == f"The system refuses {tmp_path}/a: Read-only file system"


LIMITED = """
import resource, sys
from pathlib import Path
from layersim.writing import refusal, written_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with written_whole(Path("a"), 5000) as part:
        part.write_bytes(bytes(5000))
except OSError as error:
    print(refusal(error))
"""


def test_a_limit_on_the_size_of_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    why = "File too large (5,000 bytes are needed, a file may have 1,000: ulimit -f)"
    assert done.stdout == f"The system refuses a: {why}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
