"""The verbs that act on a trained model: Lightning's Trainer, with `exits` and `export`."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor

from layersim import export
from layersim.commands.exit_report import report_of, show, with_speeds
from layersim.commands.exit_request import ExitRequest
from layersim.data import SplitDataModule
from layersim.errors import UserError
from layersim.evaluation import Accuracies, Collector, Tables
from layersim.exits import (
    POLICIES,
    ExitSummary,
    Method,
    Risk,
    best_within,
    calibrate,
    split_for_temperatures,
)
from layersim.exits.policies import Policy
from layersim.metrics.effective_depth import check_epsilon, effective_depth
from layersim.module import LayerwiseModule
from layersim.report.exits import ExitReport, write_exit_report
from layersim.report.page import PAGE_FILE, write_page
from layersim.runs.checkpoints import check_fits, read_checkpoint

_SPEED_SAMPLES = 512
"""So many samples are timed, at most."""


class LayerwiseTrainer(Trainer):
    """Lightning's Trainer with two more verbs, which take what `validate` takes."""

    def exits(
        self,
        model: LayerwiseModule,
        datamodule: SplitDataModule,
        ckpt_path: str | None = None,
        policy: Literal["confidence", "margin", "entropy", "patience", "similarity"] = "confidence",
        risk: float = 0.01,
        risk_of: Risk = "error",
        confidence: float = 0.95,
        method: Method = "ltt",
        budget: float | None = None,
        temperature_share: float = 0.0,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        measure_speed: bool = True,
    ) -> ExitReport:
        """Find the threshold at which samples may leave early, with a guarantee, and what it saves.

        Measures the model on held-out data, chooses the threshold, times it, and writes `exits.json` into the run's
        directory. The data must not have been trained on; a checkpoint picked as the best on the validation split was
        picked on these samples too, so that `--split test` promises more honestly.

        Args:
            model: a classifier.
            datamodule: its data.
            ckpt_path: the checkpoint to load; the model as it is where None.
            policy: the rule to leave by; see `layersim.exits.policies`.
            risk: the greatest rise of the risk over the full model's that is accepted, between 0 and 1.
            risk_of: `error` rate; `disagreement` with the full model; `loss`, half the Brier score.
            confidence: the probability of the promise; `crc` promises a mean and does not use it.
            method: `ltt`, learn then test; `ucb`, an upper confidence bound; `crc`, conformal risk control.
            budget: choose the best accuracy within this share of the layers instead, 0 … 1, without a promise.
            temperature_share: share of the samples on which a temperature is fitted for each layer first; the threshold
                is then chosen on the others. 0: no temperatures.
            split: which split to choose on.
            seed: of the shares, the order of the samples and the bootstrap.
            measure_speed: time the model with and without exits on this machine, at the data's evaluation batch size.

        Raises:
            UserError: a language model; a split that shares samples with the training data; options out of their
                range; too few samples for the promise.
        """
        asked = ExitRequest(risk, risk_of, confidence, method, budget, temperature_share, split)
        asked.check()
        datamodule.setup()
        asked.check_on(model, datamodule)
        chosen = POLICIES[policy]()
        fitted = None
        if temperature_share:
            fitted, _ = split_for_temperatures(len(datamodule.splits[split]), temperature_share, seed)
        rank_zero_info(f"Measuring every layer on the {len(datamodule.splits[split])} samples of the {split} split.")
        tables = Tables(chosen, fitted)
        self._collect(tables, model, datamodule, split, ckpt_path)
        table, temperatures = tables.collected(), tables.temperatures
        rank_zero_info(f"Choosing a threshold of the policy {policy} on {len(table.targets)} samples.")
        thresholds = chosen.thresholds(model.head.num_classes, model.num_layers)
        found: ExitSummary
        if budget is None:
            found = calibrate(
                table, chosen, thresholds, target=risk, risk=risk_of, confidence=confidence, method=method, seed=seed
            )
        else:
            found = best_within(table, chosen, thresholds, budget)
        report = report_of(
            model, table, chosen, found, temperatures, thresholds, seed=seed, device=str(self.strategy.root_device)
        )
        if self.is_global_zero:
            if measure_speed:
                report = self._timed(report, model, datamodule, chosen, temperatures, split)
            path = write_exit_report(Path(self.default_root_dir), report)
            if (page := path.with_name(PAGE_FILE)).exists():  # written when the evaluation ended, before the exits
                write_page([path.parent], page, stage="validate" if split == "val" else "test")
            show(report, found, path)
        return report

    def export(
        self,
        model: LayerwiseModule,
        datamodule: SplitDataModule,
        to: Path,
        ckpt_path: str | None = None,
        layers: int | None = None,
        tolerance: float | None = None,
        remove: int | None = None,
        criterion: Literal["angular", "influence"] = "angular",
        removal_batches: int = 50,
        format: Literal["stock", "onnx", "torch"] = "stock",
        overwrite: bool = False,
    ) -> Path:
        """Write a model of its own: whole, cut to its first layers, or without the blocks that matter least.

        What is written needs no layersim: a folder that timm or transformers loads, an ONNX file, or a program for
        `torch.export.load`, each with a README of the lines that load it.

        Args:
            model: the model.
            datamodule: its data; read only for `tolerance` and `remove`.
            to: the folder to make.
            ckpt_path: the checkpoint to load; the model as it is where None.
            layers: keep the first so many, 1 … L.
            tolerance: keep the model's effective depth on the validation split: the fewest layers whose accuracy is
                within this of the best layer's, such as 0.01.
            remove: leave out this many consecutive blocks, those that change features least on training data; what it
                costs is measured on the validation split. The first block always stays.
            criterion: how change is measured: the `angular` distance of what goes into the blocks to what comes out
                (arXiv 2403.17887), or the blocks' `influence` (arXiv 2403.03853).
            removal_batches: training batches that `remove` looks at.
            format: `stock`, `onnx` or `torch`.
            overwrite: replace an export that stands there.

        Raises:
            UserError: more than one of layers, tolerance and remove; a number out of its range; a destination that
                exists; a model that cannot be written so.
        """
        if sum(option is not None for option in (layers, tolerance, remove)) > 1:
            raise UserError("Expected at most one of --layers, --tolerance and --remove, but got several.")
        if self.world_size > 1:
            raise UserError("A model is exported by one process. Set --trainer.devices=1.")
        if tolerance is not None:
            check_epsilon(tolerance, "--tolerance")
        export.check_destination(to, overwrite)
        checkpoint: dict[str, Any] = {}
        if ckpt_path is not None:
            checkpoint = read_checkpoint(ckpt_path)
            check_fits(checkpoint["state_dict"], model, ckpt_path)
            model.load_state_dict(checkpoint["state_dict"])
        kept: int | list[int] = model.num_layers if layers is None else layers
        within = ""
        if tolerance is not None:
            datamodule.check(model.backbone)
            accuracies = Accuracies(model.num_layers)
            self._collect(accuracies, model, datamodule, "val", None)
            found = effective_depth(accuracies.collected(), tolerance)
            if found is None:
                raise UserError("--tolerance asks for accuracies, but no validation sample was read. Give --layers.")
            kept = found
            within = f", the fewest within {tolerance:g} of the best layer's accuracy,"
        elif remove is not None:
            datamodule.check(model.backbone)
            kept = self._removal(model, datamodule, remove, criterion, removal_batches)
        write = {"onnx": export.export_onnx, "torch": export.export_program}
        if format == "stock":
            names = _class_names(checkpoint) or datamodule.class_names
            named = names if names and len(names) == model.backbone.num_classes else None
            path = export.export_stock(model.backbone, model.head, kept, to, class_names=named, overwrite=overwrite)
        else:
            path = write[format](model.backbone, model.head, kept, to, overwrite=overwrite)
        told = (
            f"{kept} of {model.num_layers} layers{within}"
            if isinstance(kept, int)
            else f"layers {[n + 1 for n in kept]}"
        )
        Console().print(f"Exported {told} to {path}; its README.md says how to load it.", soft_wrap=True)
        return path

    def _collect(
        self,
        collector: Collector,
        model: LayerwiseModule,
        datamodule: SplitDataModule,
        split: str,
        ckpt_path: str | None,
    ) -> None:
        """One evaluation epoch for the collector, beside the callbacks that measure and record."""
        callbacks: list[Callback] = self.callbacks  # type: ignore[has-type]
        self.callbacks = [*callbacks, collector]
        try:
            evaluate = self.validate if split == "val" else self.test
            evaluate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)
        finally:
            self.callbacks = callbacks

    def _timed(
        self,
        report: ExitReport,
        model: LayerwiseModule,
        datamodule: SplitDataModule,
        policy: Policy,
        temperatures: Tensor | None,
        split: str,
    ) -> ExitReport:
        device = self.strategy.root_device
        model.to(device)
        loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
        count = max(1, _SPEED_SAMPLES // datamodule.eval_batch_size)
        batches: list[Mapping[str, Any]] = [
            datamodule.transfer_batch_to_device(batch, device, 0) for batch in islice(loader, count)
        ]
        rank_zero_info(f"Timing the model with and without exits on {len(batches)} batches.")
        with self.precision_plugin.forward_context():
            return with_speeds(report, model, policy, temperatures, batches)

    def _removal(
        self, model: LayerwiseModule, datamodule: SplitDataModule, blocks: int, criterion: Any, batches: int
    ) -> list[int]:
        """The layers that stay, 0 … L − 1."""
        changes = export.feature_changes(model.backbone, islice(datamodule.train_dataloader(), batches), criterion)
        removal = export.propose_removal(changes, blocks, criterion)
        trial = export.try_removal(model.backbone, model.head, removal, datamodule.val_dataloader())
        Console().print(
            f"Without blocks {removal.first} … {removal.last}, whose removal changes features least "
            f"({criterion} {removal.change:.4f}), on {trial.samples} samples: "
            f"loss {trial.whole.loss:.4f} → {trial.measured.loss:.4f} (predicted {trial.predicted.loss:.4f}), "
            f"accuracy {trial.whole.accuracy:.4f} → {trial.measured.accuracy:.4f} "
            f"(predicted {trial.predicted.accuracy:.4f})."
        )
        return removal.kept


def _class_names(checkpoint: dict[str, Any]) -> list[str] | None:
    """The names that the data module of the training, whichever it was, has left in its checkpoint."""
    states = (entry for entry in checkpoint.values() if isinstance(entry, dict))
    return next((state["class_names"] for state in states if "class_names" in state), None)
