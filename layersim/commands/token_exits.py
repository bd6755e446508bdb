"""`layersim exits` for a language model: when its tokens may leave early, with a guarantee, and what it saves."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from layersim.commands.collecting import evaluate_epoch, quiet_trainer
from layersim.data import Split, SplitDataModule
from layersim.data.blocks import first_tokens
from layersim.errors import UserError
from layersim.exits import POLICIES, TokenExit, calibrate_tokens, measure_token_speed
from layersim.exits.token_calibration import TokenRisk
from layersim.module import LayerwiseModule
from layersim.report.token_exits import TokenExitReport, speed_table, tried_table
from layersim.runs.parameters import fingerprint

_TIMED = 16
"""So many texts are timed, side by side and one after the other."""


@dataclass(frozen=True)
class Texts:
    """How a language model is tried.

    Args:
        number: texts of the split, at most, that choose the threshold.
        prompt: tokens of each that are given.
        new: tokens that are written behind them.
        kv: where keys and values of the layers that a token skipped come from: `copied`, from what it was where it
            left (CALM); `exact`, from being taken through them with the next token that comes there.
        exit_layers: layers, from 1, at which tokens may leave; all where left out. Each costs a reading of the head,
            which with a large vocabulary is more than a narrow layer.
        batch_size: texts that are written side by side, to choose the threshold.
    """

    number: int = 512
    prompt: int = 32
    new: int = 32
    kv: Literal["exact", "copied"] = "exact"
    exit_layers: list[int] | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("number", "prompt", "new", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"Expected 1 or more, but --texts.{name} is {getattr(self, name)}.")

    def check_on(self, model: LayerwiseModule, split: Split) -> int:
        """How many texts there are. Refuses, with a UserError, layers that the model has not, and texts longer than it
        or the split's blocks."""
        if wrong := sorted({*(self.exit_layers or ())} - {*range(1, model.num_layers)}):
            raise UserError(
                f"Expected --texts.exit_layers of 1 … {model.num_layers - 1}, but got {', '.join(map(str, wrong))}."
            )
        most: int | None = getattr(model.backbone, "max_positions", None)
        if most is not None and self.prompt + self.new > most:
            raise UserError(
                f"The model takes up to {most} tokens, but --texts.prompt and --texts.new are {self.prompt + self.new}."
            )
        return len(first_tokens(split, self.number, self.prompt + self.new))


def calibrate_token_exits(
    model: LayerwiseModule,
    datamodule: SplitDataModule,
    trainer: Trainer | None,
    ckpt_path: str | None,
    texts: Texts,
    *,
    policy: str,
    risk: float,
    risk_of: TokenRisk,
    confidence: float,
    split: str,
    seed: int,
    measure_speed: bool,
) -> TokenExitReport:
    """What `calibrate_exits` does for a language model, on one process; see there."""
    if trainer is not None and trainer.world_size > 1:
        raise UserError("A language model's exits are chosen by one process. Set --trainer.devices 1.")
    directory = None if trainer is None else Path(trainer.default_root_dir)
    trainer = trainer or quiet_trainer()
    evaluate_epoch(trainer, model, datamodule, split=split, ckpt_path=ckpt_path)
    device = trainer.strategy.root_device
    model.eval().to(device)
    exit_layers = None if texts.exit_layers is None else [layer - 1 for layer in texts.exit_layers]
    exits = TokenExit(model.backbone, model.head, POLICIES[policy](), None, exit_layers, texts.kv)
    rows = first_tokens(datamodule.splits[split], texts.number, texts.prompt + texts.new).to(device)
    prompts, following = rows[:, : texts.prompt], rows[:, texts.prompt :]
    rank_zero_info(f"Writing {texts.new} tokens behind {len(rows)} texts of the {split} split, threshold by threshold.")
    options: dict[str, Any] = {"target": risk, "risk": risk_of, "confidence": confidence, "seed": seed}
    found = calibrate_tokens(exits, prompts, following, batch_size=texts.batch_size, **options)
    speed = []
    if measure_speed:
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
        console.print(f"Threshold and speeds: {path}", soft_wrap=True)
    return report
