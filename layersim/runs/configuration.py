"""A run's configuration as it is kept: in its directory, in its loggers and in its checkpoints."""

from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from layersim.module import LayerwiseModule
from layersim.report.configuration import flat
from layersim.report.environment import write_environment
from layersim.report.secrets import MASK, masked
from layersim.runs.parameters import parameters_of
from layersim.runs.resume import begun_by
from layersim.runs.tracking import Wandb
from layersim.writing import written_whole

_OF_SOME_VERBS = {"weights_only", "verbose", "return_predictions"}
"""Lightning's options that not every verb has; untouched they are not kept, so that each reads the others' recipes."""


class RunConfig(SaveConfigCallback):
    """Saves the run's configuration as `config.yaml` in its directory, in its loggers and in its checkpoints."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, verb: str = "fit") -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.verb = verb
        self._read()

    def _read(self) -> None:
        kept = self.config.clone()
        for name in _OF_SOME_VERBS & {*kept.keys()}:
            if kept[name] == self.parser.get_default(name):
                del kept[name]
        self._text = masked(self.parser.dump(kept, skip_none=False))
        self.config_dict: dict[str, Any] = yaml.safe_load(self._text)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(trainer.default_root_dir) / self.config_filename
        with written_whole(path) as part:
            part.write_text(self._text, encoding="utf-8")
        if MASK in self._text:
            rank_zero_info(f"What looks like a password or a token is masked in {path}: type it where that runs again.")
        write_facts(path.parent, trainer, pl_module, self.verb)
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams(flat(self.config_dict))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (values := found(trainer, self.config)):
            return
        for flag, value in values.items():
            self.config[flag] = value
        done = {finder.__name__ for finder in (BatchSizeFinder, LearningRateFinder)}
        told = self.config.trainer.callbacks
        self.config.trainer.callbacks = [call for call in told if call.class_path.rpartition(".")[2] not in done]
        self._read()
        pl_module.save_hyperparameters(dict(pl_module.hparams) | self.config_dict["model"], logger=False)
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")
            flags = ", ".join(f"--{flag}={value:g}" for flag, value in values.items())
            rank_zero_info(f"Found, and written to {self.config_filename}: {flags}.")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        run_ids = [logger.version for logger in trainer.loggers if isinstance(logger, Wandb)]
        checkpoint["layersim"] = {"config": self.config_dict, "wandb_run_id": run_ids[0] if run_ids else None}


def found(trainer: Trainer, config: Namespace) -> dict[str, Any]:
    """What Lightning's finders have changed of a run's configuration, by the options' whole flags."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    values: dict[str, Any] = {}
    if any(isinstance(callback, BatchSizeFinder) for callback in callbacks):
        values["data.init_args.batch_size"] = trainer.datamodule.batch_size  # type: ignore[attr-defined]
    if any(isinstance(callback, LearningRateFinder) for callback in callbacks):
        values["model.optimizer.init_args.lr"] = trainer.lightning_module.learning_rate
    return {flag: value for flag, value in values.items() if config.get(flag, value) != value}


def write_facts(directory: Path, trainer: Trainer, module: LightningModule, verb: str) -> None:
    """Writes the run's `environment.json`: by which verb, on what, and how large a model."""
    device = trainer.strategy.root_device
    facts = {
        "verb": verb,
        "device": f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type,
        "processes": str(trainer.world_size),
        "precision": str(trainer.precision),
        **({"parameters": parameters_of(module)} if isinstance(module, LayerwiseModule) else {}),
        **begun_by(),
    }
    write_environment(directory, facts)
