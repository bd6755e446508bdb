"""What Jiang et al. 2025 ("Tracing Representation Progression", arXiv 2406.14479v3) claim, and what they leave open,
since they read one head and compare with nothing: to be judged on other runs.

Published numbers are computed as ours are, from values that the paper prints, or that were read off its figures (to
about 0.01). Letters: L layers, N samples.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from layersim.report.claims.claim import GAIN, LOSS, ONE_HEAD, Limits, alike, claim
from layersim.report.claims.finished import FinishedRun, known
from layersim.report.claims.intervals import Measured, NotMeasured, Numbers, normal_quantile, shares
from layersim.report.lens import KNOWN, READABLE

BUDGETS = (0.5, 0.75)
"""Mean exit layers at which early exit is compared, as shares of L."""


@claim(
    says="Similarity rises as layers come closer: cos(l, m) < cos(l + 1, m) for l + 1 < m",
    source="theorem 2.1, figure 2",
    published="−0.02, DeiT-S on CIFAR-10, standard, to the last layer",
    claimed=("≤", "drop"),
)
def similarity_rises(run: FinishedRun, limits: Limits) -> Measured:
    """Largest drop of the cosine when a layer comes one closer."""
    pairs = [(low, last) for last in range(run.layers) for low in range(last - 1)]
    if not pairs:
        raise NotMeasured("it takes three layers or more")
    rows, columns = np.array(pairs).T
    cosine = run.similarity("cosine", "cosine")
    return known(cosine[rows, columns] - cosine[rows + 1, columns], "the cosine is NaN at some layer")


@claim(
    says="The cosine, cheap as it is, says what CKA says",
    source="figure 2",
    published="0.98, DeiT-S on CIFAR-10, to the last layer",
    claimed=(">", "correlation"),
)
def cosine_follows_cka(run: FinishedRun, limits: Limits) -> Measured:
    """Pearson's correlation of cosine and CKA over the pairs of layers."""
    upper = np.triu_indices(run.layers, 1)
    values = np.stack([run.similarity(*told).values[upper] for told in (("cka", "CKA"), ("cosine", "cosine"))])
    if len(upper[0]) < 3:
        raise NotMeasured("it takes three layers or more")
    if not (np.isfinite(values).all() and np.ptp(values, axis=1).all()):
        raise NotMeasured("cosine or CKA is NaN at some layer, or the same for all pairs")
    return Measured(np.asarray(np.corrcoef(values))[0, 1:])


@claim(
    says="Layer accuracy rises monotonically",
    source="figures 1 and 4",
    published="−0.001, DeiT-S fine-tuned on CIFAR-10, aligned",
    claimed=("≤", "drop"),
)
def accuracy_rises(run: FinishedRun, limits: Limits) -> Measured:
    """Largest drop of accuracy from a layer to the next."""
    return _drops(run.accuracy())


@claim(
    says="The probability of the true class rises with the layer",
    source="theorem 2.2",
    claimed=("≤", "drop"),
)
def probability_rises(run: FinishedRun, limits: Limits) -> Measured:
    """Largest drop of its mean from a layer to the next."""
    return _drops(run.target_probability())


@claim(
    says="Training one head at all layers makes shallow layers far more accurate than standard training",
    source="figures 1b and 4b",
    published="0.47, DeiT-S fine-tuned on CIFAR-10",
    arms=GAIN,
    claimed=(">", "shallow-gain"),
)
def shallow_layers(run: FinishedRun, limits: Limits) -> Measured:
    """Gain in mean accuracy over the first half of the layers."""
    return _shallow(run.accuracy(), run.samples)


@claim(
    says="The last layer loses next to nothing by it",
    source="figures 4b and 8",
    published="0.006 on ImageNet-1K, 0.019 on SST-2, −0.005 on CIFAR-10",
    arms=LOSS,
    claimed=("≤", "last-layer-loss"),
)
def last_layer(run: FinishedRun, limits: Limits) -> Measured:
    """Loss of accuracy at the last layer."""
    return run.accuracy()[-1:]


@claim(
    says="More samples have their final prediction before the last layer",
    source="figure 6a",
    published="0.12, from 0.87 to 0.99, CIFAR-10",
    arms=GAIN,
    claimed=(">", 0.0),
)
def more_saturation(run: FinishedRun, limits: Limits) -> Measured:
    """Gain in the share of samples that saturate early."""
    counts = run.saturation()
    return shares([1 - counts[-1] / counts.sum()], run.samples)


@claim(
    says="Predictions become final at a shallower layer",
    source="figure 6a",
    published="5.55 of 12, from 9.79 to 4.24, CIFAR-10",
    arms=LOSS,
    claimed=(">", 0.0),
)
def earlier_saturation(run: FinishedRun, limits: Limits) -> Measured:
    """Layers by which the mean saturation layer is earlier."""
    counts = run.saturation()
    layers, total = np.arange(1, len(counts) + 1), counts.sum()
    mean = np.array([layers @ counts / total])
    if run.samples is None or total < 2:
        return Measured(mean)
    half = normal_quantile() * math.sqrt(counts @ (layers - mean) ** 2 / (total - 1) / total)
    return Measured(mean, np.stack([mean - half, mean + half]))


@claim(
    says="Fewer layers are needed for the accuracy that is asked",
    source="figure 5a",
    published="4.2 of 12, DeiT-S on CIFAR-10, training accuracy",
    arms=LOSS,
    claimed=(">", 0.0),
)
def effective_depth(run: FinishedRun, limits: Limits) -> Measured:
    """Layers by which the accuracy of the run's own best layer, less ε, is reached earlier (between layers on a line;
    rounded up, a run's effective depth).

    The level is taken as it is: layers measured on the same samples mostly err together, so that the interval is
    rather too wide.
    """
    accuracy = run.accuracy()
    return _reached_at(accuracy, float(accuracy.values.max()) - limits["epsilon"])


@claim(
    says="With early exit, one head is on a par with a head for each layer at equal mean exit layer",
    source="table of exits, figure 7",
    published="0.004 on ImageNet-1K (1.36 against 1.42 times fewer layers)",
    arms=(("separate",), ONE_HEAD),
    claimed=("≤", "par-loss"),
    check=alike(
        lambda run: run.exit_curve()[2],
        "exits were measured by different policies: run `layersim exits` alike on all of them",
    ),
)
def one_head_on_par(run: FinishedRun, limits: Limits) -> Measured:
    """Loss against separate heads with mean exit layer at 1/2 and 3/4 of the layers, the larger.

    Linear between the curve's points.
    """
    curve, samples, _ = run.exit_curve()
    depths = np.asarray(curve["mean_exit_layer"], dtype=np.float64)
    asked = [share * run.layers for share in BUDGETS]
    if not (depths[0] <= min(asked) and max(asked) <= depths[-1]):
        raise NotMeasured(f"the exit curve does not reach from layer {min(asked):g} to {max(asked):g}")
    return shares(np.interp(asked, depths, np.asarray(curve["accuracy"], dtype=np.float64)), samples)


@claim(
    says="One head saves the parameters of L − 1 classifiers",
    source="section on parameters: (L − 1) K d / (P + (L − 1) K d)",
    published="0.784 GPT-2, 0.161 DeiT-S, 0.089 DeiT-B",
    arms=(ONE_HEAD,),
    claimed=(">", "parameters-saved"),
)
def parameters_saved(run: FinishedRun, limits: Limits) -> Measured:
    """Share of the parameters of the model with a head for each layer."""
    return _counted([run.parameters()["share_saved"]])


@claim(
    says="Under shifted data (rotation, noise, blur) no layer is worse than with standard training",
    source="transfer of layer features",
    arms=LOSS,
    claimed=("≤", "transfer-loss"),
    check=alike(
        lambda run: run.transferred().shift_settings,
        "transfer was measured on other data, or with other shifts: run `layersim transfer` alike",
    ),
)
def transfer_shift(run: FinishedRun, limits: Limits) -> Measured:
    """Largest loss over the layers, of accuracy averaged over shifts and strengths."""
    report = run.transferred()
    if not report.shifts:
        raise NotMeasured("no shifted images were measured: run `layersim transfer`")
    accuracies = [step["accuracy"] for steps in report.shifts.values() for step in steps]
    return shares(np.mean(accuracies, axis=0), report.samples)


@claim(
    says="On another task, by a linear probe, no layer's frozen features are worse than with standard training",
    source="transfer of layer features",
    arms=LOSS,
    claimed=("≤", "transfer-loss"),
    check=alike(
        lambda run: run.transferred().probe_settings,
        "probes were fitted to other data: run `layersim transfer --to_data …` alike",
    ),
)
def transfer_task(run: FinishedRun, limits: Limits) -> Measured:
    """Largest loss over the layers, of the probe's accuracy."""
    report = run.transferred()
    if report.probe is None:
        raise NotMeasured("no probe was fitted to another task: run `layersim transfer --to_data …`")
    return shares(report.probe["accuracy"], report.probe["samples"])


def _some_reach_it(runs: Sequence[FinishedRun], limits: Limits) -> None:
    level = 1 - limits["absolute-epsilon"]
    if not any(_reached(run.accuracy().values, level).any() for run in runs):
        raise NotMeasured(f"no layer of any run reaches an accuracy of {level:g}: raise --absolute-epsilon")


@claim(
    says="Fewer layers are needed for the accuracy 1 − ε",
    source="figure 5a",
    published="5.6 of 12, DeiT-S on CIFAR-10, training accuracy 0.97",
    arms=LOSS,
    claimed=(">", 0.0),
    check=_some_reach_it,
)
def absolute_depth(run: FinishedRun, limits: Limits) -> Measured:
    """Layers by which the accuracy 1 − ε is reached earlier (between layers on a line).

    Judged where the accuracy is asked for, `--absolute-epsilon`: it is the task's own.
    """
    return _reached_at(run.accuracy(), 1 - limits["absolute-epsilon"])


@claim(
    says="Training one head at all layers makes features readable: the model's own head says more of shallow layers",
    source="figures 1b and 4b, told apart from what the features know",
    arms=GAIN,
    claimed=(">", "shallow-gain"),
)
def features_readable(run: FinishedRun, limits: Limits) -> Measured:
    """Gain in mean accuracy of the shared head over the first half of the layers, as `layersim lens` reads it."""
    return _shallow(*run.read_by(READABLE))


@claim(
    says="It makes them know more: a linear probe says more of shallow layers, too",
    source="not in the paper, which reads the head alone",
    arms=GAIN,
    claimed=(">", 0.0),
)
def features_know_more(run: FinishedRun, limits: Limits) -> Measured:
    """Gain in mean accuracy of linear probes over the first half of the layers."""
    return _shallow(*run.read_by(KNOWN))


@claim(
    says="Layers are more alike than chance makes them, by cosine and by CKA",
    source="figure 2, against permuted samples",
    claimed=("≤", 0.0),
)
def similarity_beyond_chance(run: FinishedRun, limits: Limits) -> Measured:
    """Share of the pairs of layers that are not beyond chance (family-wise p > 0.05), of the two the larger."""
    return _counted([run.within_chance(*told) for told in (("cosine", "cosine"), ("cka", "CKA"))])


CLAIMS = (
    similarity_rises, cosine_follows_cka, accuracy_rises, probability_rises, shallow_layers, last_layer,
    more_saturation, earlier_saturation, effective_depth, one_head_on_par, parameters_saved, transfer_shift,
    transfer_task, features_readable, features_know_more, similarity_beyond_chance,
)  # fmt: skip


def _shallow(told: Measured, samples: int | None) -> Measured:
    """The mean over the first half of the layers."""
    return shares([told.values[: max(1, len(told.values) // 2)].mean()], samples)


def _counted(shared: Sequence[float]) -> Measured:
    """Exact, without an interval's width."""
    return Measured(np.array(shared), np.array([shared, shared]))


def _drops(values: Measured) -> Measured:
    if len(values.values) < 2:
        raise NotMeasured("it takes two layers or more")
    return values[:-1] - values[1:]


def _reached_at(accuracy: Measured, level: float) -> Measured:
    """The depth at which a line drawn through the layers' accuracies first reaches the level, else L."""
    ends = None if accuracy.ends is None else np.array([[_depth(end, level)] for end in accuracy.ends[::-1]])
    return Measured(np.array([_depth(accuracy.values, level)]), ends)


def _depth(accuracy: Numbers, level: float) -> float:
    reached = _reached(accuracy, level)
    place = int(reached.argmax())
    if not reached.any() or place == 0:
        return 1.0 if reached.any() else float(len(accuracy))
    return place + float((level - accuracy[place - 1]) / (accuracy[place] - accuracy[place - 1]))


def _reached(accuracy: Numbers, level: float) -> NDArray[np.bool_]:
    """Whether it is at least the level; to 12 digits, as in binary 1 − 0.18 is a little more than 0.82."""
    return np.round(accuracy - level, 12) >= 0
