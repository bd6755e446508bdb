"""What becomes of a pixel on its way to the backbone."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import jsonargparse
import numpy as np
import PIL.Image
import pytest
import timm.data
import torch
from torchvision.transforms import v2

from layersim.data import Images
from layersim.data.pixels import Preprocessing, evaluation_transforms, read_image, to_image
from layersim.errors import UserError
from tests.data.pictures import BACKBONE, CONFIG, encoded, normalised, parquet, parquet_folder, picture, plain, typed


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
    opened = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file: decoded.append(1) or opened(file))
    plain(parquet_folder(tmp_path), test_split="test")
    assert len(decoded) == 3


def test_deep_images_are_not_cut_off() -> None:
    deep = PIL.Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    assert np.asarray(deep.convert("L")).max() == 255  # the control: 40 000 of 65 535 is 156
    with pytest.raises(UserError, match="images of 8 bits, got one of mode I;16"):
        to_image(deep, 1)


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


def test_the_limit_of_pixels_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL refuses what has more than twice its own limit, which is the process's and stays."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    cell = {"bytes": encoded(picture(0, size=20))}
    with pytest.raises(PIL.Image.DecompressionBombError):
        PIL.Image.open(io.BytesIO(cell["bytes"]))
    assert read_image(cell, most=400, scale=False).size == (20, 20)
    assert read_image(cell, most=100, scale=True).size == (10, 10)
    with pytest.raises(UserError, match=r"an image of 400 pixels, more than --data\.max_pixels=399"):
        read_image(cell, most=399, scale=False)
    assert PIL.Image.MAX_IMAGE_PIXELS == 100
