"""Finished runs of language models, and prompts from their own held-out data."""

from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from layersim.data import SplitDataModule
from layersim.errors import UserError
from layersim.module import LayerwiseModule


def open_run(run: Path) -> tuple[str, LayerwiseModule, SplitDataModule]:
    """The last word of a run's experiment, its model as it was at the end, and its data, in a run's directory."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    module = LayerwiseModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu").eval()
    if not module.backbone.reads_tokens:
        raise UserError(f"Expected runs of language models, but {run} is one of a {type(module.backbone).__name__}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SplitDataModule, "data")
    data: SplitDataModule = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    data.check(module.backbone)
    return config["experiment"].split("/")[-1], module, data


def prompts_of(data: SplitDataModule, count: int, length: int) -> Tensor:
    """(N, P) the first tokens of so many held-out samples, in the order that the data's seed draws."""
    split = data.splits["val"]
    rows = [split[place]["input_ids"] for place in split.order.tolist()]
    found = [torch.as_tensor(row[:length]).long() for row in rows if len(row) >= length][:count]
    if not found:
        raise UserError(f"Expected held-out samples of {length} tokens or more, but there is none.")
    return torch.stack(found)
