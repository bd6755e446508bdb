"""A sharded model on two real processes against the whole one on one: the same numbers, whatever is trained."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import PATIENCE
from tests.sharding.cases import CASES, train

Found = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def pair(home: Path) -> tuple[dict[str, Found], dict[str, Found]]:
    """What all cases came to on one process, this one, and on two."""
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
        ended = [rank.wait(PATIENCE) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert ended == [0, 0], (home / "rank_0.txt").read_text()[-4000:]
    return one, {name: torch.load(home / f"{name}.pt", weights_only=True) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_sharded_training_is_one_processs(pair: tuple[dict[str, Found], dict[str, Found]], name: str) -> None:
    """Of plain SGD, whose shares of a step are unequal: losses, gradients, weights; features; what is measured."""
    one, two = (found[name] for found in pair)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert len(set(one["losses"])) == len(one["losses"]) > 1, "the control: it trains"
    for what in ("gradients", "weights"):
        assert two[what].keys() == one[what].keys()
        for key, value in one[what].items():
            torch.testing.assert_close(two[what][key], value, rtol=1e-5, atol=1e-6, msg=f"{what} of {key}")
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
def test_the_head_is_gathered_once_a_step(pair: tuple[dict[str, Found], dict[str, Found]], name: str) -> None:
    """It is of the module's own group (""); a block is gathered forwards and backwards."""
    for step in pair[1][name]["counted"]:
        assert step[""] == step[" (gradients)"] == 1
        blocks = {key: count for key, count in step.items() if key and not key.endswith(" (gradients)")}
        assert set(blocks.values()) == {2}
        assert sum("layer" in key or "blocks" in key or ".h." in key for key in blocks) >= 2
