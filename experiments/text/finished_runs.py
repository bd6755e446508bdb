"""Finished runs of language models."""

from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

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
