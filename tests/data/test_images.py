"""Images from every kind of local source, slices of them, and what is refused."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from layersim.data import Images
from layersim.data.splits import shared_samples
from layersim.errors import UserError
from tests.data.pictures import (
    BACKBONE,
    NAMES,
    encoded,
    image_folder,
    normalised,
    parquet,
    parquet_folder,
    picture,
    plain,
    saved_to_disk,
    typed,
)


@pytest.mark.parametrize("source", [parquet_folder, image_folder, saved_to_disk])
def test_every_source_gives_the_same_samples(source: Any, tmp_path: Path) -> None:
    data = plain(source(tmp_path), test_split="test")
    assert {name: len(split) for name, split in data.splits.items()} == {"val": 2, "train": 18, "test": 6}
    assert sorted([*data.splits["train"].index, *data.splits["val"].index]) == list(range(20))
    assert sorted(data.splits["val"].labels.tolist()) == [0, 1]  # type: ignore[union-attr]
    assert (data.num_classes, data.class_names) == (2, NAMES)
    (batch,) = data.test_dataloader()
    assert sorted(batch["index"].tolist()) == list(range(6))
    assert batch["position"].tolist() == list(range(6))
    assert (batch["image"].dtype, batch["image"].shape) == (torch.float32, (6, 3, 6, 6))
    # an image folder is read class by class
    rows = [20, 22, 24, 21, 23, 25] if source is image_folder else range(20, 26)
    order = [rows[index] for index in batch["index"]]
    assert batch["label"].tolist() == [number % 2 for number in order]
    expected = torch.stack([normalised(picture(number)) for number in order])
    torch.testing.assert_close(batch["image"].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda data: {"bytes": data, "path": None}, lambda data: data])
def test_a_single_file_with_labels_as_strings(wrap: Any, tmp_path: Path) -> None:
    words = ["dog", "cat"] * 10
    path = parquet(tmp_path, words, [wrap(encoded(picture(number))) for number in range(20)])
    data = plain(path)
    assert data.class_names == NAMES
    train = data.splits["train"]
    assert [NAMES[label] for label in train.labels.tolist()] == [words[row] for row in train.index]  # type: ignore[union-attr]
    sample = train[0]
    torch.testing.assert_close(sample["image"].double(), normalised(picture(sample["index"])), rtol=0, atol=1e-6)


def test_integers_need_no_names(tmp_path: Path) -> None:
    data = Images(parquet(tmp_path, [0, 1, 2, 3] * 10))
    data.setup()
    assert (data.num_classes, data.class_names) == (4, None)


def test_slices_of_splits(tmp_path: Path) -> None:
    data = plain(parquet_folder(tmp_path), train_split="train[:8]", val_split="train[8:]", predict_split="test[:50%]")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 12, "predict": 3}
    whence = {name: (split.source, split.offset) for name, split in data.splits.items()}
    assert whence == {"train": ("train", 0), "val": ("train", 8), "predict": ("test", 0)}
    (batch,) = data.predict_dataloader()
    for image, index in zip(batch["image"], batch["index"], strict=True):
        torch.testing.assert_close(image.double(), normalised(picture(20 + int(index))), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("train", "val", "shared"),
    [
        ("train", "train[:20%]", 4),
        ("train[:50%]", "train[8:12]", 2),
        ("train[:8]", "train[8:]", 0),
        ("train[-10:]", "train[:12]", 2),
        ("train", None, 0),
        ("train+test", None, 0),
        ("train", "test", 0),
    ],
)
def test_slices_know_what_they_share(train: str, val: str | None, shared: int, tmp_path: Path) -> None:
    splits = plain(parquet_folder(tmp_path), train_split=train, val_split=val).splits
    assert shared_samples(splits["train"], splits["val"]) == shared


@pytest.mark.parametrize("train", ["train+test", "train[:8]+test", "all"])
def test_what_a_join_of_splits_shares_is_not_known(train: str, tmp_path: Path) -> None:
    splits = plain(parquet_folder(tmp_path), train_split=train, val_split="test").splits
    assert (len(splits["train"]), len(splits["val"])) == ({"train[:8]+test": 14}.get(train, 26), 6)
    with pytest.raises(UserError, match=r"joins several splits: name one split"):
        shared_samples(splits["train"], splits["val"])


def test_a_broken_image_of_a_slice_is_told_by_its_row_of_the_split(tmp_path: Path) -> None:
    images = [{"bytes": encoded(picture(number)), "path": None} for number in range(6)]
    images[4]["bytes"] = b"no image"
    data = plain(parquet(tmp_path, [0, 1] * 3, images), train_split="train[:2]", val_split="train[2:]")
    with pytest.raises(UserError, match="row 4 of split train: no image that can be read"):
        data.splits["val"][2]


def test_subsets_are_drawn_by_the_seed(tmp_path: Path) -> None:
    def chosen(**options: Any) -> list[list[int]]:
        data = Images(parquet_folder(tmp_path), max_train_samples=5, max_eval_samples=1, **options)
        data.setup()
        return [data.splits[name].index.tolist() for name in ("train", "val")]

    train, val = chosen()
    assert (len(set(train)), len(val), set(train) & set(val)) == (5, 1, set())
    assert chosen() == [train, val]
    assert chosen(seed=1) != [train, val]


def test_predicting_needs_no_labels(tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": typed(0, 20), "new": typed(0, 3).remove_columns("label")})
    splits.save_to_disk(tmp_path)
    data = plain(str(tmp_path), predict_split="new")
    (batch,) = data.predict_dataloader()
    assert sorted(batch) == ["image", "index", "position"]
    with pytest.raises(
        UserError,
        match=r"there is no column label, the data has image \(of a folder of images .*: change --data\.label_column",
    ):
        plain(str(tmp_path), val_split="new")


def test_samples_are_refused_before_the_backbone_is_known(tmp_path: Path) -> None:
    data = Images(parquet_folder(tmp_path))
    data.setup()
    with pytest.raises(UserError, match=r"call check\(backbone\) before reading"):
        data.splits["train"][0]


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere.parquet"])
def test_local_paths_that_do_not_exist(path: str) -> None:
    with pytest.raises(UserError, match=rf"there is no file or folder {path}: change --data\.path"):
        Images(path).setup()


def test_sources_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty cannot be read as a data set: .* Change --data\.path"):
        Images(str(tmp_path / "empty")).setup()
    (tmp_path / "notes.docx").touch()
    with pytest.raises(UserError, match=r"a folder or a file of \.parquet, .* got .*notes\.docx: change --data\.path"):
        Images(str(tmp_path / "notes.docx")).setup()

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("layersim.data.sources.load_dataset_builder", unreachable)
    with pytest.raises(
        UserError, match=r"the hub did not give it: Couldn't reach.* set --data\.path to a local folder"
    ):
        Images("someone/something-v1.5").setup()


@pytest.mark.parametrize("source", [parquet_folder, saved_to_disk])
def test_unknown_splits_list_those_there_are(source: Any, tmp_path: Path) -> None:
    path = source(tmp_path)
    with pytest.raises(UserError, match=r"has no split held.*train.*test.*--data\.val_split"):
        Images(path, val_split="held").setup()


def test_a_saved_single_data_set_is_its_train_split(tmp_path: Path) -> None:
    typed(0, 20).save_to_disk(tmp_path / "one")
    assert len(plain(str(tmp_path / "one")).splits["train"]) == 18
    with pytest.raises(UserError, match=r"has no split test, only train: change --data\.test_split"):
        Images(str(tmp_path / "one"), test_split="test").setup()


def test_missing_columns_list_those_there_are(tmp_path: Path) -> None:
    path = parquet_folder(tmp_path)
    with pytest.raises(UserError, match=r"no column img, the data has image, label: change --data\.image_column"):
        Images(path, image_column="img").setup()
    with pytest.raises(UserError, match=r"no column y, the data has image, label: change --data\.label_column"):
        Images(path, label_column="y").setup()
    with pytest.raises(UserError, match=r"column label holds no images: .* Change --data\.image_column"):
        Images(path, image_column="label").setup()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.5] * 10, r"but column label holds double such as 0\.5: change --data\.label_column"),
        ([0, None] * 10, r"column label has 10 rows without a label"),
        (["a"] * 19 + ["b"], r"cannot hold out 2 of 20 .* Change --data\.val_fraction or --data\.val_split"),
    ],
)
def test_labels_that_are_none(labels: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Images(parquet(tmp_path, labels)).setup()


def test_other_splits_must_know_the_same_classes(tmp_path: Path) -> None:
    parquet(tmp_path, ["cat", "dog"] * 10)
    parquet(tmp_path, ["dog", "emu"], name="test.parquet")
    with pytest.raises(UserError, match="the classes are cat, dog in training, but another split has emu"):
        Images(str(tmp_path), test_split="test").setup()
    renamed = typed(0, 4).cast_column("label", datasets.ClassLabel(names=NAMES[::-1]))
    datasets.DatasetDict({"train": typed(0, 20), "test": renamed}).save_to_disk(tmp_path / "disk")
    with pytest.raises(UserError, match=r"\['cat', 'dog'\] in training, but \['dog', 'cat'\] in another split"):
        Images(str(tmp_path / "disk"), test_split="test").setup()


def test_bytes_that_are_no_image(tmp_path: Path) -> None:
    data = Images(parquet(tmp_path, [0, 1] * 10, [b"no image"] * 20))
    with pytest.raises(
        UserError, match=r"row \d+ of split train: no image that can be read: cannot identify image file\. "
    ):
        data.check(BACKBONE)


@pytest.mark.parametrize("option", ["max_train_samples", "max_eval_samples"])
def test_limits_below_one_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=rf"{option} must be at least 1, got 0"):
        Images("some/where", **{option: 0})


def test_fractions_out_of_range_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"val_fraction above 0 and below 1, but got 1\.0\. Change --data\.val_fraction"
    ):
        Images("some/where", val_fraction=1.0)
