"""A seed that torch, NumPy or Lightning does not take is refused in one line, by every verb that has one."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from layersim.__main__ import VERBS
from tests import tiny

WITH_SEED = {
    "look": ["look", "run"],
    "lens": ["lens", "--ckpt_path=run"],
    "similarity": ["similarity", "--a=run", "--b=run", "--to=out"],
    "transfer": ["transfer", "--ckpt_path=run", "--to=out"],
    "exits": ["exits", *tiny.FLAGS, "--ckpt_path=run", "--risk=0.5"],
}
DATA_ALONE = {"fit", "validate", "test", "predict", "export"}
"""Verbs whose seeds are the data's and Lightning's `seed_everything`."""


def test_every_verb_with_a_seed_is_here() -> None:
    homes = {verb: import_module(f"layersim.commands.{verb}") for verb in {*VERBS} - DATA_ALONE}
    verbs = {verb: getattr(home, "calibrate_exits" if verb == "exits" else verb) for verb, home in homes.items()}

    assert {verb for verb, function in verbs.items() if "seed" in inspect.signature(function).parameters} == {
        *WITH_SEED
    }


def test_a_seed_out_of_range_is_refused(
    layersim: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layersim("fit", *tiny.FLAGS, "--trainer.limit_train_batches=1").rename(tmp_path / "run")
    capsys.readouterr()
    for seed in (-1, 2**32, 2**62, 10**30):
        for verb, words in WITH_SEED.items():
            layersim(*words, f"--seed={seed}", status=2)
            said = capsys.readouterr().err
            assert said.endswith(f"from 0 to 4294967295, but got {seed}. Change --seed.\n"), (verb, said)
    layersim("validate", *tiny.FLAGS, "--data.seed=-1", status=2)
    assert "but got -1. Change --data.seed." in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "runs"}
