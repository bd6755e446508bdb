"""A finished run, and what it measured; all that claims read of records is read here. Letters: L layers, N samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layersim.report.claims.intervals import CONFIDENCE, Measured, Numbers, shares
from layersim.report.exits import ExitReport
from layersim.report.records import LayerRecord
from layersim.report.transfer import TransferReport


class NotMeasured(Exception):
    """A run does not tell what a claim asks; the message says what is missing and what would measure it."""


@dataclass(frozen=True)
class FinishedRun:
    """A run, with all that is told of its model; what it did not measure raises NotMeasured."""

    directory: Path
    config: dict[str, Any]
    record: LayerRecord
    """Its last validation."""
    origin: Path
    """The run that trained the model: itself, or that of the checkpoint that it evaluated."""
    exits: ExitReport | None = None
    transfer: TransferReport | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """L."""
        return self.record.layers

    @property
    def samples(self) -> int | None:
        """N that are independent of each other: none of a language model's tokens."""
        return None if self.record.unit == "tokens" else self.record.samples

    @property
    def how_measured(self) -> dict[str, Any]:
        """What must be alike where numbers are put together."""
        return {"layers": self.layers, "samples": self.record.samples, "measured": self.record.options}

    def accuracy(self) -> Measured:
        """(L,) shares."""
        told = _recorded(self.record.accuracy, "layer accuracy", "LayerAccuracyMonitor")
        return known(shares(told, self.samples), "the accuracy is NaN at some layer")

    def target_probability(self) -> Measured:
        """(L,) means over the samples, of the true class."""
        told = self.record.progression.get("target_probability")
        probability = shares(_recorded(told, "probability of the true class", "ProgressionMonitor"), self.samples)
        return known(probability, "the true class's probability is NaN at some layer")

    def saturation(self) -> Numbers:
        """(L,) counts of samples."""
        return np.array(_recorded(self.record.saturation, "saturation", "SaturationMonitor"), dtype=np.float64)

    def similarity(self, measure: str, name: str) -> Measured:
        """(L, L), with its interval where one at 95 % was recorded."""
        values = np.array(_recorded(self.record.similarity.get(measure), name, "SimilarityHeatmaps"), dtype=np.float64)
        interval = self.record.similarity_interval.get(measure, {})
        if self.samples is None or interval.get("confidence") != CONFIDENCE:
            return Measured(values)
        return Measured(values, np.array([interval["low"], interval["high"]], dtype=np.float64))

    def exit_curve(self) -> tuple[Mapping[str, Any], int | None, str]:
        """The curve, its N, and by what rule samples leave."""
        if self.record.exit_curve or self.exits is None:
            return _recorded(self.record.exit_curve, "exit curve", "ExitCurveMonitor"), self.samples, "confidence"
        rule = f"{self.exits.policy}{' of tempered logits' if self.exits.temperatures is not None else ''}"
        return self.exits.curve, None if self.samples is None else self.exits.samples, rule

    def parameters(self) -> Mapping[str, float]:
        """As `layersim.runs.parameters` counts them."""
        counted = self.exits.parameters if self.exits else self.environment.get("parameters")
        if counted is None:
            raise NotMeasured("nothing counted the parameters: run `layersim exits`")
        return counted

    def transferred(self) -> TransferReport:
        """Of the state that training ended with."""
        if self.transfer is None:
            raise NotMeasured("transfer was not measured: run `layersim transfer`")
        read = Path(self.transfer.model)
        if read.suffix == ".ckpt" and read.name != "last.ckpt":
            raise NotMeasured(f"transfer was measured of {read.name}: run `layersim transfer` on last.ckpt")
        return self.transfer


def known(measured: Measured, why: str) -> Measured:
    """Refuses NaN, with the reason."""
    if not np.isfinite(measured.values).all():
        raise NotMeasured(why)
    return measured


def _recorded(told: Any, what: str, monitor: str) -> Any:
    """Refuses that nothing is told."""
    if not told:
        raise NotMeasured(f"no {what} was recorded: add callbacks.{monitor}")
    return told
