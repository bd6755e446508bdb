"""Small pictures in every kind of local source, and data that read them."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from layersim.data import Images

NAMES = ["cat", "dog"]
CONFIG = {
    "input_size": (3, 6, 6),
    "mean": (0.5, 0.25, 0.0),
    "std": (0.5, 0.25, 1.0),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
BACKBONE = SimpleNamespace(num_classes=2, input_size=(3, 6, 6), data_config=CONFIG)


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
