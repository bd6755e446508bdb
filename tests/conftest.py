"""What tests of the command share."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layersim.__main__ import main

SLOW = ("test_sweeps.py", "test_ddp.py", "test_wandb_online.py")
"""Files that start processes of their own and wait for them: begun first, or the last of them would run alone."""


RANKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()  # else the collector walks through all modules and tests, half a second each time
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else Triton calls what it leaves at the end a leak


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOW)


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test finds a W&B key, or leaves a run's directory, its seed or its processes' ranks for the next to find."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    for name in ("LAYERSIM_RUN_DIRECTORY", "PL_GLOBAL_SEED", *RANKS):
        os.environ.pop(name, None)


@pytest.fixture
def layersim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the command in an empty folder; gives the run's directory, where it made one."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, status: int = 0) -> Path:
        before = set(tmp_path.rglob("config.yaml"))
        assert main(args) == status
        made = {path.parent for path in set(tmp_path.rglob("config.yaml")) - before if "wandb" not in path.parts}
        with contextlib.suppress(ValueError):
            (directory,) = made
            return directory
        return tmp_path

    return run
