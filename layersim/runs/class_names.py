"""The classes that a head tells apart, by name, beside those of data."""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_info

from layersim.backbones import Backbone
from layersim.data import SplitDataModule
from layersim.errors import UserError
from layersim.runs.models import Source


def head_classes(backbone: Backbone, source: Source | None = None) -> list[str]:
    """The head's classes by name, where its checkpoint or its library keeps names that mean something."""
    if source is not None and source.state is not None:
        return source.class_names or []
    model = getattr(backbone, "model", None)
    names = [*(getattr(getattr(model, "config", None), "id2label", None) or {}).values()]
    names = names or list((getattr(model, "pretrained_cfg", None) or {}).get("label_names") or [])
    return [] if len(names) != backbone.num_classes or str(names[0]).startswith("LABEL_") else [*map(str, names)]


def few(names: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)


def check_same_classes(own: Sequence[str], data: SplitDataModule, *, measured: bool = True) -> None:
    """Says where a head's classes have other names than as many of the data.

    Raises:
        UserError: the same names in another order, and accuracies are to be measured.
    """
    names = data.class_names or []
    ours, theirs = ([*map(str.casefold, each)] for each in (own, names))
    if len(ours) != len(theirs) or ours == theirs:
        return
    first = next(number for number, one in enumerate(ours) if one != theirs[number])
    told = f"Class {first} of the head is {own[first]}, of the data {names[first]}"
    if measured and sorted(ours) == sorted(theirs):
        raise UserError(
            f"{told}: they are the same in another order, and right would count as wrong. Number the labels as the "
            "head does, in --data.label_column; those of a folder of images in a metadata.csv."
        )
    rank_zero_info(f"{told}.")
