"""`layersim exits` for a language model: when its tokens may leave early, with a guarantee, and what it saves."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from layersim.commands.collecting import evaluate_epoch, quiet_trainer
from layersim.commands.exit_request import ExitRequest, Texts
from layersim.data import SplitDataModule
from layersim.data.blocks import first_tokens
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.exits import POLICIES, TokenExit, calibrate_tokens, measure_token_speed
from layersim.module import LayerwiseModule
from layersim.report.token_exits import TokenExitReport, speed_table, tried_table
from layersim.runs.parameters import fingerprint

_TIMED = 16
"""So many texts are timed, side by side and one after the other."""


def calibrate_token_exits(
    model: LayerwiseModule,
    datamodule: SplitDataModule,
    trainer: Trainer | None,
    ckpt_path: str | None,
    asked: ExitRequest,
) -> TokenExitReport:
    """What `calibrate_exits` does for a language model, on one process; see there."""
    if trainer is not None and trainer.world_size > 1:
        raise UserError("A language model's exits are chosen by one process. Set --trainer.devices 1.")
    directory = None if trainer is None else Path(trainer.default_root_dir)
    trainer, texts = trainer or quiet_trainer(), asked.texts or Texts()
    evaluate_epoch(trainer, model, datamodule, split=asked.split, ckpt_path=ckpt_path)
    device = trainer.strategy.root_device
    model.to(device)
    exit_layers = None if texts.exit_layers is None else [layer - 1 for layer in texts.exit_layers]
    exits = TokenExit(model.backbone, model.head, POLICIES[asked.policy](), None, exit_layers, texts.kv)
    rows = first_tokens(datamodule.splits[asked.split], texts.number, texts.prompt + texts.new).to(device)
    prompts, following = rows[:, : texts.prompt], rows[:, texts.prompt :]
    written = f"Writing {texts.new} tokens behind {len(rows)} texts of the {asked.split} split"
    rank_zero_info(f"{written}, threshold by threshold.")
    options: dict[str, Any] = {"target": asked.targets[0], "risk": asked.token_risk, "confidence": asked.confidence}
    speed = []
    with evaluating(model), trainer.precision_plugin.forward_context():
        found = calibrate_tokens(exits, prompts, following, batch_size=texts.batch_size, seed=asked.seed, **options)
        if asked.measure_speed:
            few = prompts[:_TIMED]
            rank_zero_info(f"Timing {len(few)} texts with and without exits.")
            early = exits.at(found.threshold)
            speed = [asdict(measure_token_speed(early, few, texts.new, size)) for size in sorted({1, len(few)})]
    report = TokenExitReport(
        calibration=asdict(found),
        speed=speed,
        device=str(device),
        head=type(model.head).__name__,
        objective=type(model.objective).__name__,
        weights=fingerprint(model),
        precision=str(trainer.precision),
    )
    console = Console()
    console.print(found.explain())
    console.print(tried_table(report))
    if speed:
        console.print(speed_table(report))
    if directory is not None:
        path = report.write(directory)
        print(f"Threshold and speeds: {path}")
    return report
