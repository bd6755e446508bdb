"""Whether a model reads a verb's data, and was trained on them though they are drawn otherwise now."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from layersim.backbones.base import Backbone
from layersim.commands.console import unsaid
from layersim.data import SplitDataModule
from layersim.data.splits import shared_samples
from layersim.errors import UserError
from layersim.report.configuration import below
from layersim.runs.models import check_kind, make_data

_DRAWN_BY = (
    *("seed", "val_fraction", "test_fraction", "max_train_samples", "max_eval_samples"),
    *("train_split", "val_split", "test_split"),
)


def check_data(backbone: Backbone, data: SplitDataModule) -> None:
    """Refuses data that the model does not read."""
    check_kind(backbone, data)
    data.check(backbone)


def check_unseen(verb: str, checkpoint: Mapping[str, Any], data: SplitDataModule, config: Mapping[str, Any]) -> None:
    """Tells where a verb measures samples that the checkpoint was trained on, or a training shall be; a UserError where
    it would promise."""
    if verb == "fit" and "val" in data.splits and not hasattr(data, "find_duplicates"):  # which look at their content
        with suppress(UserError):  # where nobody can tell
            if common := data.trained_on("val"):
                of_all = f"{common:,} of {len(data.splits['val']):,} samples of val are in train too"
                rank_zero_info(f"{of_all}: what is measured on them says nothing of new ones.")
    split = config["split"] if verb == "exits" else {"fit": "val", "validate": "val", "test": "test"}.get(verb)
    if split in data.splits and (seen := trained_apart(checkpoint, config["data"], data, str(split))):
        if verb == "exits":
            raise UserError(f"{seen}: what is chosen on them promises nothing of new ones. Draw them as in training.")
        rank_zero_info(f"{seen}: what is measured on them says nothing of new ones.")


def trained_apart(checkpoint: Mapping[str, Any], now: Mapping[str, Any], data: SplitDataModule, split: str) -> str:
    """How many samples of a split a checkpoint's training has seen, which drew its splits of the same data by other
    options, in words; empty where it drew them alike, saw none, or nobody can tell."""
    stored = below(below(below(checkpoint, "layersim"), "config"), "data")
    own, here = below(stored, "init_args"), below(now, "init_args")
    changed = [name for name in _DRAWN_BY if own.get(name) != here.get(name)]
    alike = all(own.get(name) == here.get(name) for name in ("path", "name"))
    if not changed or not alike or stored.get("class_path") != now.get("class_path") or own.get("streaming"):
        return ""
    try:
        with unsaid("Data: ", "Whether "):
            then = make_data(stored)
            then.setup()
        common = shared_samples(then.splits["train"], data.splits[split])
    except UserError:  # what is no longer there, or joined splits
        return ""
    if not common:
        return ""
    drew = ", ".join(f"{name}={own.get(name)}" for name in changed)
    return f"{common} of the {len(data.splits[split])} samples of the {split} split were trained on, with {drew}"
