"""What processes must have alike, as one process tells it; two machines that differ are in `tests/test_machines.py`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer

from layersim.data import Images, SplitDataModule
from layersim.errors import UserError
from layersim.runs import processes
from tests import tiny
from tests.data.pictures import BACKBONE, typed


def told(data: SplitDataModule, **options: Any) -> processes.Facts:
    data.setup()
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", **options)
    trainer.datamodule = data  # type: ignore[attr-defined]
    return processes.facts(trainer, tiny.module())


def differing(one: processes.Facts, other: processes.Facts) -> set[str]:
    return {name for name in {**one, **other} if one.get(name) != other.get(name)}


def test_the_same_is_told_twice() -> None:
    assert told(tiny.digits()) == told(tiny.digits())
    assert {"package torch", "code of layersim", "train data", "number of val samples"} <= told(tiny.digits()).keys()


@pytest.mark.parametrize(
    ("data", "options", "names"),
    [
        ({"seed": 1}, {}, {"--data.seed", "train data", "val data"}),
        ({"max_train_samples": 100}, {}, {"train data", "number of train samples"}),
        ({}, {"max_epochs": 3}, {"--trainer.max_epochs"}),
        ({"batch_size": 7, "eval_batch_size": 64}, {}, {"--data.batch_size"}),  # then steps would overlap
        ({"num_workers": 1}, {}, set()),
    ],
)
def test_what_differs_is_told_by_name(data: dict[str, Any], options: dict[str, Any], names: set[str]) -> None:
    assert differing(told(tiny.digits()), told(tiny.digits(**data), **options)) == names


def test_streams_of_other_files_or_rows_are_told(tmp_path: Path) -> None:
    def facts(folder: str, files: int, start: int = 0) -> processes.Facts:
        (tmp_path / folder).mkdir()
        for number in range(files):
            typed(start + number, 4).to_parquet(tmp_path / folder / f"train-{number}.parquet")
        typed(20, 6).to_parquet(tmp_path / folder / "test.parquet")
        data = Images(str(tmp_path / folder), streaming=True, val_split="test", train_transforms=[], eval_transforms=[])
        data.check(BACKBONE)
        return told(data)

    first = facts("first", 3)
    assert not differing(first, facts("alike", 3))
    assert differing(first, facts("fewer", 2)) == {"number of files of the stream"}
    assert differing(first, facts("other", 3, start=1)) == {"train data"}


def test_a_pixel_that_differs_is_seen() -> None:
    data = tiny.digits()
    before = told(data)
    pixels = data.splits["train"].inputs(0)["image"]
    data.splits["train"].inputs = lambda place: {"image": pixels + (place == 0)}  # type: ignore[method-assign, attr-defined]
    assert "train data" in differing(before, told(data))


def test_code_and_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = told(tiny.digits())
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setitem(processes.sys.modules, "callbacks", SimpleNamespace(__file__=str(tmp_path / "__init__.py")))  # type: ignore[attr-defined]
    processes._code.cache_clear()
    assert differing(before, told(tiny.digits())) == {"--seed_everything", "code of layersim"}
    processes._code.cache_clear()


def test_the_machine_that_differs_is_named() -> None:
    processes.require_agreement({0: ("here", {"seed": "1"}), 1: ("there", {"seed": "1"})})
    machines = {0: ("here", {"seed": "1"}), 1: ("there", {"seed": "1"}), 2: ("yonder", {"seed": "1", "model": "big"})}
    with pytest.raises(UserError, match="rank 2 on yonder has another model than rank 0 on here: big, and none"):
        processes.require_agreement(machines)
