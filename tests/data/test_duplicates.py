"""What training and evaluation share by content is told, however rows and files are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from layersim.data import Images, Text
from layersim.data import account as module
from layersim.data.account import contents, tell_duplicates
from tests.data.pictures import encoded, image_folder, parquet, picture


def test_pictures_of_a_folder_under_other_names(tmp_path: Path, infos: pytest.LogCaptureFixture) -> None:
    root = image_folder(tmp_path)
    for number in (20, 22):
        (tmp_path / f"train/dog/copy{number}.png").write_bytes((tmp_path / f"test/cat/{number}.png").read_bytes())
    Images(root, test_split="test").setup()
    assert infos.messages[1:] == ["2 of 6 samples in test are in train too, by their content."]


def test_a_picture_that_may_not_be_read_is_no_duplicate(
    tmp_path: Path, infos: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(tmp_path)
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "00.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    Images(root, val_split="train").setup()
    assert infos.messages[1:] == ["19 of 20 samples in val are in train too, by their content."]


def test_pictures_of_a_table(tmp_path: Path, infos: pytest.LogCaptureFixture) -> None:
    images = [{"bytes": encoded(picture(min(number, 17))), "path": f"{number}.png"} for number in range(20)]
    path = parquet(tmp_path, [0, 1] * 10, images)
    Images(path, train_split="train[:18]", val_split="train[17:]").setup()
    Images(path, train_split="train[:17]", val_split="train[17:]").setup()
    Images(path, train_split="train[:18]", val_split="train[17:]", find_duplicates=False).setup()
    assert [line for line in infos.messages if "too" in line] == [
        "3 of 3 samples in val are in train too, by their content."
    ]


def test_pairs_are_the_same_where_both_texts_are(tmp_path: Path, infos: pytest.LogCaptureFixture) -> None:
    rows = ["text,other,label"] + [f"a{n},b{n},{n % 2}" for n in range(8)]
    rows += ["a0,b0,0", "a0,b1,1", "a1,b1,1", "a,7b7,0"]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    splits = {"train_split": "train[:8]", "val_split": "train[8:]"}
    Text(str(tmp_path / "a.csv"), pair_column="other", tokenizer="bytes", **splits).setup()
    assert infos.messages[1:] == ["2 of 4 samples in val are in train too, by their content."]


def test_what_would_take_long_is_not_read_unless_asked(
    infos: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 5)
    samples = {
        role: contents(pa.chunked_array([words]))
        for role, words in {"train": ["one", "three"], "val": ["one", "four"]}.items()
    }
    tell_duplicates(samples, "sample", wanted=None)
    tell_duplicates(samples, "sample", wanted=True)
    tell_duplicates({"train": samples["train"], "val": contents(pa.chunked_array([["five"]]))}, "sample", wanted=None)
    assert infos.messages == [
        "Whether train and val share samples is not looked for, as 0 GiB would be read: --data.find_duplicates=true "
        "does.",
        "1 of 2 samples in val are in train too, by their content.",
    ]


def test_against_a_count_by_hand(infos: pytest.LogCaptureFixture) -> None:
    generator = np.random.default_rng(0)
    words: Any = [[f"word {n}" for n in generator.integers(0, 400, size)] + [None, ""] for size in (300, 200)]
    tell_duplicates(
        {role: contents(pa.chunked_array([each])) for role, each in zip(("train", "val"), words, strict=True)},
        "text",
        wanted=None,
    )
    expected = sum(word in set(words[0]) - {None, ""} for word in words[1])
    assert 50 < expected < 200
    assert infos.messages == [f"{expected} of 200 texts in val are in train too, by their content."]
