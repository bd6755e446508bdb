"""A sharded model on two real processes against the whole one on one: the same numbers, whatever is trained."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from layersim.runs.checkpoints import read_checkpoint
from tests.processes import PATIENCE
from tests.sharding.cases import CASES, RESUMED, adam, go_on, train

Found = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
"""A run that goes on is kept elsewhere, as it is compared."""


@dataclass(frozen=True)
class Both:
    """What all cases came to on one process, this one, and on two; and the folder of their runs."""

    one: dict[str, Found]
    two: dict[str, Found]
    home: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    home = tmp_path_factory.mktemp("sharded")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    for rank in range(2):
        environment = os.environ | meeting | {"LOCAL_RANK": str(rank)}
        with (home / f"rank_{rank}.txt").open("w") as said:
            command = [sys.executable, "-m", "tests.sharding", str(home)]
            ranks.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT))
    try:
        one = {name: train(case, home / "one" / name, 1) for name, case in CASES.items()}
        for name, case in RESUMED.items():
            train(case, home / "alone" / name, 1, optimizer=adam())
            one[name] = go_on(case, home / "alone, on" / name, 1, home / "alone" / name / "end.ckpt")
        ended = [rank.wait(PATIENCE) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert ended == [0, 0], (home / "rank_0.txt").read_text()[-4000:]
    return Both(one, {path.stem: torch.load(path, weights_only=True) for path in home.glob("*.pt")}, home)


def check_weights(found: Found, expected: Found) -> None:
    assert found["weights"].keys() == expected["weights"].keys()
    for key, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_a_sharded_training_is_one_processs(both: Both, name: str) -> None:
    """Of plain SGD, whose shares of a step are unequal: losses, gradients, weights; features; what is measured."""
    one, two = both.one[name], both.two[name]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert len(set(one["losses"])) == len(one["losses"]) > 1, "the control: it trains"
    assert two["gradients"].keys() == one["gradients"].keys()
    for key, value in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][key], value, rtol=1e-5, atol=1e-6, msg=key)
    check_weights(two, one)
    torch.testing.assert_close(two["features"], one["features"], rtol=1e-5, atol=1e-5)
    assert torch.equal(two["predictions"], one["predictions"])
    first, second = (json.loads(found["record"]) for found in (one, two))
    for key in ("samples", "step"):
        assert second[key] == first[key]
    for quantity, told in first["quantities"].items():
        values, expected = second["quantities"][quantity]["values"], told["values"]
        exact = quantity in ("saturation", "accuracy", "effective_depth", "best_layer")
        torch.testing.assert_close(
            torch.tensor(values, dtype=torch.float64),
            torch.tensor(expected, dtype=torch.float64),
            rtol=0,
            atol=0 if exact else 1e-5,
            msg=quantity,
        )


@pytest.mark.parametrize("name", CASES)
def test_the_head_is_gathered_once_a_step(both: Both, name: str) -> None:
    """It is of the module's own group (""); a block is gathered forwards and backwards."""
    for step in both.two[name]["counted"]:
        assert step[""] == step[" (gradients)"] == 1
        blocks = {key: count for key, count in step.items() if key and not key.endswith(" (gradients)")}
        assert set(blocks.values()) == {2}
        assert sum("layer" in key or "blocks" in key or ".h." in key for key in blocks) >= 2


@pytest.mark.parametrize("kind", ["file", "folder", "alone"])
@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_go_on_from_any_checkpoint(both: Both, name: str, kind: str) -> None:
    """From two processes' file or folder, or from one process's file, with another learning rate than it tells."""
    two, one = both.two[f"{name}, {kind}"], both.one[name]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    check_weights(two, one)


@pytest.mark.parametrize("name", RESUMED)
def test_one_process_goes_on_from_two(both: Both, name: str, tmp_path: Path) -> None:
    """From a file with the whole model; from a folder with one that is spread over a single process."""
    check_weights(go_on(RESUMED[name], tmp_path / "file", 1, both.home / "file" / name / "end.ckpt"), both.one[name])
    try:
        folder = both.home / "folder" / name / "end.ckpt"
        found = go_on(RESUMED[name], tmp_path / "folder", 1, folder, sharded=True)
    finally:
        distributed.destroy_process_group()
    check_weights(found, both.one[name])


@pytest.mark.parametrize("name", RESUMED)
def test_a_folder_reads_as_a_file_does(both: Both, name: str) -> None:
    file, folder = (read_checkpoint(both.home / kind / name / "end.ckpt") for kind in ("file", "folder"))
    assert folder.keys() == file.keys()
    for key, value in file["state_dict"].items():
        assert torch.equal(folder["state_dict"][key], value)
    shapes = read_checkpoint(both.home / "folder" / name / "end.ckpt", shapes_only=True)["state_dict"]
    assert {key: value.shape for key, value in shapes.items()} == {
        key: value.shape for key, value in file["state_dict"].items()
    }
    assert all(value.is_meta for value in shapes.values())
