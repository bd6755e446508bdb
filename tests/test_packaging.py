"""What is published: a wheel with all that runs and nothing else, made from a source archive that suffices."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from layersim.commands.recipes import named

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, to: Path) -> Path:
    words = [sys.executable, "-c", BUILD, f"build_{kind}", str(to)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, of a copy of the checkout, and the wheel, of the unpacked archive."""
    place = tmp_path_factory.mktemp("archives")
    (place / "checkout").mkdir()
    for file in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(file, place / "checkout")
    for folder in ("layersim", "callbacks", "experiments", "docs", "tests"):
        shutil.copytree(ROOT / folder, place / "checkout" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = build("sdist", place / "checkout", place)
    with tarfile.open(source) as archive:
        archive.extractall(place, filter="data")
    return source, build("wheel", place / source.name.removesuffix(".tar.gz"), place)


def test_the_wheel_holds_what_runs_and_nothing_else(archives: tuple[Path, Path]) -> None:
    held = set(zipfile.ZipFile(archives[1]).namelist())
    own = {
        path.relative_to(ROOT).as_posix()
        for folder in ("layersim", "callbacks")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    place = next(name.partition("/")[0] for name in held if ".dist-info/" in name)
    assert {name for name in held if not name.startswith(place)} == own | {
        f"layersim/recipes/{path.relative_to(ROOT / 'experiments').as_posix()}" for path in named().values()
    }
    assert f"{place}/licenses/LICENSE" in held
    assert {"layersim/py.typed", "layersim/report/page/page.js", "layersim/recipes/vision/digits/aligned.yaml"} <= held


def test_the_metadata_say_how_it_may_be_used(archives: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(archives[1])
    (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("METADATA"))
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.11", f"Version: {PROJECT['version']}"):
        assert line in metadata
    assert "Project-URL" not in metadata, "links are by relative files only"
    newest = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3" in line]
    assert newest == ["3.11", "3.12", "3.13"]


def test_the_source_archive_can_be_tested(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "README.md", "setup.py", "tests/test_packaging.py", "docs/extend.md"} <= held


def test_an_index_would_take_both(archives: tuple[Path, Path]) -> None:
    pytest.importorskip("twine", reason="needs the extra `dev`")
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *archives], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_all_files_tell_one_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert re.findall(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == PROJECT["version"]


@pytest.mark.skipif(not os.environ.get("LAYERSIM_LONG"), reason="`make test-long`: a new environment")
def test_the_wheel_works_where_no_checkout_is(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """Its dependencies are those of this environment, its own files the wheel's."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "new"], check=True)
    python = tmp_path / "new/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", archives[1]], check=True)
    (site,) = (tmp_path / "new").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(next(path for path in sys.path if Path(path, "torch").is_dir()))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"WANDB_MODE": "disabled"}

    def run(*words: str) -> str:
        command = [tmp_path / "new/bin/layersim", *words]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version") == f"layersim {PROJECT['version']}\n"
    assert "digits/aligned\n" in run("recipes")
    limits = [f"--trainer.limit_{stage}_batches=2" for stage in ("train", "val")]
    run("fit", "--config", "recipe:digits/aligned", "--trainer.max_epochs=1", *limits)
    run("sweep", "recipe:sweeps/objectives", "--check")
    (directory,) = (tmp_path / "runs/digits/aligned").iterdir()
    for written in ("report.html", "layers.jsonl", "figures/val-cka-epoch-0000.png", "checkpoints/last.ckpt"):
        assert (directory / written).is_file(), written
