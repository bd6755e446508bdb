"""A half-written export never stands under its final name."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import layersim
from layersim.errors import UserError
from layersim.export.destination import check_destination, destination

PACKAGE = str(Path(layersim.__file__).parent)


def write(to: Path, text: str, *, overwrite: bool = False) -> None:
    with destination(to, {"format": text}, overwrite=overwrite) as folder:
        (folder / "weights").write_text(text)
        assert folder.parent == to.parent, "a sibling, so that renaming moves nothing"
        assert not to.exists() or overwrite


def test_the_folder_gets_its_name_with_all_that_was_written(tmp_path: Path) -> None:
    to = tmp_path / "new" / "export"
    write(to, "one")
    assert (to / "weights").read_text() == "one"
    assert json.loads((to / "layersim.json").read_text()) == {"format": "one"}
    assert os.listdir(to.parent) == ["export"]


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    to = tmp_path / "export"
    write(to, "one")
    with pytest.raises(UserError, match=r"export exists and is kept.*--overwrite"):
        write(to, "two")
    assert (to / "weights").read_text() == "one"
    write(to, "two", overwrite=True)
    assert (to / "weights").read_text() == "two"
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link"])
def test_what_is_no_export_is_never_replaced(tmp_path: Path, kind: str) -> None:
    to = tmp_path / "mine"
    if kind == "file":
        to.write_text("mine")
    elif kind == "link":
        to.symlink_to(tmp_path / "nowhere")
    else:
        to.mkdir()
        if kind == "folder":
            (to / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"is no export \(layersim.json is not in it\), so it is kept"):
        write(to, "two", overwrite=True)
    assert os.listdir(tmp_path) == ["mine"]


def test_a_path_may_be_a_string_and_begin_at_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_destination(str(tmp_path / "one"), overwrite=False) == tmp_path / "one"
    with destination("~/exports/one", {}):
        pass
    assert (tmp_path / "exports" / "one" / "layersim.json").read_text() == "{}\n"
    with pytest.raises(UserError, match="exists and is kept"):
        check_destination("~/exports/one", overwrite=False)


def test_a_place_that_cannot_be_written_is_told_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is no folder that may be written"):
        check_destination(tmp_path / "file" / "export", overwrite=False)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"link is no folder that may be written"):
        check_destination(tmp_path / "link" / "deep" / "export", overwrite=False)
    with pytest.raises(UserError, match="path of a new folder"):
        check_destination(Path(".."), overwrite=True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_half_way_leaves_nothing_and_takes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(to: Path, overwrite: bool) -> None:
        with destination(to, {}, overwrite=overwrite) as folder:
            (folder / "weights").write_text("half")
            raise error

    write(tmp_path / "old", "one")
    for name, overwrite in (("new", False), ("old", True)):
        with pytest.raises(error):
            fail(tmp_path / name, overwrite)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old" / "weights").read_text() == "one"


def test_what_was_there_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "export"
    write(to, "one")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        write(to, "two", overwrite=True)
    assert (to / "weights").read_text() == "one"
    assert os.listdir(tmp_path) == ["export"]


def test_a_killed_process_leaves_no_export(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import os, pathlib, signal, sys, types
        for name, path in {{"layersim": {PACKAGE!r}, "layersim.export": {PACKAGE + "/export"!r}}}.items():
            sys.modules[name] = types.ModuleType(name)  # without all that the packages import
            sys.modules[name].__path__ = [path]
        from layersim.export.destination import destination
        with destination(pathlib.Path("export"), {{}}) as folder:
            (folder / "weights").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path)
    assert ended.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".export.")
    assert left.endswith(".partial")
    assert (tmp_path / left / "weights").read_text() == "half", "it was killed while writing"
    write(tmp_path / "export", "whole")
    assert (tmp_path / "export" / "weights").read_text() == "whole"
    assert os.listdir(tmp_path) == ["export"], "what was left is cleared"


@pytest.mark.parametrize(("umask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640)])
def test_what_is_exported_has_the_users_usual_mode(
    tmp_path: Path, umask: int, folder_mode: int, file_mode: int
) -> None:
    """Whatever mode a library writes its files with."""
    before = os.umask(umask)
    try:
        with destination(tmp_path / "export", {}) as folder:
            (folder / "inner").mkdir(mode=0o700)
            (folder / "inner" / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "export", *(tmp_path / "export").rglob("*")]
    }
    assert modes == {
        "export": folder_mode, "inner": folder_mode, "weights": file_mode, "layersim.json": file_mode
    }  # fmt: skip
