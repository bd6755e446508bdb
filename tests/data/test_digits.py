"""The digits against scikit-learn and NumPy."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.datasets import load_digits

from layersim.data import Digits, Images
from layersim.errors import UserError

CONFIG = {
    "input_size": (3, 16, 16),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}


def loaded(**options: Any) -> Digits:
    data = Digits(**options)
    data.setup()
    return data


def test_sizes_and_strata() -> None:
    data = loaded()
    train, val = data.splits["train"], data.splits["val"]
    assert (len(train), len(val)) == (1437, 360)
    assert sorted([*train.index, *val.index]) == list(range(1797))
    target = load_digits().target
    assert np.array_equal(val.labels, target[val.index])
    assert np.abs(np.bincount(target[val.index]) - np.bincount(target) * 360 / 1797).max() < 1
    assert data.num_classes == 10
    assert data.class_names == list("0123456789")


def test_the_split_follows_the_seed() -> None:
    first, again, other = loaded(), loaded(), loaded(seed=1)
    assert np.array_equal(first.splits["val"].index, again.splits["val"].index)
    assert not np.array_equal(first.splits["val"].index, other.splits["val"].index)


def test_test_data_comes_out_of_training_alone() -> None:
    without, three = loaded(), loaded(test_fraction=0.1)
    assert {name: len(split) for name, split in three.splits.items()} == {"train": 1257, "val": 360, "test": 180}
    assert np.array_equal(without.splits["val"].index, three.splits["val"].index)
    assert sorted(np.concatenate([split.index for split in three.splits.values()])) == list(range(1797))
    assert sum(len(batch["label"]) for batch in three.test_dataloader()) == 180
    with pytest.raises(UserError, match=r"there is no test data: set --data\.test_fraction"):
        without.test_dataloader()


def test_pixels_are_normalised_by_the_training_split() -> None:
    data = loaded()
    pixels = load_digits().images.astype(np.float64) / 16
    training = pixels[data.splits["train"].index]
    mean, std = training.mean(), np.sqrt(((training - training.mean()) ** 2).mean())
    assert data.mean == pytest.approx(mean, rel=1e-12)
    assert data.std == pytest.approx(std, rel=1e-12)
    for batch in data.val_dataloader():
        assert batch["image"].dtype == torch.float32
        expected = torch.from_numpy((pixels[batch["index"]] - mean) / std).unsqueeze(1)
        torch.testing.assert_close(batch["image"].double(), expected, rtol=0, atol=1e-6)
    seen = torch.cat([batch["image"] for batch in data.train_dataloader()]).double()
    assert seen.shape == (1437, 1, 8, 8)
    assert seen.mean().item() == pytest.approx(0, abs=1e-6)
    assert seen.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_preflight_compares_the_images_with_the_backbone() -> None:
    data = Digits()
    with pytest.raises(
        UserError, match=r"shape \(3, 224, 224\), but the train data has \(1, 8, 8\): .*img_size.*in_ch"
    ):
        data.check(SimpleNamespace(num_classes=10, input_size=(3, 224, 224)))
    with pytest.raises(UserError, match=r"the train data has 9, .* set --model\.backbone\.init_args\.num_classes 10$"):
        data.check(SimpleNamespace(num_classes=9, input_size=(1, 8, 8)))


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.0), (0.2, -0.1), (0.6, 0.4)])
def test_fractions_out_of_range_are_refused(val: float, test: float) -> None:
    with pytest.raises(UserError, match=rf"got ({val} and )?({test}|{val}).* --data\.(val|test)_fraction"):
        Digits(val_fraction=val, test_fraction=test)


def test_positions_count_in_the_split_and_indices_in_the_source() -> None:
    data = Digits(eval_batch_size=100)
    data.setup()
    batches = list(data.val_dataloader())
    assert torch.cat([batch["position"] for batch in batches]).tolist() == list(range(360))
    index = torch.cat([batch["index"] for batch in batches])
    assert index.tolist() == data.splits["val"].index[data.splits["val"].order].tolist()
    assert index.max() > 1700, "spread over the source, so that groups of neighbours by index would be nearly empty"


def test_limits_take_a_part_that_the_seed_draws_from_the_same_splits() -> None:
    data, whole = Digits(max_train_samples=100, max_eval_samples=30, test_fraction=0.1), Digits(test_fraction=0.1)
    data.setup()
    whole.setup()
    assert [len(split) for split in data.splits.values()] == [100, 30, 30]
    for role, split in data.splits.items():
        assert set(split.index) < set(whole.splits[role].index)
        assert split.index.tolist() == sorted(split.index)
    other = Digits(max_train_samples=100, seed=1)
    other.setup()
    assert set(other.splits["train"].index) != set(data.splits["train"].index)


@pytest.mark.parametrize("resize", [False, True])
def test_a_digit_that_somebody_gives_is_what_evaluation_makes_of_it(resize: bool) -> None:
    data = loaded(resize=resize)
    backbone = SimpleNamespace(data_config=CONFIG)
    data.adapt(backbone)
    sample = data.splits["val"][0]
    pixels = (load_digits().images[sample["index"]] * 255 / 16).round().astype(np.uint8)
    found = data.inputs(backbone)(pixels)["image"][0]
    assert found.shape == ((3, 16, 16) if resize else (1, 8, 8))
    torch.testing.assert_close(found, sample["image"], rtol=0, atol=0 if resize else 0.01)  # of 255 steps


@pytest.mark.parametrize("seed", [0, 3])  # of which the second's mean and deviation do not give all pixels back
def test_resized_they_are_what_images_makes_of_the_same_pictures(seed: int, tmp_path: Path) -> None:
    """A model of 3 channels and 16 pixels; the control is the pictures as PNG, read by the data of images."""
    backbone = SimpleNamespace(data_config=CONFIG)
    data = loaded(resize=True, max_eval_samples=30, seed=seed)
    data.adapt(backbone)
    for digit, label, index in zip(load_digits().images, load_digits().target, range(40), strict=False):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        PIL.Image.fromarray((digit * 255 / 16).round().astype(np.uint8)).save(tmp_path / f"{label}/{index:03}.png")
    images = Images(str(tmp_path), val_split="train", find_duplicates=False)
    images.setup()
    images.adapt(backbone)
    ours = {int(sample["index"]): sample["image"] for sample in map(data.splits["train"].__getitem__, range(1437))}
    names = sorted(tmp_path.rglob("*.png"))
    compared = [place for place, name in enumerate(names) if int(name.stem) in ours]
    assert len(compared) > 20
    for place in compared:
        expected = images.evaluation_split("val")[place]["image"]
        assert expected.shape == (3, 16, 16)
        torch.testing.assert_close(ours[int(names[place].stem)], expected, rtol=0, atol=0)
