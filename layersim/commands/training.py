"""The verbs that train and measure: LightningCLI with run directories, early checks and the user's word first."""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from layersim.commands.console import in_few_lines, quiet
from layersim.commands.default_callbacks import take_shipped_callbacks, with_defaults
from layersim.commands.exit_request import ExitRequest
from layersim.commands.exits import calibrate_exits
from layersim.commands.export import export_model
from layersim.commands.given_data import check_data, check_unseen
from layersim.commands.parser import Parser, with_values
from layersim.commands.preflight import check_labelled, check_limits, classes_of, is_new_head, resumed, with_checkpoint
from layersim.commands.start import EpochTime, told
from layersim.commands.verb_help import HANDED_ON, OWN, asked_section, print_section
from layersim.data import SplitDataModule
from layersim.data.streams import UNTOLD_CLASSES
from layersim.errors import UserError, of_option, user_path
from layersim.freezing import named_parts
from layersim.module import LayerwiseModule
from layersim.runs import directory as run_directory
from layersim.runs.checkpoints import check_complete, check_fits, read_checkpoint
from layersim.runs.class_names import check_same_classes, head_classes
from layersim.runs.configuration import RunConfig
from layersim.runs.models import make_data
from layersim.runs.processes import ending_together
from layersim.runs.refusals import refusing, running
from layersim.runs.rehearsal import STAGES, check_monitors, evaluated, logged_names, require_logged
from layersim.runs.resume import earlier_rows
from layersim.runs.stopping import StopOnSignal, stopped_first
from layersim.runs.tracking import TensorBoard, Wandb, WholeTable, finish
from layersim.runs.whole_checkpoints import WholeCheckpoints, WholeShards
from layersim.sharding import refuse_other_sharding
from layersim.sweep.flags import from_agent, under_agent

_RUN_DIRECTORY = "LAYERSIM_RUN_DIRECTORY"
"""Tells the processes that DDP starts where their run lives."""


class _Trainer(Trainer):
    """Lightning's Trainer."""

    # Our verbs, where LightningCLI looks for their options.
    exits = staticmethod(calibrate_exits)
    export = staticmethod(export_model)


class _Parser(Parser, LightningArgumentParser): ...


class LayerwiseCLI(LightningCLI):
    """`layersim fit`, `validate`, `test`, `predict`, `exits` and `export`.

    What the user types beats the recipe, the recipe beats a checkpoint's hyper-parameters, and these beat
    `defaults.yaml`. Where neither recipe nor data are typed, the checkpoint's own data are taken.
    """

    model: LayerwiseModule
    datamodule: SplitDataModule
    _data: SplitDataModule | None = None
    """The data, where they had to be seen before the model is made."""

    def __init__(self, args: ArgsType = None) -> None:
        given = list(sys.argv[1:] if args is None else args)
        take_shipped_callbacks()
        self._verb = given[0]  # a parser for each verb would take time to build
        defaults = {"default_config_files": [str(Path(__file__).with_name("defaults.yaml"))]}
        super().__init__(
            LayerwiseModule,
            SplitDataModule,
            subclass_mode_data=True,
            trainer_class=_Trainer,
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False, self._verb: defaults},
            auto_configure_optimizers=False,
            parser_class=_Parser,
            args=given,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return {self._verb: HANDED_ON}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str, default="default", help=OWN["experiment"])
        parser.add_argument("--without", type=str | list[str] | None, default=None, help=OWN["without"])
        if self._verb == "fit":
            parser.add_argument("--resume", type=str | None, default=None, help=OWN["resume"])

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        if asked := asked_section(args):
            print_section(self._parser(self._verb), self._verb, asked)
            sys.exit()
        self.config = parser.parse_args(with_checkpoint(resumed(with_values(args))))
        verb = self.config.subcommand
        self.config[verb].pop("resume", None)
        trainer, default = self.config[verb].trainer, self._parser(verb).get_defaults().trainer.callbacks
        given = _as_list(trainer.callbacks)
        trainer.callbacks, replaced = with_defaults(given, default, self.config[verb].without)
        if verb == "export" or trainer.barebones:  # which record nothing
            trainer.callbacks = [call for call in given if call not in default]
        elif replaced:
            rank_zero_info(f"The recipe's own {', '.join(replaced)} stands for the default one.")

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's hyper-parameters beat what the user typed; `with_checkpoint` sees to them."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # RunRecorder's table says it better than Lightning's
        return parser

    def _set_seed(self) -> None:
        with refusing("The seed cannot be set", "Change --seed_everything."):
            super()._set_seed()

    def before_instantiate_classes(self) -> None:
        if self.subcommand == "exits":
            self._asked().check()
        model = self._get(self.config, "model")
        named_parts(model.freeze, str(getattr(model.head, "class_path", model.head)))
        run_directory.check_writable(*self._place())
        check_limits(self._get(self.config, "trainer"), str(self.subcommand), self._get(self.config, "split"))
        refuse_other_sharding(self._get(self.config, "trainer").strategy)
        if self._get(self.config, "ckpt_path"):  # what the published weights lack comes from there
            warnings.filterwarnings("ignore", ".*( has no trained | is adapted to this model)", UserWarning)

    def _dump_config(self) -> None:
        """Lightning asks for it as each part is made; it is the text that the run keeps."""
        if not hasattr(self, "config_dump"):
            kept = RunConfig(self._parser(self._verb), self.config[self._verb], self._verb)
            self.config_dump = kept.config_dict
            self.save_config_callback = lambda *_: kept  # type: ignore[assignment]

    def instantiate_classes(self) -> None:
        with refusing("These options do not go together", "`layersim VERB --help` lists them."):
            self._take_classes_from_data()
            self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self._data or self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def _asked(self) -> ExitRequest:
        return ExitRequest(**{field.name: self._get(self.config, field.name) for field in fields(ExitRequest)})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        checkpoint = self._preflight()
        instantiator = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
        model, self.datamodule.section = self.config_dump["model"], self.config_dump["data"]
        self.model.save_hyperparameters(instantiator | model, logger=False)
        config = self._get(self.config_init, "trainer")
        if self.subcommand == "export" or config.barebones:
            self.save_config_callback = None
            if config.barebones:
                rank_zero_info("trainer.barebones: nothing is measured, recorded or saved; there is no run directory.")
                warnings.filterwarnings("ignore", "You are trying to `self.log")
                config.log_every_n_steps = 0
            return self._make_trainer(logger=False, enable_checkpointing=False)
        if self.subcommand != "fit":
            # Nothing is saved here, and what the training's ModelCheckpoint knew is not missed.
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks")
            config.enable_checkpointing = False  # else Lightning brings one of its own
        elif config.enable_checkpointing is False:
            rank_zero_info("No checkpoints are kept, as trainer.enable_checkpointing is false.")
        if config.enable_checkpointing is False:
            config.callbacks = [call for call in config.callbacks if not isinstance(call, Checkpoint)]
        directory = self._directory()
        csv = WholeTable(directory)
        table = csv.experiment  # opened while the directory is still empty, else Lightning warns that it is not
        if self.subcommand == "fit" and checkpoint and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            path = Path(self._get(self.config, "ckpt_path"))
            table.metrics.extend(earlier_rows(path.parent.parent / "metrics.csv", checkpoint))
        others = [logger for logger in _as_list(config.logger) if not isinstance(logger, bool)]
        name = f"{self._place()[1]}/{directory.name}"
        run_id = checkpoint.get("layersim", {}).get("wandb_run_id") if self.subcommand == "fit" else None
        for logger in others:
            if isinstance(logger, Wandb | TensorBoard):
                logger.start_in(directory, run_id or directory.name, name)
        return self._make_trainer(logger=[csv, *others], default_root_dir=str(directory), **kwargs)

    def _make_trainer(self, **options: Any) -> Trainer:
        given = _as_list(self._get(self.config_init, "trainer").callbacks)  # before Lightning adds its own to the list
        with refusing("Lightning refuses the trainer's options", "Change them under --trainer."):
            trainer = super().instantiate_trainer(**options)
        if self.subcommand == "fit" and self.datamodule.stream is not None:
            self.datamodule.stream.check_end(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else the recipe's own plugin, or a strategy's
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        if type(trainer.strategy) is ModelParallelStrategy:
            trainer.strategy.__class__ = WholeShards
        stop = [] if trainer.barebones else [EpochTime(), StopOnSignal()]  # last, to save what others know of a step
        trainer.callbacks = [*in_few_lines(trainer.callbacks, given), *stop]  # type: ignore[attr-defined]
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        ours: dict[str, Any] = {"trainer": self.trainer} if subcommand in vars(_Trainer) else {}
        if subcommand == "predict":  # nobody is there to take them, features of every layer
            ours["return_predictions"] = False
        return super()._prepare_subcommand_kwargs(subcommand) | ours

    def _run_subcommand(self, subcommand: str) -> None:
        told_of = told(subcommand, self.model, self.datamodule, self.trainer, self.config_dump)
        with stopped_first(self.trainer), ending_together(self.trainer), running(self.trainer), told_of:
            super()._run_subcommand(subcommand)
        directory = Path(self.trainer.default_root_dir)
        wrote = self.save_config_callback and self.trainer.is_global_zero and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if wrote and not (directory / "config.yaml").exists():
            raise UserError(f"The run's directory {directory} was deleted, or emptied, while the run went on.")

    def _take_classes_from_data(self) -> None:
        """Where a head is new and nobody says of how many classes, it gets the data's."""
        config = self.config[self.subcommand]
        options = config.model.backbone.get("init_args") or {}
        if config.get("ckpt_path") or not is_new_head(options):
            return
        self._data = make_data(config.data.as_dict())
        self._data.setup()
        if (classes := classes_of(self._data)) is None:
            if self._data.stream is not None:
                raise UserError(UNTOLD_CLASSES)
            return
        options["num_classes"] = classes
        rank_zero_info(f"The head is new and tells the data's {classes} classes apart (num_classes is not given).")

    def _preflight(self) -> dict[str, Any]:
        """All that can be known to go wrong, found before a run directory exists. Returns the checkpoint, if any."""
        checkpoint: dict[str, Any] = {}
        if self.subcommand == "export":  # which looks at what it needs of checkpoint and data itself
            return checkpoint
        if path := self._get(self.config, "ckpt_path"):
            sharded = isinstance(self._get(self.config_init, "trainer").strategy, ModelParallelStrategy)
            checkpoint = read_checkpoint(path, shapes_only=sharded)
            check_fits(checkpoint["state_dict"], self.model, path)
            check_complete(checkpoint, path, resume=self.subcommand == "fit", sharded=sharded)
        check_data(self.model.backbone, self.datamodule)
        known, there = self.model.backbone.num_classes, classes_of(self.datamodule)
        if there is not None and there != known and not self.model.backbone.reads_tokens:
            rank_zero_info(
                f"The head tells {known} classes apart, but the data has {there}: predictions may be of others. "
                f"--model.backbone.init_args.num_classes={there} makes a head of the data's."
            )
        elif not path and not self.model.backbone.fresh_classifier:  # a checkpoint's are compared as it is loaded
            measured = self.subcommand in ("validate", "test", "exits")
            check_same_classes(head_classes(self.model.backbone), self.datamodule, measured=measured)
        if self.subcommand == "exits":
            self._asked().check_on(self.model, self.datamodule)
            if (shifted := self._get(self.config_init, "shifted_data")) is not None:
                of_option("--shifted_data")(check_data)(self.model.backbone, shifted)
        if self.subcommand == "test":
            self.datamodule.test_dataloader()
        check_unseen(str(self.subcommand), checkpoint, self.datamodule, self.config_dump)
        self._check_measures()
        return checkpoint

    def _check_measures(self) -> None:
        """Whether the samples are enough for what shall be measured, and whether what is waited for is logged."""
        verb = str(self.subcommand)
        if verb not in (*STAGES, "exits"):
            return
        stage: str = STAGES.get(verb) or self._get(self.config_init, "split")
        given = self._get(self.config_init, "trainer")
        limit = 1 if given.fast_dev_run is True else given.fast_dev_run or given[f"limit_{stage}_batches"]
        samples = evaluated(len(self.datamodule.splits[stage]), self.datamodule.eval_batch_size, limit)
        known = None if self.model.backbone.reads_tokens and samples else samples
        callbacks = _as_list(given.callbacks)
        if not self.model.backbone.reads_tokens:
            check_labelled(self.datamodule.splits[stage], callbacks)
        names = logged_names(callbacks, self.model, known, verb=verb, stage=stage)
        waited = self.model.check_optimizer() if verb == "fit" else None
        if verb == "fit" and samples:
            if waited is not None:
                require_logged(waited, names, "ReduceLROnPlateau", "--model.lr_scheduler.monitor")
            kept = given.enable_checkpointing is not False
            check_monitors([call for call in callbacks if kept or not isinstance(call, Checkpoint)], names)

    def _place(self) -> tuple[Path, str]:
        root = self._get(self.config, "trainer").default_root_dir
        return user_path(root or run_directory.DEFAULT_ROOT), self._get(self.config, "experiment")

    def _directory(self) -> Path:
        """The run's directory: made by the first process, told to those that it starts.

        Processes that somebody else started (torchrun, SLURM) are not told, and need not be: they write nothing.
        """
        root, experiment = self._place()
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            os.environ[_RUN_DIRECTORY] = str(run_directory.reserve(root, experiment))
        return Path(os.environ.get(_RUN_DIRECTORY, root / experiment))


def main(args: Sequence[str]) -> None:
    """Runs `layersim fit …` and its like; an exception says what is wrong."""
    quiet()
    status = 1
    with run_directory.discarding_unused():
        try:
            LayerwiseCLI(from_agent(args) if under_agent() else list(args))
            status = 0
        finally:
            finish(status)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
