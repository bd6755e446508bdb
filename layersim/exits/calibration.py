"""The threshold that saves most while a promise about the risk still holds, or that is best within a budget.

Letters: L layers, N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor

from layersim.errors import UserError, check_choice, check_share
from layersim.exits.curve import along_exits, exit_counts
from layersim.exits.policies import Policy, exit_layer, rising
from layersim.exits.promises import Bet, Counted, Expected, Promise
from layersim.exits.shift import Shift
from layersim.exits.table import RISKS, ExitSummary, ExitTable, Risk, at_exits, drops, summarize

Method = Literal["crc", "ltt", "ucb"]
Unit = Literal["samples", "texts"]


@dataclass(frozen=True)
class Calibration(ExitSummary):
    """A threshold, what it promises of new samples, and what it did to the N it was chosen on.

    The summary's accuracies and losses are those of the samples that chose the threshold; only the bound is a promise.
    """

    method: Method
    risk: Risk
    target: float
    """The risk that is promised not to be exceeded."""
    confidence: float | None
    """The probability of the promise; None for `crc`, which promises a mean."""
    observed_risk: float
    """The mean of the risk over the N samples."""
    bound: float
    """What the method says of the risk at most; at most the target."""
    effective_samples: float | None = None
    """Of a promise for new data, whose shift weighs the samples: as `Shift` says."""

    def explain(self) -> str:
        """n, the bound and what it means, in plain words."""
        what = RISKS[self.risk]
        rule = leaving_rule("sample", self.policy, self.threshold, f"{what} at or below {self.target:g}")
        if self.confidence is None:
            promise = (
                f"Over many calibration sets of this size, {what} averages at most {self.target:g} on new samples; "
                f"for this very set it may be more. Estimated on n = {self.samples} with one sample of the worst kind "
                f"added, and with each sample's worst loss at this threshold or a more cautious one: {self.bound:.4g}."
            )
        else:
            promise = (
                f"With probability {self.confidence:g} over the draw of these n = {self.samples} samples, {what} is at "
                f"most {self.target:g} on new samples; the upper bound at this threshold is {self.bound:.4g}."
            )
        like, weighted = "like these,", ""
        if self.effective_samples is not None:
            weighted = ", weighted"
            like = (
                "like the new data, as far as the density ratio is right, by which these count as "
                f"{self.effective_samples:.0f},"
            )
        return (
            f"{rule} {promise} Measured on these samples{weighted}: {self.observed_risk:.4g}. {self.describe()} "
            f"The promise ({self.method}) is for samples drawn independently {like} and for a model, temperatures "
            "and a policy that were fixed without them."
        )


def leaving_rule(who: str, policy: str, threshold: float | None, kept: str) -> str:
    """When a sample or token leaves, or that none can for all that is to be `kept`, in a sentence."""
    if threshold is None:
        return (
            f"No threshold of the policy {policy} can be promised to keep {kept}: every {who} goes through all layers."
        )
    return f"A {who} leaves at the first layer where {policy} ≥ {threshold:.9g}."


def calibrate(
    table: ExitTable,
    policy: Policy,
    thresholds: Sequence[float],
    *,
    target: float,
    risk: Risk = "error",
    confidence: float = 0.95,
    method: Method = "ltt",
    seed: int = 0,
    together: int = 1,
    shift: Shift | None = None,
) -> Calibration:
    """The least of the thresholds, hence with the least mean exit layer, that is promised to keep the risk ≤ target.

    From the most cautious threshold down each is tested until one fails; the last that passed is the answer. Since the
    order was fixed before the samples were seen, a threshold that breaks the target is chosen only if the first such on
    the way passes its test, so that no correction for the number of thresholds is needed (fixed-sequence testing).

    `crc`: conformal risk control (arXiv 2208.02814). E[risk] ≤ target, the mean taken over calibration sets too; about
        half of them may lie above. Each sample's loss is made monotone by its maximum over more cautious thresholds,
        so that leaving early earns nothing for mistakes that it prevents.
    `ltt`: learn then test (arXiv 2110.01052) with the fixed sequence. P(risk ≤ target) ≥ confidence. The p-value is the
        exact binomial tail for `disagreement`, and from betting for `error` and `loss`.
    `ucb`: an upper confidence bound (arXiv 2101.02703) by betting (arXiv 2010.09686). P(risk ≤ target) ≥ confidence. A
        bound is below the target where its test rejects, so `ucb` and `ltt` agree on `error` and `loss`.

    The promise is for independent samples that nothing else was fitted on: not the model, not the temperatures.

    Args:
        thresholds: ascending, and fixed without looking at the table: the policy's own.
        target: in (0, 1).
        confidence: in (0, 1); of no meaning for `crc`.
        seed: of the random order in which `ltt` and `ucb` bet on the samples, because data files are often sorted.
        together: targets among which the promise's 1 − confidence is divided.
        shift: of the table's samples, in their order: the promise is then for new data whose inputs come otherwise
            often, and whose labels depend on the inputs as before.

    Raises:
        UserError: target, confidence, thresholds or method out of range, too few samples to promise this of the full
            model itself, or ratios of another number of samples.
    """
    thresholds = rising(thresholds)
    samples = len(table.targets)
    promise = check_promise(
        samples,
        target=target,
        risk=risk,
        confidence=confidence,
        method=method,
        together=together,
        weighted=shift is not None,
    )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    shuffled = table.select(order)
    if shift is not None:
        shift = _check_shift(shift, promise, samples, order)
    costs = drops(shuffled, risk)
    worst = kept = costs[-1]
    threshold = None
    for candidate in reversed(thresholds):
        losses = at_exits(costs, exit_layer(shuffled.scores, candidate))
        if promise.needs_monotone:
            worst = losses = torch.maximum(worst, losses)
        if not promise.keeps(losses if shift is None else shift.weighted(losses, target)):
            break
        threshold, kept = candidate, losses
    observed = at_exits(costs, exit_layer(shuffled.scores, threshold))
    mean = observed.mean() if shift is None else (shift.weights @ observed) / shift.weights.sum()
    return Calibration(
        **vars(summarize(table, policy, threshold)),
        method=method,
        risk=risk,
        target=target,
        confidence=None if method == "crc" else confidence,
        observed_risk=mean.item(),
        bound=promise.bound(kept) if shift is None else shift.bound(promise, kept),
        effective_samples=None if shift is None else shift.effective_samples,
    )


def calibrate_together(
    table: ExitTable, policy: Policy, thresholds: Sequence[float], *, targets: Sequence[float], **options: Any
) -> list[Calibration]:
    """A calibration for each of K targets, which all hold together with probability `confidence`; thresholds fall, or
    stay, from one target to the next.

    Each target has a fixed sequence of its own, from the most cautious threshold down, tested at δ / K. In a sequence
    whose first threshold that breaks its target is not rejected nothing false is promised (fixed-sequence testing: the
    order does not depend on the samples); these K thresholds are fixed, so that one of them is rejected with
    probability at most K δ / K = δ (Bonferroni 1936). A threshold that keeps a target keeps each greater one without
    another test, so where a greater target's sequence stopped earlier it takes the threshold over. `crc` promises
    means, which hold together as they are.

    Args:
        targets: rising, in (0, 1).
        **options: of `calibrate`.

    Raises:
        UserError: as `calibrate`, or targets that are none or do not rise.
    """
    numbers = check_targets(targets)
    found: list[Calibration] = []
    for target in numbers:
        one = calibrate(table, policy, thresholds, target=target, together=len(numbers), **options)
        if found and found[-1].threshold is not None and (one.threshold is None or one.threshold > found[-1].threshold):
            one = replace(found[-1], target=target)
        found.append(one)
    return found


def check_targets(targets: Sequence[float]) -> list[float]:
    """The targets of a list, array or tensor; refuses, with a UserError, those that are none, or do not rise."""
    return rising(targets, "risk targets", " Change --risk.")


def _check_shift(shift: Shift, promise: Promise, samples: int, order: Tensor) -> Shift:
    """The shift with its weights in another order, if it lets the full model itself be promised to new data."""
    if len(shift.weights) != samples:
        raise UserError(f"Expected a density ratio for each of {samples} samples, but got {len(shift.weights)}.")
    shift = replace(shift, weights=shift.weights[order])
    if not promise.keeps(shift.weighted(torch.zeros(samples, dtype=torch.float64), promise.target)):
        raise UserError(
            f"The new data are too far from the {samples} calibration samples to promise a risk of at most "
            f"{promise.target:g}, even of the full model: these count as {shift.effective_samples:.0f}, and a new "
            f"sample for up to {shift.greatest / shift.weights.mean().item():.3g} of them. Give more calibration "
            "samples, raise the risk, lower the confidence, or calibrate on samples like the new ones."
        )
    return shift


def check_promise(
    samples: int,
    *,
    target: float,
    risk: str,
    confidence: float,
    method: Method = "ltt",
    together: int = 1,
    weighted: bool = False,
    of: Unit = "samples",
) -> Promise:
    """The promise, and what can be said against it before any of the samples is measured.

    Raises:
        UserError: target, confidence or method out of range, or too few samples to promise this of the full model.
    """
    check_choice("of", of, Unit)
    ones = {"samples": "disagreement", "texts": "continuation"}[of]  # the risk whose losses are 0 and 1
    check_share("a risk target", target)
    check_share("a confidence", confidence)
    check_choice("method", method, Method)
    counted = method == "ltt" and risk == ones and not weighted  # weights make other numbers of 0 and 1
    promise = (Expected if method == "crc" else Counted if counted else Bet)(target, (1 - confidence) / together)
    if samples < max(1, promise.samples_needed()):
        sure = "" if method == "crc" else f" with confidence {confidence:g}"
        sure += f" for {together} targets together" if together > 1 and sure else ""
        or_lower = "" if method == "crc" else ", or lower the confidence"
        least = promise.bound(torch.zeros(max(1, samples), dtype=torch.float64))
        raise UserError(
            f"Expected at least {promise.samples_needed()} {of} to promise a risk ({risk}) of at most "
            f"{target:g}{sure} by {method}, but got {samples}: so few could not promise it even of the full model. "
            f"Give more calibration {of}, or raise the risk above {least:.3g}{or_lower}."
        )
    return promise


def best_within(table: ExitTable, policy: Policy, thresholds: Sequence[float], budget: float) -> ExitSummary:
    """The threshold of best accuracy among those with a mean exit layer ≤ budget × L; of equals, the cheapest.

    Measured on the table's samples, and no promise: on new samples the mean exit layer may lie a little above the
    budget, and the accuracy, having been picked as the best, below.

    Args:
        thresholds: ascending, as the policy gives them.
        budget: share of the layers, in (0, 1].

    Raises:
        UserError: the budget is out of range, or no threshold keeps to it.
    """
    thresholds = rising(thresholds)
    check_share("a budget", budget, one=True)
    tried = torch.tensor([*thresholds, inf], dtype=torch.float64)
    counts = exit_counts(table.scores, table.predictions, table.targets, tried)
    means, accuracies = (each.tolist() for each in along_exits(*counts))
    num_layers = table.scores.shape[0]
    affordable = [place for place, mean in enumerate(means) if mean <= budget * num_layers]
    if not affordable:
        raise UserError(
            f"No threshold of the policy {policy.name} leaves within {budget:g} of the layers on average; the least is "
            f"{min(means) / num_layers:.3g}. Raise the budget, or change the policy."
        )
    best = max(affordable, key=lambda place: (accuracies[place], -means[place]))
    return summarize(table, policy, None if best == len(thresholds) else thresholds[best])
