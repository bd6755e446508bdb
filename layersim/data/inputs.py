"""Images and texts as people have them, made into the batches that evaluation reads."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from layersim.data.pixels import Cell, Preprocessing, collate_images
from layersim.data.sentence_split import SentenceSplit
from layersim.data.sequences import PadCollate
from layersim.data.tokenizers import ByteTokenizer, PretrainedTokenizer, Tokenizer
from layersim.errors import UserError, as_user_error

Batch = dict[str, Tensor]
_PROBES = ("A plain sentence, with commas.", "Ünïcödé & numbers: 3.14, 10 000\n\ttabs", "<tag> [CLS] </s> 'quoted'")
"""Texts in which tokenizers differ."""


class Inputs(ABC):
    """What makes a batch of texts or images, as the data that a model was trained on make it for evaluation."""

    fingerprint: str | None = None
    """By which a tokenizer and the length that it cuts at are known again; None of images."""

    @abstractmethod
    def __call__(self, given: Any) -> Batch:
        """A batch of one sample, or of several in a list.

        Raises:
            UserError: something that is none of what the model reads, or that cannot be read.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what is needed to read inputs elsewhere, where that is more than a few numbers."""

    @abstractmethod
    def usage(self, names: Iterable[str]) -> str:
        """Lines of Python that make the arrays of these names, without torch, in a folder that `save` wrote into."""


@dataclass(eq=False)
class ImageInputs(Inputs):
    """Images become tensors: given as paths, as the bytes of a file, as PIL has them, or as NumPy arrays (H, W) or
    (H, W, C), unsigned 8-bit integers or floats within 0 … 1.
    """

    preprocessing: Preprocessing
    """Of evaluation."""
    read: Callable[[Cell], PIL.Image.Image]
    """Decodes a file."""
    size: tuple[int, int]
    """Height and width that come out."""
    _: KW_ONLY
    crop: float | None
    """The share of the image's sides that timm's centre crop leaves; 1: resized whole; None: neither, as with own
    transforms or images resized to height and width."""
    interpolation: str = "bilinear"
    """By which it is resized."""

    def __call__(self, given: Any) -> Batch:
        alone = isinstance(given, str | Path | bytes | PIL.Image.Image)
        if isinstance(given, np.ndarray):
            alone = given.ndim < 4
        images = [given] if alone else _listed(given, "images")
        return collate_images([{"image": self._read(image, place)} for place, image in enumerate(images)])

    def _read(self, given: Any, place: int) -> Tensor:
        where = f"image {place}"
        try:
            if isinstance(given, str | Path):
                where = str(given)
                return self.preprocessing(self.read({"path": str(given)}))
            if isinstance(given, bytes):
                return self.preprocessing(self.read({"bytes": given}))
            if isinstance(given, PIL.Image.Image):
                with as_user_error("no image that can be read"):
                    given.load()
                return self.preprocessing(PIL.ImageOps.exif_transpose(given))
            if isinstance(given, np.ndarray):
                return self.preprocessing(from_array(given, self.preprocessing.channels))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        raise UserError(f"Expected images as paths, bytes, PIL images or NumPy arrays, but {where} is {_named(given)}.")

    def save(self, folder: Path) -> None:
        """Nothing: `usage` holds the numbers."""

    def usage(self, names: Iterable[str]) -> str:
        if self.crop is None or self.preprocessing.channels not in (1, 3):
            return "# image: (N, channels, height, width) in float32, transformed and normalised as the data's were\n"
        height, width = self.size
        mode, pixels = ("L", "[..., None]") if self.preprocessing.channels == 1 else ("RGB", "")
        mean, std = ([round(value, 6) for value in each] for each in (self.preprocessing.mean, self.preprocessing.std))
        return (
            "import numpy as np\nfrom PIL import Image, ImageOps\n"
            f'image = ImageOps.exif_transpose(Image.open("image.png")).convert("{mode}")\n'
            f"image = ImageOps.fit(image, ({width}, {height}), Image.Resampling.{self.interpolation.upper()}, "
            f"bleed={round((1 - self.crop) / 2, 6)})\n"
            f"pixels = (np.array(image){pixels} / 255 - {mean}) / {std}\n"
            "image = pixels.transpose(2, 0, 1)[None].astype(np.float32)\n"
        )


@dataclass(eq=False)
class TextInputs(Inputs):
    """Texts, or pairs of texts, become tokens."""

    tokenizer: Tokenizer
    """Of the data."""
    limit: int
    """Tokens at most."""
    truncation: Literal["cut", "refuse"]
    """What becomes of longer ones."""
    collate: PadCollate
    """Makes the batch."""
    _: KW_ONLY
    pairs: bool = False
    """Whether a sample is a pair of texts."""

    def __post_init__(self) -> None:
        tokens: Any = self.tokenizer.vocabulary_size
        if isinstance(self.tokenizer, PretrainedTokenizer):
            tokens = sorted(self.tokenizer.tokenizer.get_vocab().items())
        told = [tokens, self.limit, self.truncation, self.pairs, self.tokenizer.encode(_PROBES)["input_ids"]]
        self.fingerprint = sha256(json.dumps(told).encode()).hexdigest()[:16]

    def __call__(self, given: Any) -> Batch:
        one = isinstance(given, tuple) and len(given) == 2 if self.pairs else isinstance(given, str)
        kind = "pairs of texts, each a tuple of two" if self.pairs else "texts"
        rows = [given] if one else _listed(given, kind)
        for place, row in enumerate(rows):
            parts = row if self.pairs else (row,)
            whole = isinstance(parts, tuple | list) and len(parts) == 1 + self.pairs
            if not whole or not all(isinstance(part, str) for part in parts):
                raise UserError(f"Expected {kind}, but number {place} is {_named(row)}.")
        columns = zip(*rows, strict=True) if self.pairs else [rows]
        with as_user_error(f"Expected {kind} of characters that UTF-8 has"):
            texts = [pa.array(list(column), pa.string()) for column in columns]
        split = SentenceSplit("the texts given", np.arange(len(rows)), None, *texts, seed=0)
        split.encode(self.tokenizer, self.limit, self.truncation)
        return self.collate([split.inputs(place) for place in range(len(rows))])

    def save(self, folder: Path) -> None:
        if isinstance(self.tokenizer, PretrainedTokenizer):
            with as_user_error(f"The tokenizer {self.tokenizer.name} cannot be written"):
                self.tokenizer.tokenizer.save_pretrained(folder)

    def usage(self, names: Iterable[str]) -> str:
        example = 'texts = ["A first text.", "And another."]\n'
        arrays = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        made = {name: f"np.array([row.{arrays[name]} for row in rows], np.int64)" for name in names}
        if isinstance(self.tokenizer, ByteTokenizer):
            end, room = self.tokenizer.eos_id, self.limit - 2
            made = {
                "input_ids": f"np.array([row + [{self.tokenizer.pad_id}] * (longest - len(row)) for row in rows])",
                "attention_mask": "np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])",
            }
            read = f"rows = [[*text.encode()[: {self.limit - 1}], {end}] for text in texts]\n"
            if self.pairs:
                read = (
                    "rows = []\n"
                    "for first, second in ((one.encode(), other.encode()) for one, other in texts):\n"
                    f"    kept = min(len(second), max({room // 2}, {room} - len(first)))\n"
                    f"    rows.append([*first[: {room} - kept], {end}, *second[:kept], {end}])\n"
                )
            read += "longest = max(map(len, rows))\n"
            head = "import numpy as np\n"
        else:
            assert isinstance(self.tokenizer, PretrainedTokenizer)
            if "token_type_ids" not in self.tokenizer.encode(_PROBES):
                made.pop("token_type_ids", None)  # the model was trained on zeros
            pad, side = self.collate.padding["input_ids"], self.tokenizer.tokenizer.truncation_side
            head = "import numpy as np\nfrom tokenizers import Tokenizer\n"
            read = (
                'tokenizer = Tokenizer.from_file("tokenizer.json")\n'
                f'tokenizer.enable_truncation({self.limit}, direction="{side}")\n'
                f"tokenizer.enable_padding(pad_id={pad})\n"
                "rows = tokenizer.encode_batch(texts)\n"
            )
        made |= {name: "np.zeros_like(input_ids)" for name in names if name not in made}
        if self.pairs:
            example = 'texts = [("A first text.", "And the second of this pair.")]\n'
        return head + example + read + "".join(f"{name} = {value}\n" for name, value in made.items())


def from_array(pixels: np.ndarray[Any, Any], channels: int) -> PIL.Image.Image | tv_tensors.Image:
    """An image (H, W) or (H, W, C): whole numbers 0 … 255 as PIL's, floats 0 … 1 as a tensor of so many channels."""
    shaped = pixels[..., None] if pixels.ndim == 2 else pixels
    if shaped.ndim != 3 or 0 in shaped.shape or shaped.shape[2] not in (1, 3, 4, channels):
        raise UserError(
            f"expected an array (height, width) or (height, width, channels), of 1, 3 or 4 channels, got {pixels.shape}"
        )
    if pixels.dtype == np.uint8 and shaped.shape[2] in (1, 3, 4):
        return PIL.Image.fromarray(shaped[..., 0] if shaped.shape[2] == 1 else shaped)
    floats = np.issubdtype(pixels.dtype, np.floating)
    if pixels.dtype != np.uint8 and not (floats and shaped.min() >= 0 and shaped.max() <= 1):
        told = f"{pixels.dtype} within {shaped.min():g} … {shaped.max():g}"
        raise UserError(f"expected an array of uint8, or of floats within 0 … 1, got {told}")
    image = torch.from_numpy(np.ascontiguousarray(shaped)).permute(2, 0, 1)
    image = image.float() if image.is_floating_point() else image
    if (image.shape[0], channels) == (1, 3):
        image = image.expand(3, -1, -1)
    elif (image.shape[0], channels) == (3, 1):
        image = v2.functional.rgb_to_grayscale(image)
    if image.shape[0] != channels:
        raise UserError(f"the model reads {channels} channels, the array has {image.shape[0]}")
    return tv_tensors.Image(image)


def _listed(given: Any, what: str) -> list[Any]:
    """Those of a list, tuple, array or column."""
    if not isinstance(given, list | tuple):
        if not hasattr(given, "tolist") or isinstance(given, Tensor) or not getattr(given, "ndim", 1):
            raise UserError(
                f"Expected {what}, one or a list of them, but got {_named(given)}. A batch is a mapping, as "
                "Backbone.forward takes it."
            )
        given = list(given) if isinstance(given, np.ndarray) and given.dtype.kind not in "US" else given.tolist()
    if not len(given):
        raise UserError(f"Expected {what}, but got an empty list.")
    return list(given)


def _named(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
