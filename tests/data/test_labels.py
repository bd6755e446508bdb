"""Labels alike in images and texts: what is taken for one, and what it means to have none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layersim.data import Images, SplitDataModule, Text
from layersim.errors import UserError
from tests.data.pictures import CONFIG, NAMES, encoded, image_folder, picture

BACKBONE = SimpleNamespace(num_classes=2, input_size=None, data_config=CONFIG)
WORDS = ["cat", "dog"] * 10


def columns(labels: Any) -> dict[str, Any]:
    images = [encoded(picture(number)) for number in range(len(labels))]
    return {"image": images, "text": ["a"] * len(labels), "label": labels}


def made(kind: type[Images] | type[Text], folder: Path, labels: Any, predict: Any = None, **options: Any) -> Any:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns(labels)), folder / "train.parquet")
    if predict is not None:
        pq.write_table(pa.table(columns(predict)), folder / "test.parquet")
        options["predict_split"] = "test"
    data = kind(str(folder), **({"tokenizer": "bytes"} if kind is Text else {}), **options)  # type: ignore[arg-type]
    data.setup()
    return data


both = pytest.mark.parametrize("kind", [Images, Text])


@both
@pytest.mark.parametrize(
    ("labels", "predict"),
    [
        ([0, 1] * 10, [-1, -1, -1]),
        ([0, 1] * 10, pa.array([None] * 3, pa.int64())),
        ([0, 1] * 10, pa.array([None] * 3)),
        ([0, 1] * 10, ["?", "?", "?"]),
        (WORDS, [-1, -1, -1]),
        (WORDS, ["", "", "?"]),
        (WORDS, pa.array([None] * 3, pa.string())),
    ],
)
def test_a_split_without_labels_predicts(
    kind: Any, labels: Any, predict: Any, tmp_path: Path, infos: pytest.LogCaptureFixture
) -> None:
    data = made(kind, tmp_path, labels, predict)
    data.check(BACKBONE)
    (batch,) = data.predict_dataloader()
    assert "label" not in batch
    assert sorted(batch["index"].tolist()) == [0, 1, 2]
    assert infos.messages[0].endswith("; 3 samples in predict (test, without labels).")


@both
@pytest.mark.parametrize(
    ("labels", "predict"), [([0, 1] * 10, [1, -1, 0]), ([0, 1] * 10, [1, None, 0]), (WORDS, ["dog", None, "cat"])]
)
def test_a_split_with_some_labels_keeps_those(
    kind: Any, labels: Any, predict: Any, tmp_path: Path, infos: pytest.LogCaptureFixture
) -> None:
    data = made(kind, tmp_path, labels, predict)
    data.check(BACKBONE)
    (batch,) = data.predict_dataloader()
    assert batch["label"][batch["index"].argsort()].tolist() == [1, -1, 0]
    assert infos.messages[0].endswith("; 3 samples in predict (test, 1 without a label).")


@both
@pytest.mark.parametrize("labels", [[0, 1, -1, 0, 1] * 4, [-1] * 20])
@pytest.mark.parametrize("role", ["train", "val", "test"])
def test_only_the_predict_split_may_hide_labels(kind: Any, labels: Any, role: str, tmp_path: Path) -> None:
    splits = {"train_split": "train", "val_split": "train", f"{role}_split": "test"}
    data = made(kind, tmp_path, [0, 1] * 10, labels, **splits)
    with pytest.raises(UserError, match=rf"labels must lie in 0..1, but the {role} data has -1, .* only the predict"):
        data.check(BACKBONE)


@both
@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([True, False] * 10, "labels true and false taken as 1 and 0"),
        ([1.0, 0.0] * 10, "labels of whole floats taken as integers"),
        (pa.array(np.array([1, 0] * 10, np.float16)), "labels of whole floats taken as integers"),
        (pa.array([1, 0] * 10, pa.uint64()), ""),
    ],
)
def test_numbers_of_other_types_are_taken_and_told(
    kind: Any, labels: Any, note: str, tmp_path: Path, infos: pytest.LogCaptureFixture
) -> None:
    data: SplitDataModule = made(kind, tmp_path, labels)
    taken = data.splits["train"].labels
    assert taken is not None
    assert taken.dtype == np.int64
    assert taken.tolist() == [1 - row % 2 for row in data.splits["train"].index]
    assert infos.messages[0].startswith(
        f"Data: 1 parquet file in {tmp_path}; 18 samples in train{note and f' ({note})'}; "
    )


@both
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.5] * 10, r"column label holds double such as 1\.5"),
        ([0.0, float("nan")] * 10, "column label holds double such as nan"),
        ([0.0, float("inf")] * 10, "column label holds double such as inf"),
        ([0.0, 1e300] * 10, r"column label holds double such as 1e\+300"),
        (pa.array([0, 2**63] * 10, pa.uint64()), "column label holds no labels: Integer value 9223372036854775808"),
        ([[0], [1]] * 10, "column label holds list<"),
        ([b"a", b"b"] * 10, "column label holds binary"),
    ],
)
def test_what_is_no_label(kind: Any, labels: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message + r".*--data\.label_column$"):
        made(kind, tmp_path, labels)
    with pytest.raises(UserError, match=message):
        made(kind, tmp_path, [0, 1] * 10, labels)


@both
def test_strings_where_training_has_integers(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the classes are integers in training, but another split has cat, dog"):
        made(kind, tmp_path, [0, 1] * 10, WORDS, val_split="test")


@pytest.mark.parametrize("below", ["", "unsorted"])
def test_plain_pictures_beside_training_in_folders(below: str, tmp_path: Path) -> None:
    """Training keeps its classes, whether or not anything is predicted; no folder of theirs becomes one."""
    (tmp_path / "made").mkdir()
    root = Path(image_folder(tmp_path / "made"))
    for path in sorted((root / "test").rglob("*.png")):
        (root / "test" / below).mkdir(exist_ok=True)
        path.rename(root / "test" / below / path.name)
    for options in ({}, {"predict_split": "test"}):
        data = Images(str(root), **options)
        data.check(BACKBONE)
        assert data.class_names == NAMES
        labels = data.splits["train"].labels
        assert labels is not None
        assert labels.tolist() == [int(row >= 10) for row in data.splits["train"].index]
    (batch,) = data.predict_dataloader()
    assert "label" not in batch
    assert batch["image"].shape == (6, 3, 6, 6)
    with pytest.raises(
        UserError, match=r"the classes are cat, dog in training, but another split has .* change --data"
    ):
        Images(str(root), test_split="test").setup()


def test_a_split_may_have_fewer_folders_than_training(tmp_path: Path) -> None:
    root = Path(image_folder(tmp_path))
    for path in (root / "test/cat").iterdir():
        path.unlink()
    data = Images(str(root), test_split="test")
    data.setup()
    labels = data.splits["test"].labels
    assert labels is not None
    assert labels.tolist() == [1, 1, 1]


@both
def test_data_without_labels_are_measured_and_not_trained_on(kind: Any, tmp_path: Path) -> None:
    data = made(kind, tmp_path, WORDS, label_column=None, val_split="train", find_duplicates=False)
    data.check(BACKBONE)
    assert [split.labels for split in data.splits.values()] == [None, None]
    batches = [*data.val_dataloader()]
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == [*range(20)]
    assert not [batch for batch in batches if "label" in batch]
    with pytest.raises(UserError, match=r"only measured: set --data\.val_split, or --data\.label_column"):
        kind(str(tmp_path), label_column=None)
