"""`layersim exits`: when samples may leave early, with a guarantee, and what it saves. Letters: L layers, N samples."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor

from layersim.commands.collecting import Ends, Tables, evaluate_epoch, quiet_trainer
from layersim.commands.exit_plan import plan_of
from layersim.commands.exit_request import ExitRequest, Texts
from layersim.commands.token_exits import calibrate_token_exits
from layersim.data import SplitDataModule
from layersim.data.inputs import Inputs
from layersim.errors import UserError
from layersim.evaluation import evaluate
from layersim.exits import (
    POLICIES,
    Calibration,
    EarlyExit,
    ExitSummary,
    ExitTable,
    Method,
    Risk,
    Shift,
    best_within,
    calibrate_together,
    calibrations,
    estimate_shift,
    exit_curve,
    reference_of,
    split_for_temperatures,
)
from layersim.exits import measure_speed as measure_speeds
from layersim.exits.curve import spread
from layersim.exits.policies import Policy
from layersim.exits.speed import Batch
from layersim.exits.token_calibration import TokenRisk
from layersim.metrics import saturation_layer
from layersim.module import LayerwiseModule
from layersim.report.exits import ExitReport
from layersim.report.page import PAGE_FILE, write_page
from layersim.report.token_exits import TokenExitReport
from layersim.report.tradeoff import calibration_table, choices_table, plan_table, tradeoff_table
from layersim.runs.models import check_kind
from layersim.runs.parameters import fingerprint, parameters_of

_TIMED = 5
"""Thresholds that are timed beside the chosen one, evenly spread over the mean exit layer."""
_SPEED_SAMPLES = 512
"""So many samples are timed, at most."""


def calibrate_exits(
    model: LayerwiseModule,
    datamodule: SplitDataModule,
    trainer: Trainer | None = None,
    ckpt_path: str | None = None,
    policy: Literal["confidence", "margin", "entropy", "patience", "similarity"] = "confidence",
    risk: float | list[float] | str = 0.01,
    risk_of: Risk | TokenRisk | None = None,
    confidence: float = 0.95,
    method: Method = "ltt",
    budget: float | None = None,
    shifted_data: SplitDataModule | None = None,
    temperature_share: float = 0.0,
    split: Literal["val", "test"] = "val",
    seed: int = 0,
    measure_speed: bool = True,
    plan: bool = False,
    texts: Texts | None = None,
) -> ExitReport | TokenExitReport:
    """Find the threshold at which samples may leave early, with a guarantee, and what it saves.

    Measures the model on held-out data, chooses the threshold, times it, tells what was found, and writes `exits.json`
    into the run's directory. The data must not have been trained on; a checkpoint picked as the best on the validation
    split was picked on these samples too, so that `--split test` promises more honestly.

    Args:
        model: a classifier, or a language model, of which `token_exits.json` is written.
        datamodule: its data.
        trainer: its processes, device and precision are used, its callbacks measure and record, and its
            `default_root_dir` gets `exits.json`; where None, one process, and nothing is written.
        ckpt_path: the checkpoint to load; the model as it is where None.
        policy: the rule to leave by; see `layersim.exits.policies`.
        risk: the greatest rise of the risk over the full model's that is accepted, between 0 and 1; or several, rising,
            such as 0.01,0.02,0.05, which are promised together, each with a threshold of its own.
        risk_of: `error` rate, which is meant where left out; `disagreement` with the full model; `loss`, half the Brier
            score. Of a language model's texts `disagreement`, `loss` in nats, or `continuation`: see
            `layersim.exits.calibrate_tokens`.
        confidence: the probability of the promises, together; `crc` promises a mean and does not use it.
        method: `ltt`, learn then test; `ucb`, an upper confidence bound; `crc`, conformal risk control.
        budget: choose the best accuracy within this share of the layers instead, 0 … 1, without a promise.
        shifted_data: new data, whose labels are not read: the promise is then for inputs that come as often as there.
            Read is what `predict` reads, the predict split or else val. By a ratio of densities, estimated on features;
            refused where the two do not overlap.
        temperature_share: share of the samples on which a temperature is fitted for each layer first; the threshold
            is then chosen on the others. 0: no temperatures.
        split: which split to choose on.
        seed: of the shares, the order of the samples and the bootstrap.
        measure_speed: time the model with and without exits on this machine, at the data's evaluation batch size.
        plan: predict, of what a layer, a head and taking samples out of a batch cost on this machine, from which batch
            size and up to which accuracy exits pay, and which of exits, fewer layers and removed blocks is fastest
            where the error rate may rise by `risk`.
        texts: what a language model, whose tokens leave one by one, is tried on: `--texts.number`, `.prompt` and `.new`
            (tokens), `.exit_layers`, `.kv`, `.batch_size`; see `--texts.help`.

    Raises:
        UserError: a split that shares samples with the training data; options out of their range;
            too few samples for the promise; new data that the calibration samples do not reach.
    """
    kind = (policy, risk, risk_of, confidence, method, budget)
    asked = ExitRequest(*kind, temperature_share, split, shifted_data, plan, measure_speed, texts, seed)
    asked.check()
    datamodule.setup()
    asked.check_on(model, datamodule)
    if model.backbone.reads_tokens:
        return calibrate_token_exits(model, datamodule, trainer, ckpt_path, asked)
    directory = None if trainer is None else Path(trainer.default_root_dir)
    trainer = trainer or quiet_trainer()
    if plan and trainer.world_size > 1:
        raise UserError("A plan is made by one process alone. Set --trainer.devices=1, or leave --plan out.")
    if measure_speed and isinstance(trainer.strategy, ModelParallelStrategy):
        raise UserError(
            "One process times the model, which a sharded one does not run alone. Set --measure_speed=false, or leave "
            "--trainer.strategy out: one process reads a sharded training's checkpoint too."
        )
    chosen = POLICIES[policy]()
    fitted = None
    if temperature_share:
        fitted, _ = split_for_temperatures(len(datamodule.splits[split]), temperature_share, seed)
    rank_zero_info(f"Measuring every layer on the {len(datamodule.splits[split])} samples of the {split} split.")
    collectors: list[Any] = [Tables(model.head, chosen, fitted, trainer.precision_plugin.forward_context)]
    collectors += [] if shifted_data is None else [Ends()]
    found_on = evaluate_epoch(trainer, model, datamodule, *collectors, split=split, ckpt_path=ckpt_path)
    table, temperatures = found_on[0]
    shift = None if shifted_data is None else _shift(trainer, model, shifted_data, found_on[1], fitted, seed)
    rank_zero_info(f"Choosing a threshold of the policy {policy} on {len(table.targets)} samples.")
    thresholds = chosen.thresholds(model.head.num_classes, model.num_layers)
    found: list[ExitSummary]
    if budget is None:
        options: dict[str, Any] = {"risk": risk_of or "error", "confidence": confidence, "method": method}
        options |= {"seed": seed, "shift": shift}
        found = [*calibrate_together(table, chosen, thresholds, targets=asked.targets, **options)]
    else:
        found = [best_within(table, chosen, thresholds, budget)]
    inputs = datamodule.inputs(model.backbone)
    report = _report_of(model, table, chosen, found, shift, temperatures, thresholds, seed, trainer, inputs)
    if trainer.is_global_zero:
        if measure_speed:
            batches = _batches(trainer, model, datamodule, split)
            exits_at = partial(EarlyExit, model.backbone, model.head, chosen, temperatures=temperatures)
            with trainer.precision_plugin.forward_context():
                report = _timed(report, exits_at, batches)
                if plan:
                    least = report.full_accuracy - asked.targets[0]
                    early_exit = exits_at(report.threshold)
                    told = plan_of(model, datamodule, table, thresholds, batches, least, split, early_exit)
                    report = replace(report, plan=told)
        _show(report, found[0], directory, stage="validate" if split == "val" else "test")
    return report


def _shift(
    trainer: Trainer, model: LayerwiseModule, data: SplitDataModule, known: Tensor, fitted: Tensor | None, seed: int
) -> Shift:
    """From all calibration samples' features, of which those that temperatures were `fitted` on choose no threshold."""
    check_kind(model.backbone, data)
    split = "predict" if "predict" in data.splits else "val"
    rank_zero_info(f"Comparing them with the {len(data.splits[split])} new samples of the {split} split.")
    model.to(trainer.strategy.root_device)
    unlabelled = ({key: value for key, value in batch.items() if key != "label"} for batch in data.predict_dataloader())
    with trainer.precision_plugin.forward_context():
        (new,) = evaluate(model, unlabelled, Ends())
    if fitted is not None:
        known = known[~torch.isin(torch.arange(len(known)), fitted)]
    shift = estimate_shift(known, new, seed=seed)
    rank_zero_info(
        f"A classifier tells new inputs from old with an area of {shift.told_apart:.3f} under its ROC curve; the "
        f"{len(known)} samples count as {shift.effective_samples:.0f} of the new data."
    )
    return shift


def _report_of(
    model: LayerwiseModule,
    table: ExitTable,
    policy: Policy,
    found: Sequence[ExitSummary],
    shift: Shift | None,
    temperatures: Tensor | None,
    thresholds: Sequence[float],
    seed: int,
    trainer: Trainer,
    inputs: Inputs | None,
) -> ExitReport:
    """The record of thresholds that were found on a table, the strictest target's first, without speeds."""
    layers, samples = table.scores.shape
    oracle = saturation_layer(table.predictions).double().mean().item()
    first, classes = found[0], model.head.num_classes
    promise = ("method", "risk", "target", "confidence", "observed_risk", "bound")
    own = ("target", "threshold", "observed_risk", "bound", "mean_exit_layer", "layer_gain", "accuracy")
    told = ("threshold", "mean_exit_layer", "layer_gain", "accuracy", "full_accuracy", "loss", "full_loss")
    return ExitReport(
        policy=policy.name,
        temperatures=None if temperatures is None else temperatures.tolist(),
        calibration=calibrations(table),
        layers=layers,
        samples=samples,
        exits=list(first.exits),
        promise={key: getattr(first, key) for key in promise} if isinstance(first, Calibration) else None,
        choices=[
            {key: getattr(one, key, None) for key in own}
            | {"reference": asdict(reference_of(table, policy, one.threshold, classes))}
            for one in found
        ],
        shift=None if shift is None else shift.summary(),
        curve=vars(exit_curve(table, thresholds, seed=seed)),
        speed=[],
        plan=None,
        batch_size=None,
        device=str(trainer.strategy.root_device),
        oracle={"mean_exit_layer": oracle, "layer_gain": layers / oracle},
        parameters=parameters_of(model),
        head=type(model.head).__name__,
        objective=type(model.objective).__name__,
        weights=fingerprint(model),
        tokenizer=None if inputs is None else inputs.fingerprint,
        precision=str(trainer.precision),
        **{key: getattr(first, key) for key in told},
    )


def _batches(trainer: Trainer, model: LayerwiseModule, datamodule: SplitDataModule, split: str) -> list[Batch]:
    """Those that are timed, on the trainer's device, as is the model."""
    device = trainer.strategy.root_device
    model.to(device)
    loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
    return [
        datamodule.transfer_batch_to_device(batch, device, 0)
        for batch in islice(loader, max(1, _SPEED_SAMPLES // datamodule.eval_batch_size))
    ]


def _timed(report: ExitReport, exits_at: Callable[..., EarlyExit], batches: Sequence[Batch]) -> ExitReport:
    """The record with seconds: of the chosen threshold first, then along the curve."""
    rank_zero_info(f"Timing the model with and without exits on {len(batches)} batches.")
    curve = report.curve
    spread_out = spread(torch.tensor(curve["mean_exit_layer"], dtype=torch.float64), _TIMED)
    chosen = {"threshold": report.threshold, "mean_exit_layer": report.mean_exit_layer, "accuracy": report.accuracy}
    points = [chosen, *({key: curve[key][point] for key in chosen} for point in spread_out)]
    speeds = measure_speeds([exits_at(point["threshold"]) for point in points], batches)
    measured = [
        {**point, "layer_gain": report.layers / point["mean_exit_layer"], **vars(speed)}
        for point, speed in zip(points, speeds, strict=True)
    ]
    return replace(report, speed=measured, batch_size=len(next(iter(batches[0].values()))))


def _show(report: ExitReport, found: ExitSummary, directory: Path | None, stage: Literal["validate", "test"]) -> None:
    """On the terminal what was found and what it means; in the directory the record, and a page anew."""
    console = Console()
    console.print(found.explain() if isinstance(found, Calibration) else found.describe())
    early = 1 - report.exits[-1] / report.samples
    hint = " The model was trained at its last layer alone." if report.objective == "LastLayer" else ""
    console.print(f"{early:.1%} of the samples leave before the last layer.{hint}")
    console.print(calibration_table(report))
    if len(report.choices) > 1:
        console.print(choices_table(report))
    console.print(tradeoff_table({report.policy if directory is None else directory.name: report}))
    if report.plan is not None:
        console.print(plan_table(report))
    if directory is None:
        return
    path = report.write(directory)
    if (page := directory / PAGE_FILE).exists():  # written when the evaluation ended, before the exits
        write_page([directory], page, stage=stage)
    print(f"Threshold, curve and speeds: {path}")
