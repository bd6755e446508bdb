"""A finished run, and what it measured; all that claims read of records is read here. Letters: L layers, N samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layersim.report.claims.intervals import CONFIDENCE, Measured, NotMeasured, Numbers, shares
from layersim.report.exits import ExitReport
from layersim.report.quantity import BY_CHANCE, LAYER
from layersim.report.records import LayerRecord
from layersim.report.transfer import TransferReport

_LARGEST = 2.0**53
"""Of what claims reckon with; all of it is shares, counts and similarities."""


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
    lens: LayerRecord | None = None
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
        how = {name: quantity.options for name, quantity in self.record.quantities.items() if quantity.options}
        return {"layers": self.layers, "samples": self.record.samples, "measured": how}

    def accuracy(self) -> Measured:
        """(L,) shares."""
        told = self._values("accuracy", "layer accuracy", "LayerAccuracyMonitor", (LAYER,))
        return known(shares(told, self.samples), "the accuracy is NaN at some layer")

    def target_probability(self) -> Measured:
        """(L,) means over the samples, of the true class."""
        told = self._values("target_probability", "probability of the true class", "ProgressionMonitor", (LAYER,))
        return known(shares(told, self.samples), "the true class's probability is NaN at some layer")

    def saturation(self) -> Numbers:
        """(L,) counts of samples."""
        counts = self._values("saturation", "saturation", "SaturationMonitor", (LAYER,))
        if min(counts) < 0 or not 0 < sum(counts) < 2**53:
            raise NotMeasured("the saturation is not counts of samples")
        return np.array(counts, dtype=np.float64)

    def similarity(self, measure: str, name: str) -> Measured:
        """(L, L), with its interval where one at 95 % was recorded."""
        values = np.array(self._values(measure, name, "SimilarityHeatmaps", (LAYER, LAYER)), dtype=np.float64)
        interval = self.record.quantities[measure].interval or {}
        if self.samples is None or interval.get("confidence") != CONFIDENCE:
            return Measured(values)
        return Measured(values, np.array([interval["low"], interval["high"]], dtype=np.float64))

    def exit_curve(self) -> tuple[Mapping[str, Any], int | None, str]:
        """The curve, its N, and by what rule samples leave."""
        if "exit_curve" in self.record.quantities or self.exits is None:
            accuracy = self._values("exit_curve", "exit curve", "ExitCurveMonitor", ("threshold",))
            ticks = self.record.quantities["exit_curve"].ticks
            depths = ticks.get("mean_exit_layer", ())
            if len(depths) != len(accuracy) or not all(isinstance(depth, int | float) for depth in depths):
                raise NotMeasured("the exit curve has no mean exit layer at each threshold: run `layersim exits`")
            return {**ticks, "accuracy": accuracy}, self.samples, "confidence"
        rule = f"{self.exits.policy}{' of tempered logits' if self.exits.temperatures is not None else ''}"
        return self.exits.curve, None if self.samples is None else self.exits.samples, rule

    def within_chance(self, measure: str, name: str) -> float:
        """The share of the pairs of layers that are no more alike than chance makes them."""
        self.similarity(measure, name)
        p = (self.record.quantities[measure].null or {}).get("p_family")
        if p is None:
            raise NotMeasured(
                f"no null of the {name} was recorded: give callbacks.SimilarityHeatmaps a null, such as 200"
            )
        compared = np.array(p, dtype=np.float64)[~np.eye(self.layers, dtype=bool)]
        if np.isnan(compared).any():
            raise NotMeasured(f"the {name} is NaN at some layer")
        return float((compared > BY_CHANCE).mean())

    def read_by(self, who: str) -> tuple[Measured, int | None]:
        """(L,) accuracies of one who reads the layers of the model as it is, and of how many independent samples."""
        if self.lens is None or who not in self.lens.quantities:
            raise NotMeasured(f"what is {who} was not measured: run `layersim lens`")
        samples = None if self.lens.unit == "tokens" else self.lens.samples
        told = shares(self.lens.quantities[who].values, samples)
        return known(told, f"what is {who} is NaN at some layer"), samples

    def _values(self, name: str, what: str, monitor: str, axes: tuple[str, ...]) -> Any:
        """The quantity's; refuses that nothing is told, or something else under that name."""
        quantity = self.record.quantities.get(name)
        if quantity is None:
            raise NotMeasured(f"no {what} was recorded: add callbacks.{monitor}")
        if quantity.axes != axes or (np.abs(quantity.values) > _LARGEST).any():
            raise NotMeasured(f"what was recorded as {name} is no {what}: add callbacks.{monitor}")
        return quantity.values

    def parameters(self) -> Mapping[str, float]:
        """As `layersim.runs.parameters` counts them."""
        counted = self.exits.parameters if self.exits else self.environment.get("parameters")
        if not isinstance(counted, Mapping) or not isinstance(counted.get("share_saved"), int | float):
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
