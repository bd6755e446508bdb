"""Images from every kind of local source, and what becomes of a pixel on its way to the backbone."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import jsonargparse
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm.data
import torch
from torchvision.transforms import v2

from layersim.data import Images
from layersim.data.pixels import Preprocessing, evaluation_transforms, to_image
from layersim.data.splits import shared_samples
from layersim.errors import UserError

NAMES = ["cat", "dog"]
CONFIG = {
    "input_size": (3, 6, 6),
    "mean": (0.5, 0.25, 0.0),
    "std": (0.5, 0.25, 1.0),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
BACKBONE = SimpleNamespace(num_classes=2, input_size=(3, 6, 6), data_config=CONFIG)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(number: int, size: int = 6) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8))


def encoded(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def rows(start: int, count: int) -> dict[str, list[Any]]:
    """Pictures start … start + count − 1, odd ones dogs."""
    return {
        "image": [picture(number) for number in range(start, start + count)],
        "label": [number % 2 for number in range(start, start + count)],
    }


def typed(start: int, count: int) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict(rows(start, count), features)


def parquet(folder: Path, labels: list[Any], images: list[Any] | None = None, name: str = "train.parquet") -> str:
    """A file without any of Hugging Face's own description of it."""
    if images is None:
        images = [{"bytes": encoded(picture(number)), "path": None} for number in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), folder / name)
    return str(folder / name)


def parquet_folder(root: Path) -> str:
    for name, start, count in (("train", 0, 20), ("test", 20, 6)):
        typed(start, count).to_parquet(root / f"{name}.parquet")
    return str(root)


def image_folder(root: Path) -> str:
    for name, start, count in (("train", 0, 20), ("test", 20, 6)):
        for number in range(start, start + count):
            folder = root / name / NAMES[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture(number).save(folder / f"{number:02}.png")
    return str(root)


def saved_to_disk(root: Path) -> str:
    datasets.DatasetDict({"train": typed(0, 20), "test": typed(20, 6)}).save_to_disk(root)
    return str(root)


def plain(path: str, **options: Any) -> Images:
    """Checked against the backbone, without transforms."""
    data = Images(path, train_transforms=[], eval_transforms=[], **options)
    data.check(BACKBONE)
    return data


def normalised(image: PIL.Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image).astype(np.float64)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(CONFIG[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
    return (pixels - mean) / std


@pytest.mark.parametrize("source", [parquet_folder, image_folder, saved_to_disk])
def test_every_source_gives_the_same_samples(source: Any, tmp_path: Path) -> None:
    data = plain(source(tmp_path), test_split="test")
    assert {name: len(split) for name, split in data.splits.items()} == {"val": 2, "train": 18, "test": 6}
    assert sorted([*data.splits["train"].index, *data.splits["val"].index]) == list(range(20))
    assert sorted(data.splits["val"].labels.tolist()) == [0, 1]  # type: ignore[union-attr]
    assert (data.num_classes, data.class_names) == (2, NAMES)
    (batch,) = data.test_dataloader()
    assert batch["index"].tolist() == list(range(6))
    assert (batch["image"].dtype, batch["image"].shape) == (torch.float32, (6, 3, 6, 6))
    # an image folder is read class by class
    order = [20, 22, 24, 21, 23, 25] if source is image_folder else range(20, 26)
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
    torch.testing.assert_close(batch["image"][2].double(), normalised(picture(22)), rtol=0, atol=1e-6)


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
    with pytest.raises(UserError, match="row 4 of split train holds no image"):
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
    with pytest.raises(UserError, match=r"there is no column label, the data has image: change --data\.label_column"):
        plain(str(tmp_path), val_split="new")


def test_channels_follow_the_backbone(tmp_path: Path) -> None:
    config = CONFIG | {"input_size": (1, 6, 6), "mean": (0.5,), "std": (0.5,)}
    data = Images(parquet_folder(tmp_path), train_transforms=[], eval_transforms=[])
    data.check(SimpleNamespace(num_classes=2, input_size=(1, 6, 6), data_config=config))
    sample = data.splits["train"][0]
    red, green, blue = np.asarray(picture(sample["index"])).astype(np.float64).transpose(2, 0, 1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue) / 255  # ITU-R 601, as Pillow documents
    torch.testing.assert_close(
        sample["image"][0].double(), torch.from_numpy((luma - 0.5) / 0.5), rtol=0, atol=2.1 / 255
    )
    assert to_image(picture(0).convert("RGBA"), 4).shape == (4, 6, 6)


def test_mean_and_std_beat_the_backbones(tmp_path: Path) -> None:
    data = plain(parquet_folder(tmp_path), mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    sample = data.splits["train"][0]
    assert torch.equal(
        (sample["image"] * 255).round().byte(), torch.from_numpy(np.array(picture(sample["index"]))).permute(2, 0, 1)
    )


def test_the_default_evaluation_is_timms() -> None:
    config: dict[str, Any] = CONFIG | {"input_size": (3, 24, 24), "crop_pct": 0.875}
    y, x, channel = np.ogrid[:40, :64, :3]
    image = PIL.Image.fromarray((127.5 + 120 * np.sin(x / (3 + channel)) * np.cos(y / 4)).astype(np.uint8))

    def levels_apart(**other: Any) -> float:
        """Largest difference to timm's own pipeline, in the 256 levels of a pixel."""
        chosen = evaluation_transforms(config | other)
        ours = Preprocessing(chosen, channels=3, mean=config["mean"], std=config["std"])(image)
        theirs = timm.data.create_transform(**config)(image)
        assert ours.shape == theirs.shape == (3, 24, 24)
        return float(((ours - theirs) * torch.tensor(config["std"]).view(3, 1, 1) * 255).abs().max())

    assert levels_apart() < 1.5  # timm resizes with Pillow, ours with torchvision: a rounding apart
    assert levels_apart(crop_pct=1.0) > 50  # the controls
    assert levels_apart(interpolation="bilinear") > 3


def test_the_default_training_resizes_and_flips(tmp_path: Path) -> None:
    data = Images(parquet_folder(tmp_path))
    data.check(BACKBONE)
    flips = []
    for sample in (data.splits["train"][position] for position in range(18)):
        image = normalised(picture(sample["index"]))
        same, mirrored = (torch.allclose(sample["image"].double(), x, atol=1e-6) for x in (image, image.flip(2)))
        assert same != mirrored
        flips.append(mirrored)
    assert 0 < sum(flips) < 18
    held = data.splits["val"][0]
    torch.testing.assert_close(held["image"].double(), normalised(picture(held["index"])), rtol=0, atol=1e-6)


PAPER = [
    {"class_path": "torchvision.transforms.v2.RandomCrop", "init_args": {"size": 6, "padding": 4}},
    {"class_path": "torchvision.transforms.v2.RandomHorizontalFlip"},
    {"class_path": "torchvision.transforms.v2.RandomRotation", "init_args": {"degrees": 15}},
]


def test_transforms_named_in_a_recipe(tmp_path: Path) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Images, "data")
    recipe = {"path": parquet_folder(tmp_path), "train_transforms": PAPER, "batch_size": 7, "num_workers": 2}
    data = parser.instantiate(parser.parse_object({"data": recipe})).data
    data.check(BACKBONE)
    assert [type(transform) for transform in data.train_transforms] == [
        v2.RandomCrop,
        v2.RandomHorizontalFlip,
        v2.RandomRotation,
    ]

    def epochs(num_workers: int) -> list[list[dict[str, torch.Tensor]]]:
        data.num_workers = num_workers
        loader = data.train_dataloader()
        seen = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            seen.append(list(loader))
        return seen

    here, workers = epochs(0), epochs(2)
    assert [len(batch["index"]) for batch in here[0]] == [7, 7, 4]
    for epoch in range(2):
        for one, two in zip(here[epoch], workers[epoch], strict=True):
            assert all(torch.equal(one[key], two[key]) for key in ("image", "label", "index"))
    # the control: another epoch shows the same samples differently
    first, second = ({int(i): x for b in e for i, x in zip(b["index"], b["image"], strict=True)} for e in here)
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[index], second[index]) for index in first)


def test_images_of_differing_sizes_are_refused(tmp_path: Path) -> None:
    images = [encoded(picture(number, size=6 + number % 2)) for number in range(20)]
    data = Images(parquet(tmp_path, [0, 1] * 10, images), train_transforms=[], eval_transforms=[])
    data.check(SimpleNamespace(num_classes=2, input_size=None, data_config=CONFIG))
    with pytest.raises(UserError, match=r"must have one shape, got \(3, 6, 6\) and \(3, 7, 7\): add a Resize"):
        next(iter(data.train_dataloader()))


def test_preflight_compares_the_first_image_with_the_backbone(tmp_path: Path) -> None:
    data = Images(parquet_folder(tmp_path), train_transforms=[])
    message = r"images of shape \(3, 9, 9\), but the train data has \(3, 6, 6\): set .*img_size.* add a Resize"
    with pytest.raises(UserError, match=message):
        data.check(SimpleNamespace(num_classes=2, input_size=(3, 9, 9), data_config=CONFIG | {"input_size": (3, 9, 9)}))
    with pytest.raises(UserError, match=r"with a data_config, got SimpleNamespace: change --model\.backbone"):
        data.check(SimpleNamespace(num_classes=2, input_size=None))
    with pytest.raises(UserError, match=r"reads 1 channel\(s\), .* got mean=\[0\.5, 0\.25, 0\.0\].*set --data\.mean"):
        data.check(SimpleNamespace(num_classes=2, input_size=None, data_config=CONFIG | {"input_size": (1, 6, 6)}))


def test_preflight_decodes_one_image_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    plain(parquet_folder(tmp_path), test_split="test")
    assert len(decoded) == 3


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

    monkeypatch.setattr("layersim.data.sources.load_dataset", unreachable)
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
        ([0.5, 1.5] * 10, r"integers or strings, but column label holds double: change --data\.label_column"),
        ([True, False] * 10, r"column label holds bool"),
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
    with pytest.raises(UserError, match=r"row \d+ of split train holds no image that can be read: cannot identify"):
        data.check(BACKBONE)


def test_deep_images_are_not_cut_off() -> None:
    deep = PIL.Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    assert np.asarray(deep.convert("L")).max() == 255  # the control: 40 000 of 65 535 is 156
    with pytest.raises(UserError, match="images of 8 bits, got one of mode I;16"):
        to_image(deep, 1)


@pytest.mark.parametrize("option", ["max_train_samples", "max_eval_samples"])
def test_limits_below_one_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=rf"{option} must be at least 1, got 0"):
        Images("some/where", **{option: 0})


def test_fractions_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"0 < val_fraction < 1, got 1\.0: change --data\.val_fraction"):
        Images("some/where", val_fraction=1.0)


def test_training_images_may_be_read_as_evaluation_reads_them(tmp_path: Path) -> None:
    """A transform of training alone, here one that blanks the image, is in the one reading and not in the other."""
    datasets.DatasetDict({"train": typed(0, 6), "test": typed(6, 2)}).save_to_disk(tmp_path / "saved")
    blank = v2.Lambda(lambda image: image * 0)
    data = Images(str(tmp_path / "saved"), val_split="test", train_transforms=[blank], eval_transforms=[])
    data.check(BACKBONE)
    assert len(data.splits["train"][3]["image"].unique()) <= 3, "one colour a channel"
    read = data.evaluation_split("train")[3]["image"]
    expected = torch.from_numpy(np.array(picture(3))).permute(2, 0, 1) / 255
    expected = (expected - torch.tensor(CONFIG["mean"]).view(3, 1, 1)) / torch.tensor(CONFIG["std"]).view(3, 1, 1)
    torch.testing.assert_close(read, expected.float(), rtol=0, atol=1e-6)
    assert len(data.splits["train"][3]["image"].unique()) <= 3, "training goes on as before"
