"""The verbs that train and measure: LightningCLI with run directories, early checks and the user's word first."""

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from layersim import run_directory
from layersim.agent import from_agent, under_agent
from layersim.checkpoints import check_fits, read_checkpoint
from layersim.console import in_few_lines, quiet
from layersim.data import SplitDataModule
from layersim.export import check_destination
from layersim.module import LayerwiseModule
from layersim.parameters import parameters_of
from layersim.report.configuration import flat
from layersim.report.environment import write_environment
from layersim.tracking import Settles, Wandb, finish
from layersim.trainer import LayerwiseTrainer, check_exits

_HANDED_ON = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
"""What a verb gets from its recipe, and not as an option of its own."""
VERBS = dict.fromkeys(("fit", "validate", "test", "predict", "exits", "export"), _HANDED_ON)

_RUN_DIRECTORY = "LAYERSIM_RUN_DIRECTORY"
"""Tells the processes that DDP starts where their run lives."""


class Parser(LightningArgumentParser):
    """LightningCLI's parser, without the pages of usage that would hide what an error says."""

    def print_usage(self, file: Any = None) -> None:
        """Nothing: the error's own line follows, and `--help` explains."""


class RunConfig(SaveConfigCallback):
    """Saves the run's configuration as `config.yaml` in its directory, in its loggers and in its checkpoints."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.config_dict: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False))

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(trainer.default_root_dir) / self.config_filename
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)
        write_environment(
            path.parent,
            {
                "device": _name_of(trainer.strategy.root_device),
                "processes": str(trainer.world_size),
                "precision": str(trainer.precision),
                **({"parameters": parameters_of(pl_module)} if isinstance(pl_module, LayerwiseModule) else {}),
                "command": shlex.join(["layersim", *sys.argv[1:]]),
            },
        )
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams(flat(self.config_dict))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        run_ids = [logger.version for logger in trainer.loggers if isinstance(logger, Wandb)]
        checkpoint["layersim"] = {"config": self.config_dict, "wandb_run_id": run_ids[0] if run_ids else None}


class LayerwiseCLI(LightningCLI):
    """`layersim fit`, `validate`, `test`, `predict`, `exits` and `export`.

    What the user types beats the recipe, the recipe beats a checkpoint's hyper-parameters, and these beat
    `defaults.yaml`. Where neither recipe nor data are typed, the checkpoint's own data are taken.
    """

    model: LayerwiseModule
    datamodule: SplitDataModule

    def __init__(self, args: ArgsType = None) -> None:
        given = list(sys.argv[1:] if args is None else args)
        # a parser for each verb takes time to build: one is enough where the verb is known
        self._verbs = {verb: skip for verb, skip in VERBS.items() if verb in given[:1]} or VERBS
        defaults = {"default_config_files": [str(Path(__file__).with_name("defaults.yaml"))]}
        super().__init__(
            LayerwiseModule,
            SplitDataModule,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            trainer_class=LayerwiseTrainer,
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False, **dict.fromkeys(self._verbs, defaults)},
            auto_configure_optimizers=False,
            parser_class=Parser,
            args=given,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return self._verbs

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--experiment", type=str, default="default", help="Runs are kept in <default_root_dir>/<experiment>/."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        self.config = parser.parse_args(with_checkpoint(args))

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's hyper-parameters beat what the user typed; `with_checkpoint` sees to them."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # RunRecorder's table says it better than Lightning's
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # else every feature of every layer stays in memory
        return parser

    def before_instantiate_classes(self) -> None:
        run_directory.check_writable(*self._place())

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        checkpoint = self._preflight()
        instantiator = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
        self.model.save_hyperparameters(instantiator | self.config_dump["model"], logger=False)
        directory = self._directory()
        config = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            # Nothing is saved here, and what the training's ModelCheckpoint knew is not missed.
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks")
            config.callbacks = [call for call in _as_list(config.callbacks) if not isinstance(call, ModelCheckpoint)]
            kwargs["enable_checkpointing"] = False  # else Lightning brings one of its own
        csv = CSVLogger(directory, name="", version="")
        _ = csv.experiment  # opened while the directory is still empty, else Lightning warns that it is not
        others = [logger for logger in _as_list(config.logger) if not isinstance(logger, bool)]
        name = f"{self._place()[1]}/{directory.name}"
        run_id = checkpoint.get("layersim", {}).get("wandb_run_id") if self.subcommand == "fit" else None
        for logger in others:
            if isinstance(logger, Settles):
                logger.settle(directory, run_id or directory.name, name)
        given = _as_list(config.callbacks)  # before Lightning adds its own to the same list
        trainer = super().instantiate_trainer(logger=[csv, *others], default_root_dir=str(directory), **kwargs)
        trainer.callbacks = in_few_lines(trainer.callbacks, given)  # type: ignore[attr-defined]
        return trainer

    def _preflight(self) -> dict[str, Any]:
        """All that can be known to go wrong, found before a run directory exists. Returns the checkpoint, if any."""
        checkpoint: dict[str, Any] = {}
        if path := self._get(self.config, "ckpt_path"):
            checkpoint = read_checkpoint(path)
            check_fits(checkpoint["state_dict"], self.model, path)
        if self.subcommand == "export":
            check_destination(self._get(self.config_init, "to"), self._get(self.config_init, "overwrite"))
            return checkpoint
        self.datamodule.check(self.model.backbone)
        if self.subcommand == "exits":
            check_exits(self.model, self.datamodule, self._get(self.config_init, "split"))
        if self.subcommand == "test":
            self.datamodule.test_dataloader()
        return checkpoint

    def _place(self) -> tuple[Path, str]:
        root = self._get(self.config, "trainer").default_root_dir
        return Path(root or run_directory.DEFAULT_ROOT), self._get(self.config, "experiment")

    def _directory(self) -> Path:
        """The run's directory: made by the first process, told to those that it starts.

        Processes that somebody else started (torchrun, SLURM) are not told, and need not be: they write nothing.
        """
        root, experiment = self._place()
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            os.environ[_RUN_DIRECTORY] = str(run_directory.reserve(root, experiment))
        return Path(os.environ.get(_RUN_DIRECTORY, root / experiment))


def main(args: Sequence[str]) -> int:
    """Runs `layersim fit …` and its like; the exit status is 0, or an exception says what is wrong."""
    quiet()
    status = 1
    try:
        LayerwiseCLI(from_agent(args) if under_agent() else list(args))
        status = 0
    finally:
        finish(status)
    return status


def with_checkpoint(given: list[str]) -> list[str]:
    """The words with a typed checkpoint's model, and its data where neither recipe nor data are typed, as a recipe that
    stands before all others."""
    if not (path := _typed_checkpoint(given)):
        return given
    checkpoint = read_checkpoint(path)
    stored = {"model": checkpoint.get("hyper_parameters", {})}
    stored["model"].pop("_instantiator", None)
    if not any(word.partition("=")[0] in ("--config", "-c", "--data") for word in given):
        whole = checkpoint.get("layersim", {}).get("config", {})
        stored |= {key: whole[key] for key in ("data", "experiment") if key in whole}
    verb = next(place for place, word in enumerate(given) if word in VERBS) + 1
    return [*given[:verb], "--config", yaml.safe_dump(stored), *given[verb:]]


def _typed_checkpoint(args: list[str]) -> str | None:
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--ckpt_path":
            path = value if equals else following
            return None if path == "null" else path
    return None


def _name_of(device: torch.device) -> str:
    """The device's kind and, of a GPU, its maker's name."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
