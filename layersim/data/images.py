"""Images with labels, from anything that `datasets.load_dataset` opens."""

import hashlib
import os
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, Literal

import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image
from torch import Tensor, nn

from layersim.data.account import Contents
from layersim.data.bad_samples import SKIP, Faults, cell_faults
from layersim.data.columns import column_values, need_column, streamed_label
from layersim.data.inputs import ImageInputs
from layersim.data.pixels import (
    Cell,
    Preprocessing,
    check_shape,
    collate_images,
    evaluation_transforms,
    read_image,
    training_transforms,
)
from layersim.data.source_data import TableData
from layersim.data.splits import Integers, Sample, Split
from layersim.data.streams import Row
from layersim.errors import UserError, as_user_error, at_least, check_choice

LargeImages = Literal["refuse", "scale"]


class Images(TableData):
    """Image classification on local files, folders or a data set of the hub.

    An image is brought to the backbone's channels, goes through the transforms as a `torchvision.tv_tensors.Image` of
    8-bit integers, is scaled to 0 … 1 and normalised. The backbone's `data_config` (timm's: input_size, mean, std,
    interpolation, crop_pct) says how, unless the options below do. "index" is the row in the split that was opened.

    Args:
        path: a file, a folder or a name on the hub (see `Source`).
        image_column: the column of images.
        train_transforms: of torchvision.transforms.v2, named by class path; [] for none. None: resize to the input size
            and flip.
        eval_transforms: the same for evaluation. None: timm's, by the backbone's crop_pct and crop_mode.
        mean: of each channel on the scale 0 … 1, in place of the backbone's.
        std: of each channel, in place of the backbone's.
        max_pixels: of an image.
        large_images: what becomes of larger ones: "refuse", as of samples that cannot be read, or "scale" down to that.
        **options: those of TableData.
    """

    def __init__(
        self,
        path: str,
        *,
        image_column: str = "image",
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        max_pixels: int = 2**26,
        large_images: LargeImages = "refuse",
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self.image_column = image_column
        self.train_transforms = train_transforms
        self.eval_transforms = eval_transforms
        self.mean = mean
        self.std = std
        self.collate = collate_images
        check_choice("large_images", large_images, LargeImages)
        self.read = partial(read_image, most=at_least(1, "max_pixels", max_pixels), scale=large_images == "scale")

    @property
    def content_columns(self) -> dict[str, str]:
        return {"image_column": self.image_column}

    def load(self) -> dict[str, Split]:
        return self.open()

    def contents(self, split: "ImageSplit") -> Contents:
        return Contents(column_values(split.images, self.image_column), split.index)

    def faults(self, data: Dataset, split: str) -> Faults:
        images = image_column(data, self.image_column)
        told = f"the {len(images)} images of {split}"
        rule = f"{self.image_column} {self.read.keywords} {files_state(column_values(images, self.image_column))}"
        return cell_faults(images, self.read, rule, num_workers=self.num_workers, told=told)

    def split(self, data: Dataset, source: tuple[str, int], index: Integers, labels: Integers | None) -> "ImageSplit":
        return ImageSplit(image_column(data, self.image_column), self.read, source, index, labels, seed=self.seed)

    def adapt(self, backbone: Any) -> None:
        config = getattr(backbone, "data_config", None)
        if config is None:
            raise UserError(
                f"expected a backbone that reads images, with a data_config, got {type(backbone).__name__}: "
                f"change --model.backbone or --data"
            )
        training = training_transforms(config) if self.train_transforms is None else self.train_transforms
        evaluation = evaluation_transforms(config) if self.eval_transforms is None else self.eval_transforms
        self._training, self._evaluation = (
            Preprocessing(
                transforms,
                channels=config["input_size"][0],
                mean=config["mean"] if self.mean is None else self.mean,
                std=config["std"] if self.std is None else self.std,
            )
            for transforms in (training, evaluation)
        )
        for role, split in self.splits.items():
            assert isinstance(split, ImageSplit)
            split.preprocessing = self._training if role == "train" else self._evaluation
        if self.stream is not None:
            assert self.label_column is not None
            columns = self.image_column, self.label_column
            self.stream.sample = partial(streamed_image, columns=columns, read=self.read, preprocessing=self._training)

    def inputs(self, backbone: Any) -> ImageInputs:
        self.adapt(backbone)
        config = backbone.data_config
        plain = self.eval_transforms is None and config.get("crop_mode", "center") == "center"
        crop = config.get("crop_pct", 0.875) if plain else None
        size = config["input_size"][1:]
        return ImageInputs(self._evaluation, self.read, size, crop=crop, interpolation=config["interpolation"])

    def evaluation_split(self, name: str) -> Split:
        split = copy(self.splits[name])
        assert isinstance(split, ImageSplit)
        split.preprocessing = self._evaluation
        return split

    def check_sample(self, sample: Sample, split: str, backbone: Any) -> None:
        check_shape(sample["image"], split, backbone.input_size)


class ImageSplit(Split):
    """Rows of a data set of a single column of images, not decoded, which are read when they are asked for."""

    def __init__(
        self,
        images: Dataset,
        read: Callable[[Cell], PIL.Image.Image],
        source: tuple[str, int],
        index: Integers,
        labels: Integers | None,
        *,
        seed: int,
    ) -> None:
        super().__init__(source[0], index, labels, seed=seed, offset=source[1])
        self.images = images
        self.read = read
        self.column: str = images.column_names[0]
        self.preprocessing: Callable[[Any], Tensor] | None = None

    def inputs(self, place: int) -> Sample:
        if self.preprocessing is None:
            raise UserError("it is not known yet what the backbone reads: call check(backbone) before reading samples")
        row = int(self.index[place])
        where = f"row {row + self.offset} of split {self.source}"
        try:
            image = self.read(self.images[row][self.column])
        except UserError as error:
            raise UserError(f"{where}: {str(error).rstrip('.')}. Leave it out of the data, {SKIP}") from error
        try:
            return {"image": self.preprocessing(image)}
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


def streamed_image(
    row: Row,
    *,
    columns: tuple[str, str],
    read: Callable[[Cell], PIL.Image.Image],
    preprocessing: Callable[[Any], Tensor],
) -> Sample:
    """A row of a stream, its image not decoded, as a sample."""
    image, label = columns
    return {"image": preprocessing(read(row[image])), "label": streamed_label(row[label])}


def files_state(images: pa.ChunkedArray) -> str:
    """A hash of the sizes, times and permissions of the files in which images (N,) without bytes of their own lie; it
    is another one once any of them is written anew or taken away."""
    found = hashlib.sha256()
    for path in pc.struct_field(images.filter(pc.is_null(pc.struct_field(images, "bytes"))), "path").to_pylist():
        state = os.stat(path) if path and os.path.isfile(path) else None
        found.update(str(state and (state.st_size, state.st_mtime_ns, state.st_mode)).encode())
    return found.hexdigest()


def image_column(rows: Dataset, column: str) -> Dataset:
    """The data set with its column of images alone, not decoded."""
    need_column(rows.column_names, column, option="image_column")
    with as_user_error(f"column {column} holds no images", "Change --data.image_column"):
        if not isinstance(rows.features[column], Image):  # whose bytes nobody need look at yet
            _refuse_wider(column_values(rows, column), column)
        return rows.select_columns([column]).cast_column(column, Image(decode=False))


def _refuse_wider(pixels: pa.ChunkedArray, column: str) -> None:
    """Raises a UserError where images are told as numbers that 8 bits do not hold; `datasets` would cut them."""
    if isinstance(pixels.type, pa.BaseExtensionType):
        pixels = pa.chunked_array([chunk.storage for chunk in pixels.chunks], pixels.type.storage_type)
    while isinstance(pixels.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        pixels = pc.list_flatten(pixels)
    if pa.types.is_integer(pixels.type) and len(pixels):
        least, most = pc.min_max(pixels).as_py().values()
        if least < 0 or most > 255:
            raise UserError(
                f"column {column} holds numbers from {least} to {most}, but pixels are of 8 bits, 0 … 255: convert "
                "them first, or change --data.image_column"
            )
