"""What a finished run tells for each claim. Letters: L layers, N samples."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]

from layersim.report.claims.claim import Limits, NotMeasured
from layersim.report.claims.estimates import CONFIDENCE, Numbers, Reading, shares
from layersim.report.claims.finished import FinishedRun
from layersim.report.transfer import TransferReport

BUDGETS = (0.5, 0.75)
"""Mean exit layers at which early exit is compared, as shares of L."""


def similarity_drops(run: FinishedRun, limits: Limits) -> Reading:
    """By how much cos(l, m) passes cos(l + 1, m), for all l + 1 < m."""
    pairs = [(low, last) for last in range(run.record.layers) for low in range(last - 1)]
    if not pairs:
        raise NotMeasured("it takes three layers or more")
    rows, columns = np.array(pairs).T
    interval = run.record.similarity_interval.get("cosine", {})
    ends = (interval["low"], interval["high"]) if interval.get("confidence") == CONFIDENCE and run.samples else ()
    further, nearer = (
        Reading(*(np.asarray(matrix, dtype=np.float64)[chosen, columns] for matrix in (_cosine(run), *ends)))
        for chosen in (rows, rows + 1)
    )
    return _known(further - nearer, "the cosine is NaN at some layer")


def cosine_cka_correlation(run: FinishedRun, limits: Limits) -> Reading:
    """Pearson's, of cosine and CKA over the pairs of layers."""
    cka = run.record.similarity.get("cka")
    if cka is None:
        raise NotMeasured("no CKA was recorded: SimilarityHeatmaps measures it")
    upper = np.triu_indices(run.record.layers, 1)
    if len(upper[0]) < 3:
        raise NotMeasured("it takes three layers or more")
    values = np.array([np.asarray(matrix, dtype=np.float64)[upper] for matrix in (_cosine(run), cka)])
    if not (np.isfinite(values).all() and np.ptp(values, axis=1).all()):
        raise NotMeasured("cosine or CKA is NaN at some layer, or the same for all pairs")
    return Reading(np.corrcoef(values)[0, 1:])


def accuracy_drops(run: FinishedRun, limits: Limits) -> Reading:
    """From each layer to the next, L − 1."""
    return _drops(_accuracy(run))


def probability_drops(run: FinishedRun, limits: Limits) -> Reading:
    """Of the true class's mean probability, from each layer to the next, L − 1."""
    probability = run.record.progression.get("target_probability")
    if probability is None:
        raise NotMeasured("no probability of the true class was recorded: add callbacks.ProgressionMonitor")
    return _drops(_known(shares(probability, run.samples), "the true class's probability is NaN at some layer"))


def shallow_accuracy(run: FinishedRun, limits: Limits) -> Reading:
    """Mean over the first half of the layers."""
    accuracies = _accuracy(run).values
    return shares([accuracies[: max(1, len(accuracies) // 2)].mean()], run.samples)


def last_accuracy(run: FinishedRun, limits: Limits) -> Reading:
    """At layer L."""
    return _accuracy(run)[-1:]


def saturated_early(run: FinishedRun, limits: Limits) -> Reading:
    """Share of the samples."""
    counts = _saturation(run)
    return shares([1 - counts[-1] / counts.sum()], run.samples)


def saturation_layer(run: FinishedRun, limits: Limits) -> Reading:
    """Mean over the samples, with a normal interval."""
    counts = _saturation(run)
    layers, total = np.arange(1, len(counts) + 1), counts.sum()
    mean = np.array([layers @ counts / total])
    if run.samples is None or total < 2:
        return Reading(mean)
    variance = counts @ (layers - mean) ** 2 / (total - 1)
    half = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(variance / total)
    return Reading(mean, mean - half, mean + half)


def effective_depth(run: FinishedRun, limits: Limits) -> Reading:
    """The depth at which a line drawn through the layers' accuracies first reaches the best one's less ε.

    Rounded up it is the layer that tables and exports tell, at the same ε. The level is taken as it is: layers measured
    on the same samples mostly err together, so that the interval is rather too wide.
    """
    accuracy = _accuracy(run)
    return _reached_at(accuracy, float(accuracy.values.max()) - limits["epsilon"])


def absolute_depth(run: FinishedRun, limits: Limits) -> Reading:
    """The depth at which a line drawn through the layers' accuracies first reaches 1 − ε, else L."""
    return _reached_at(_accuracy(run), 1 - limits["absolute-epsilon"])


def _reached_at(accuracy: Reading, level: float) -> Reading:
    deepest, shallowest = (None if end is None else [_depth(end, level)] for end in (accuracy.low, accuracy.high))
    low, high = (None if end is None else np.array(end) for end in (shallowest, deepest))
    return Reading(np.array([_depth(accuracy.values, level)]), low, high)


def check_absolute_depth(runs: Sequence[FinishedRun], limits: Limits) -> None:
    """Refuses runs none of which reaches 1 − ε: all are as deep as they can be."""
    level = 1 - limits["absolute-epsilon"]
    if not any(_reached(_accuracy(run).values, level).any() for run in runs):
        raise NotMeasured(f"no layer of any run reaches an accuracy of {level:g}: raise --absolute-epsilon")


def accuracy_with_exits(run: FinishedRun, limits: Limits) -> Reading:
    """Where samples leave on average at the layers `BUDGETS`, linear between the curve's points."""
    curve, samples, _ = _exits(run)
    depths = np.asarray(curve["mean_exit_layer"], dtype=np.float64)
    asked = [share * run.record.layers for share in BUDGETS]
    if not (depths[0] <= min(asked) and max(asked) <= depths[-1]):
        raise NotMeasured(f"the exit curve does not reach from layer {min(asked):g} to {max(asked):g}")
    return shares(np.interp(asked, depths, np.asarray(curve["accuracy"], dtype=np.float64)), samples)


def check_exits(runs: Sequence[FinishedRun], limits: Limits) -> None:
    """Refuses runs whose samples left by different rules."""
    if len({_exits(run)[2] for run in runs}) > 1:
        raise NotMeasured("exits were measured by different policies: run `layersim exits` alike on all of them")


def parameters_saved(run: FinishedRun, limits: Limits) -> Reading:
    """Share of the numbers that a model with a head for each layer learns; counted, so that it is exact."""
    if run.parameters is None:
        raise NotMeasured("nothing counted the parameters: run `layersim exits`")
    share = np.array([run.parameters["share_saved"]])
    return Reading(share, share, share)


def shifted_accuracy(run: FinishedRun, limits: Limits) -> Reading:
    """Of the model's own head at each layer, mean over all shifts and their strengths."""
    report = _transfer(run)
    if not report.shifts:
        raise NotMeasured("no shifted images were measured: run `layersim transfer`")
    accuracies = [step["accuracy"] for steps in report.shifts.values() for step in steps]
    return shares(np.mean(accuracies, axis=0), report.samples)


def probe_accuracy(run: FinishedRun, limits: Limits) -> Reading:
    """Of a linear probe on each layer's frozen features, on another task."""
    report = _transfer(run)
    if report.probe is None:
        raise NotMeasured("no probe was fitted to another task: run `layersim transfer --to_data …`")
    return shares(report.probe["accuracy"], report.probe["samples"])


def check_shifts(runs: Sequence[FinishedRun], limits: Limits) -> None:
    """Refuses runs whose transfer was not measured on the same data under the same shifts."""
    if len({_transfer(run).shift_settings for run in runs}) > 1:
        raise NotMeasured("transfer was measured on other data, or with other shifts: run `layersim transfer` alike")


def check_probes(runs: Sequence[FinishedRun], limits: Limits) -> None:
    """Refuses runs whose probes were not fitted to the same data."""
    if len({_transfer(run).probe_settings for run in runs}) > 1:
        raise NotMeasured("probes were fitted to other data: run `layersim transfer --to_data …` alike")


def _exits(run: FinishedRun) -> tuple[Mapping[str, Any], int | None, tuple[str, bool]]:
    """A curve of exits, its number of samples, and by what rule they leave: policy, and whether temperatures count."""
    if run.record.exit_curve:
        return run.record.exit_curve, run.samples, ("confidence", False)
    if run.exits is None:
        raise NotMeasured("no exit curve: add callbacks.ExitCurveMonitor, or run `layersim exits`")
    samples = None if run.samples is None else run.exits.samples
    return run.exits.curve, samples, (run.exits.policy, run.exits.temperatures is not None)


def _transfer(run: FinishedRun) -> TransferReport:
    if run.transfer is None:
        raise NotMeasured("transfer was not measured: run `layersim transfer`")
    read = Path(run.transfer.model)
    if read.suffix == ".ckpt" and read.name != "last.ckpt":
        raise NotMeasured(f"transfer was measured of {read.name}: run `layersim transfer` on last.ckpt")
    return run.transfer


def _accuracy(run: FinishedRun) -> Reading:
    if run.record.accuracy is None:
        raise NotMeasured("no layer accuracy was recorded: add callbacks.LayerAccuracyMonitor")
    return _known(shares(run.record.accuracy, run.samples), "the accuracy is NaN at some layer")


def _saturation(run: FinishedRun) -> Numbers:
    if run.record.saturation is None:
        raise NotMeasured("no saturation was recorded: add callbacks.SaturationMonitor")
    return np.asarray(run.record.saturation, dtype=np.float64)


def _cosine(run: FinishedRun) -> Sequence[Sequence[float]]:
    matrix = run.record.similarity.get("cosine")
    if matrix is None:
        raise NotMeasured("no cosine was recorded: SimilarityHeatmaps measures it")
    return matrix


def _drops(accuracy: Reading) -> Reading:
    if len(accuracy.values) < 2:
        raise NotMeasured("it takes two layers or more")
    return accuracy[:-1] - accuracy[1:]


def _known(reading: Reading, why: str) -> Reading:
    if not np.isfinite(reading.values).all():
        raise NotMeasured(why)
    return reading


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
