"""From an image to what a backbone reads: channels, size, normalisation."""

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from threading import Lock
from typing import Any, TypeAlias

import PIL.Image
import PIL.ImageOps
import torch
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from layersim.data.splits import Sample
from layersim.errors import UserError, as_user_error, reason

Transform = Callable[[Any], Any]
_MODES = {1: "L", 3: "RGB"}
_ADDRESS = re.compile(r" <[^>]* at 0x[^>]*>")
_LIFTING = Lock()
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


Cell: TypeAlias = dict[str, Any] | None
"""An image as a table holds it: its "bytes", or else its "path"."""


def read_image(cell: Cell, *, most: int, scale: bool) -> PIL.Image.Image:
    """The image of a cell, decoded and turned as its camera was held. Of one with more than `most` pixels nothing is
    decoded, unless it is to be scaled down to that, a JPEG while it is decoded."""
    cell = cell or {}
    content: bytes | None = cell.get("bytes")
    path: str | None = cell.get("path")
    if content is None and path is None:
        raise UserError("no image")
    told = "no image that can be read" if path is None else f"{path} is no image that can be read"
    if content is None and path is not None and not (os.path.isabs(path) or "://" in path or os.path.isfile(path)):
        raise UserError(f"there is no file {path} in the working directory, {os.getcwd()}, from where paths are read")
    with (
        as_user_error(told, why=lambda error: _ADDRESS.sub("", reason(error))),
        _of_any_size(content, path) as image,
    ):
        pixels = image.width * image.height
        if pixels > most and not scale:
            raise UserError(f"an image of {pixels:,} pixels, more than --data.max_pixels={most}")
        if pixels > most:
            share = (most / pixels) ** 0.5
            image.thumbnail((max(1, int(image.width * share)), max(1, int(image.height * share))))
        image.load()
        PIL.ImageOps.exif_transpose(image, in_place=True)
        return image


def _of_any_size(content: bytes | None, path: str | None) -> PIL.Image.Image:
    """An image's header. PIL's own limit of pixels, which holds for the whole process, is lifted for one beyond it."""
    given = partial(BytesIO, content) if content is not None else partial(str, path)
    with warnings.catch_warnings(action="ignore", category=PIL.Image.DecompressionBombWarning):
        try:
            return PIL.Image.open(given())
        except PIL.Image.DecompressionBombError:
            with _LIFTING:
                limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
                try:
                    return PIL.Image.open(given())
                finally:
                    PIL.Image.MAX_IMAGE_PIXELS = limit


def to_image(image: PIL.Image.Image, channels: int) -> tv_tensors.Image:
    """The image as (channels, H, W): grey for 1 channel, red, green and blue for 3, as it is for any other number."""
    mode = _MODES.get(channels, image.mode)
    if image.mode in _DEEP and mode != image.mode:
        raise UserError(
            f"expected images of 8 bits, got one of mode {image.mode}, which would be cut off at 255: "
            f"convert the data set's images to 8 bits first"
        )
    if channels not in (*_MODES, len(image.getbands())) or (channels not in _MODES and image.mode in ("P", "PA", "1")):
        raise UserError(f"expected images of {channels} channels, got one of mode {image.mode}: convert them first")
    return v2.functional.to_image(image if image.mode == mode else image.convert(mode))


def training_transforms(config: Mapping[str, Any]) -> list[Transform]:
    """Resize to the input size, whatever the shape was, and flip every second image from left to right."""
    size = list(config["input_size"][1:])
    return [v2.Resize(size, v2.InterpolationMode(config["interpolation"])), v2.RandomHorizontalFlip()]


def evaluation_transforms(config: Mapping[str, Any]) -> list[Transform]:
    """timm's own evaluation: resize the shorter side to input size / crop_pct, then crop the centre."""
    keys = ("input_size", "interpolation", "crop_pct", "crop_mode")
    given = {key: config[key] for key in keys if key in config}
    return [create_transform(**given, is_training=False, normalize=False)]


class Preprocessing:
    """An image becomes a float32 tensor (C, H, W): to channels, the transforms, scaled to 0 … 1, normalised.

    Args:
        transforms: in this order, on the image of 8-bit integers (C, H, W).
        channels: C, the channels that the backbone reads.
        mean, std: of each channel, on the scale 0 … 1.
    """

    def __init__(
        self, transforms: Sequence[Transform], *, channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        if not len(mean) == len(std) == channels:
            raise UserError(
                f"the backbone reads {channels} channel(s), which need as many means and standard deviations, got "
                f"mean={list(mean)} and std={list(std)}: set --data.mean and --data.std"
            )
        self.channels, self.mean, self.std = channels, list(mean), list(std)
        finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std)), v2.ToPureTensor()]
        self.steps: nn.Module = v2.Compose([*transforms, *finish])

    def __call__(self, image: PIL.Image.Image | tv_tensors.Image) -> Tensor:
        """The tensor of an image, or of one that is (channels, H, W) already."""
        pixels = image if isinstance(image, tv_tensors.Image) else to_image(image, self.channels)
        remedy = "Change --data.train_transforms, --data.eval_transforms or --data.std"
        with as_user_error(f"the transforms fail on an image of shape {tuple(pixels.shape)}", remedy):
            return self.steps(pixels)


def collate_images(samples: list[Sample]) -> dict[str, Any]:
    """Stacks samples, of images of one shape, into a batch."""
    shapes = sorted({tuple(sample["image"].shape) for sample in samples})
    if len(shapes) > 1:
        raise UserError(
            f"the images of a batch must have one shape, got {shapes[0]} and {shapes[-1]}: add a Resize or a crop "
            f"to --data.train_transforms or --data.eval_transforms"
        )
    return default_collate(samples)


def check_shape(image: Tensor, split: str, expected: tuple[int, int, int] | None) -> None:
    """Raises a UserError if the image's shape is not the one that the backbone reads; None expects nothing."""
    if expected is not None and tuple(image.shape) != tuple(expected):
        raise UserError(
            f"the backbone reads images of shape {tuple(expected)}, but the {split} data has {tuple(image.shape)}: "
            f"set --model.backbone.init_args.img_size or --model.backbone.init_args.in_chans, "
            f"or add a Resize to the data's transforms"
        )
