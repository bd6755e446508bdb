"""What a finished run tells for each claim: all that claims read of records. Letters: L layers, N samples."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layersim.report.claims.intervals import CONFIDENCE, Measured, Numbers, normal_quantile, shares
from layersim.report.exits import ExitReport
from layersim.report.records import LayerRecord
from layersim.report.transfer import TransferReport

Limits = Mapping[str, float]
"""The numbers that a user may set, by name."""

BUDGETS = (0.5, 0.75)
"""Mean exit layers at which early exit is compared, as shares of L."""


class NotMeasured(Exception):
    """A run does not tell what a claim asks; the message says what is missing and what would measure it."""


@dataclass(frozen=True)
class FinishedRun:
    """A run, with all that is told of its model."""

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
    def samples(self) -> int | None:
        """N that are independent of each other: none of a language model's tokens."""
        return None if self.record.unit == "tokens" else self.record.samples


def how_measured(run: FinishedRun) -> dict[str, Any]:
    """What must be alike where numbers are put together."""
    return {"layers": run.record.layers, "samples": run.record.samples, "measured": run.record.options}


def similarity_drops(run: FinishedRun, limits: Limits) -> Measured:
    """By how much cos(l, m) passes cos(l + 1, m), for all l + 1 < m."""
    pairs = [(low, last) for last in range(run.record.layers) for low in range(last - 1)]
    if not pairs:
        raise NotMeasured("it takes three layers or more")
    rows, columns = np.array(pairs).T
    cosine = np.array(_recorded(run.record.similarity.get("cosine"), "cosine", "SimilarityHeatmaps"))
    interval = run.record.similarity_interval.get("cosine", {})
    known = run.samples is not None and interval.get("confidence") == CONFIDENCE
    ends = np.array([interval["low"], interval["high"]]) if known else None
    further, nearer = (
        Measured(cosine[chosen, columns], None if ends is None else ends[:, chosen, columns])
        for chosen in (rows, rows + 1)
    )
    return _known(further - nearer, "the cosine is NaN at some layer")


def cosine_cka_correlation(run: FinishedRun, limits: Limits) -> Measured:
    """Pearson's, of cosine and CKA over the pairs of layers."""
    told = (("CKA", run.record.similarity.get("cka")), ("cosine", run.record.similarity.get("cosine")))
    matrices = [np.array(_recorded(matrix, name, "SimilarityHeatmaps")) for name, matrix in told]
    upper = np.triu_indices(run.record.layers, 1)
    if len(upper[0]) < 3:
        raise NotMeasured("it takes three layers or more")
    values = np.array([matrix[upper] for matrix in matrices])
    if not (np.isfinite(values).all() and np.ptp(values, axis=1).all()):
        raise NotMeasured("cosine or CKA is NaN at some layer, or the same for all pairs")
    return Measured(np.corrcoef(values)[0, 1:])


def accuracy_drops(run: FinishedRun, limits: Limits) -> Measured:
    """From each layer to the next, L − 1."""
    return _drops(_accuracy(run))


def probability_drops(run: FinishedRun, limits: Limits) -> Measured:
    """Of the true class's mean probability, from each layer to the next, L − 1."""
    probability = _recorded(
        run.record.progression.get("target_probability"), "probability of the true class", "ProgressionMonitor"
    )
    return _drops(_known(shares(probability, run.samples), "the true class's probability is NaN at some layer"))


def shallow_accuracy(run: FinishedRun, limits: Limits) -> Measured:
    """Mean over the first half of the layers."""
    accuracies = _accuracy(run).values
    return shares([accuracies[: max(1, len(accuracies) // 2)].mean()], run.samples)


def last_accuracy(run: FinishedRun, limits: Limits) -> Measured:
    """At layer L."""
    return _accuracy(run)[-1:]


def saturated_early(run: FinishedRun, limits: Limits) -> Measured:
    """Share of the samples."""
    counts = _saturation(run)
    return shares([1 - counts[-1] / counts.sum()], run.samples)


def saturation_layer(run: FinishedRun, limits: Limits) -> Measured:
    """Mean over the samples, with a normal interval."""
    counts = _saturation(run)
    layers, total = np.arange(1, len(counts) + 1), counts.sum()
    mean = np.array([layers @ counts / total])
    if run.samples is None or total < 2:
        return Measured(mean)
    variance = counts @ (layers - mean) ** 2 / (total - 1)
    half = normal_quantile() * math.sqrt(variance / total)
    return Measured(mean, np.stack([mean - half, mean + half]))


def effective_depth(run: FinishedRun, limits: Limits) -> Measured:
    """The depth at which a line drawn through the layers' accuracies first reaches the best one's less ε.

    Rounded up it is the layer that tables and exports tell, at the same ε. The level is taken as it is: layers measured
    on the same samples mostly err together, so that the interval is rather too wide.
    """
    accuracy = _accuracy(run)
    return _reached_at(accuracy, float(accuracy.values.max()) - limits["epsilon"])


def absolute_depth(run: FinishedRun, limits: Limits) -> Measured:
    """The depth at which a line drawn through the layers' accuracies first reaches 1 − ε, else L."""
    return _reached_at(_accuracy(run), 1 - limits["absolute-epsilon"])


def check_absolute_depth(runs: Sequence[FinishedRun], limits: Limits) -> None:
    """Refuses runs none of which reaches 1 − ε: all are as deep as they can be."""
    level = 1 - limits["absolute-epsilon"]
    if not any(_reached(_accuracy(run).values, level).any() for run in runs):
        raise NotMeasured(f"no layer of any run reaches an accuracy of {level:g}: raise --absolute-epsilon")


def accuracy_with_exits(run: FinishedRun, limits: Limits) -> Measured:
    """Where samples leave on average at the layers `BUDGETS`, linear between the curve's points."""
    curve, samples, _ = _exits(run)
    depths = np.asarray(curve["mean_exit_layer"], dtype=np.float64)
    asked = [share * run.record.layers for share in BUDGETS]
    if not (depths[0] <= min(asked) and max(asked) <= depths[-1]):
        raise NotMeasured(f"the exit curve does not reach from layer {min(asked):g} to {max(asked):g}")
    return shares(np.interp(asked, depths, np.asarray(curve["accuracy"], dtype=np.float64)), samples)


def parameters_saved(run: FinishedRun, limits: Limits) -> Measured:
    """Share of the numbers that a model with a head for each layer learns; counted, so that it is exact."""
    parameters = run.exits.parameters if run.exits else run.environment.get("parameters")
    if parameters is None:
        raise NotMeasured("nothing counted the parameters: run `layersim exits`")
    share = np.array([parameters["share_saved"]])
    return Measured(share, np.stack([share, share]))


def shifted_accuracy(run: FinishedRun, limits: Limits) -> Measured:
    """Of the model's own head at each layer, mean over all shifts and their strengths."""
    report = _transfer(run)
    if not report.shifts:
        raise NotMeasured("no shifted images were measured: run `layersim transfer`")
    accuracies = [step["accuracy"] for steps in report.shifts.values() for step in steps]
    return shares(np.mean(accuracies, axis=0), report.samples)


def probe_accuracy(run: FinishedRun, limits: Limits) -> Measured:
    """Of a linear probe on each layer's frozen features, on another task."""
    report = _transfer(run)
    if report.probe is None:
        raise NotMeasured("no probe was fitted to another task: run `layersim transfer --to_data …`")
    return shares(report.probe["accuracy"], report.probe["samples"])


def alike(tell: Callable[[FinishedRun], object], remedy: str) -> Callable[[Sequence[FinishedRun], Limits], None]:
    """A check that refuses runs of which different things are told, with the remedy."""

    def check(runs: Sequence[FinishedRun], limits: Limits) -> None:
        if len({tell(run) for run in runs}) > 1:
            raise NotMeasured(remedy)

    return check


check_exits = alike(
    lambda run: _exits(run)[2],
    "exits were measured by different policies: run `layersim exits` alike on all of them",
)
check_shifts = alike(
    lambda run: _transfer(run).shift_settings,
    "transfer was measured on other data, or with other shifts: run `layersim transfer` alike",
)
check_probes = alike(
    lambda run: _transfer(run).probe_settings,
    "probes were fitted to other data: run `layersim transfer --to_data …` alike",
)


def _exits(run: FinishedRun) -> tuple[Mapping[str, Any], int | None, tuple[str, bool]]:
    """A curve of exits, its number of samples, and by what rule they leave: policy, and whether temperatures count."""
    if run.record.exit_curve or run.exits is None:
        return _recorded(run.record.exit_curve, "exit curve", "ExitCurveMonitor"), run.samples, ("confidence", False)
    samples = None if run.samples is None else run.exits.samples
    return run.exits.curve, samples, (run.exits.policy, run.exits.temperatures is not None)


def _transfer(run: FinishedRun) -> TransferReport:
    if run.transfer is None:
        raise NotMeasured("transfer was not measured: run `layersim transfer`")
    read = Path(run.transfer.model)
    if read.suffix == ".ckpt" and read.name != "last.ckpt":
        raise NotMeasured(f"transfer was measured of {read.name}: run `layersim transfer` on last.ckpt")
    return run.transfer


def _recorded(told: Any, what: str, monitor: str) -> Any:
    """What is told, unless nothing is."""
    if not told:
        raise NotMeasured(f"no {what} was recorded: add callbacks.{monitor}")
    return told


def _accuracy(run: FinishedRun) -> Measured:
    accuracy = _recorded(run.record.accuracy, "layer accuracy", "LayerAccuracyMonitor")
    return _known(shares(accuracy, run.samples), "the accuracy is NaN at some layer")


def _saturation(run: FinishedRun) -> Numbers:
    return np.asarray(_recorded(run.record.saturation, "saturation", "SaturationMonitor"), dtype=np.float64)


def _drops(accuracy: Measured) -> Measured:
    if len(accuracy.values) < 2:
        raise NotMeasured("it takes two layers or more")
    return accuracy[:-1] - accuracy[1:]


def _known(measured: Measured, why: str) -> Measured:
    if not np.isfinite(measured.values).all():
        raise NotMeasured(why)
    return measured


def _reached_at(accuracy: Measured, level: float) -> Measured:
    ends = None if accuracy.ends is None else np.array([[_depth(end, level)] for end in accuracy.ends[::-1]])
    return Measured(np.array([_depth(accuracy.values, level)]), ends)


def _depth(accuracy: Numbers, level: float) -> float:
    reached = np.flatnonzero(_reached(accuracy, level))
    if not len(reached) or reached[0] == 0:
        return float(len(accuracy) if not len(reached) else 1)
    place = int(reached[0])
    return place + float((level - accuracy[place - 1]) / (accuracy[place] - accuracy[place - 1]))


def _reached(accuracy: Numbers, level: float) -> NDArray[np.bool_]:
    """Whether it is at least the level; to 12 digits, as in binary 1 − 0.18 is a little more than 0.82."""
    reached: NDArray[np.bool_] = np.round(accuracy - level, 12) >= 0
    return reached
