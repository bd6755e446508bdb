"""The 1797 handwritten digits that scikit-learn carries: real data without a download, trained on in seconds."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from layersim.data.base import DrawnSplits
from layersim.data.inputs import ImageInputs
from layersim.data.pixels import Preprocessing, check_shape, evaluation_transforms, read_image
from layersim.data.splits import Integers, Sample, Split, hold_out
from layersim.installed_packages import package_folder


class Digits(DrawnSplits):
    """scikit-learn's digits: 1797 images of 8×8 pixels, 10 classes (Alpaydin and Kaynak, 1998).

    Pixels 0 … 16 are scaled to 0 … 1, then normalised by the mean and the (population) standard deviation of all pixels
    of the training split, kept as `mean` and `std`. Images are float32 (1, 8, 8). The splits are stratified by class
    and drawn by the seed; "index" counts in scikit-learn's order.

    Args:
        val_fraction: share of the samples held out for validation, rounded up: 360 at 0.2.
        resize: give images the size, channels and normalisation of the backbone's `data_config`, as Images does, so
            that any model of images reads them.
        **options: those of DrawnSplits.
    """

    def __init__(self, *, val_fraction: float = 0.2, resize: bool = False, **options: Any) -> None:
        super().__init__(val_fraction=val_fraction, **options)
        self.resize = resize

    def load(self) -> dict[str, Split]:
        # The file of sklearn.datasets.load_digits, whose import takes longer than all else until a training begins.
        file = package_folder("sklearn", "use other data") / "datasets/data/digits.csv.gz"
        rows = np.loadtxt(file, delimiter=",")
        pixels, labels = rows[:, :-1].reshape(-1, 8, 8) / 16, rows[:, -1].astype(np.int64)
        self.class_names = [str(digit) for digit in range(10)]
        index = {"train": np.arange(len(labels))}
        for role, share in (("val", self.val_fraction), ("test", self.test_fraction)):
            if share > 0:
                rest, count, remedy = index["train"], math.ceil(share * len(labels)), f"--data.{role}_fraction"
                kept, held = hold_out(labels[rest], count, seed=self.seed, remedy=remedy)
                index["train"], index[role] = rest[kept], rest[held]
        self.mean = float(pixels[index["train"]].mean())
        self.std = float(pixels[index["train"]].std())
        images = torch.from_numpy((pixels - self.mean) / self.std).float().unsqueeze(1)
        pictures = torch.from_numpy(255 * pixels).round().byte().unsqueeze(1)
        index = {role: self.capped(role, chosen) for role, chosen in index.items()}
        return {role: DigitSplit(images, pictures, chosen, labels, self.seed) for role, chosen in index.items()}

    def adapt(self, backbone: Any) -> None:
        for split in self.splits.values():
            assert isinstance(split, DigitSplit)
            split.preprocessing = self._resizing(backbone)

    def inputs(self, backbone: Any) -> ImageInputs:
        """Of images of any size, black on which the digit is bright; scikit-learn's own are to be divided by 16."""
        if not self.splits:
            self.setup()
        read, small = partial(read_image, most=2**26, scale=True), v2.Resize([8, 8])
        if (resizing := self._resizing(backbone, small)) is not None:
            return ImageInputs(resizing, read, backbone.data_config["input_size"][1:], crop=None)
        preprocessing = Preprocessing([small], channels=1, mean=[self.mean], std=[self.std])
        return ImageInputs(preprocessing, read, (8, 8), crop=1.0)

    def _resizing(self, backbone: Any, *first: v2.Transform) -> Preprocessing | None:
        """What makes of a digit, after the `first` transforms, an image as the backbone reads it, where that is asked
        for."""
        config = getattr(backbone, "data_config", None)
        if not self.resize or config is None:
            return None
        channels = {"channels": config["input_size"][0], "mean": config["mean"], "std": config["std"]}
        return Preprocessing([*first, *evaluation_transforms(config)], **channels)

    def check_sample(self, sample: Sample, split: str, backbone: Any) -> None:
        check_shape(sample["image"], split, backbone.input_size)


class DigitSplit(Split):
    """Those of all digits (M, 1, 8, 8), normalised already and as pictures of 8 bits, that the index (N,) has."""

    random = False
    preprocessing: Preprocessing | None = None
    """Makes of a picture what the backbone reads, where it does not read the normalised image."""

    def __init__(self, images: Tensor, pictures: Tensor, index: Integers, labels: Integers, seed: int) -> None:
        super().__init__("digits", index, labels[index], seed=seed)
        self.images, self.pictures = images[index], pictures[index]

    def inputs(self, place: int) -> Sample:
        if self.preprocessing is None:
            return {"image": self.images[place]}
        return {"image": self.preprocessing(to_pil_image(self.pictures[place]))}
