"""What every similarity measure is: a function, and how it streams over batches and processes. Letters: L and M layers,
N samples, D and D' width."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

from layersim.errors import UserError, as_user_error, check_seed, meant
from layersim.precision import widened
from layersim.similarity.features import Layers, as_pair, warn_undefined
from layersim.similarity.intervals import Interval, jackknife, sums_by_group
from layersim.similarity.kept_samples import SampleKeeper, Samples, joined
from layersim.similarity.layer_pairs import LayerPairs
from layersim.similarity.null import Null, null_of_values, require_permutations, shuffled
from layersim.similarity.properties import Properties

Found = TypeVar("Found")

NAMES = {
    "cosine": "CosineSimilarity",
    "angular": "AngularDistance",
    "cka": "LinearCKA",
    "rbf_cka": "RBFCKA",
    "cknna": "CKNNA",
    "mutual_knn": "MutualKNN",
    "rsa": "RSA",
    "procrustes": "Procrustes",
    "mean_cca": "MeanCCA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "r2": "RegressionR2",
}
"""The classes of `layersim.similarity`, by the names that figures and records give their values."""


class Measure(SampleKeeper):
    """A similarity of layers over batches and processes; the base of those here and of one's own.

    A class needs a `label`, a `value_range`, a `function` and, where it is not 1, `identical`. Most measures need all
    their samples at once, which are kept: of more than `max_samples` those whose position has the smallest hash, so
    that the choice depends on the data alone and the value neither on the batch size, the order nor the number of
    processes. With options that let sums suffice, a measure overrides what is kept and computed.
    """

    label: ClassVar[str]
    """Its name for people, as in "linear CKA"."""
    value_range: tuple[float | None, float | None]
    """The smallest and the largest possible value, None where there is no bound; some options narrow the class's."""
    identical: ClassVar[float] = 1.0
    """The value of a layer against itself."""
    better: Literal["higher", "lower"] | None = None
    """Which values are better: neither, of a similarity."""
    least: ClassVar[int] = 1
    """How many samples it needs, whatever its options; where it has `pairs`, these tell."""
    function: Callable[..., Tensor]
    """The measure: (L, N, D) features, against themselves or (M, N, D') others, → (L, M)."""
    pairs: ClassVar[Callable[..., LayerPairs[Any]] | None] = None
    """The function in two parts, by the same options, where it has them: so that a null looks at each layer once."""
    keeps_by: ClassVar[str] = "let `update` keep its samples"
    """What makes it keep samples where it does not."""

    sums: list[Tensor]
    """At most one (1, G, …, …) float64 tensor: a sum for each jackknife group, so that an interval needs no samples."""
    units: list[Tensor]
    """At most one (1, G) int64 tensor on the host: how many units each of the sums is over."""

    arguments: Mapping[str, Any] = MappingProxyType({})
    """What the function is given beside features: set by classes with options, before this one's constructor."""

    def __init__(self, *, max_samples: int | None = 4096) -> None:
        """`max_samples`: N at most; all where None.

        Raises:
            UserError: fewer than the measure needs.
        """
        least = self.least if self.pairs is None else self.pairs(**self.arguments).least
        super().__init__(max_samples=max_samples, least=least)
        self.expected: tuple[int, int] | None = None
        """The permutations and the seed of the null that will be asked for."""
        for state in ("sums", "units"):
            self.add_state(state, [], dist_reduce_fx="cat")
        if not self.keeps_sample:
            self.keep_apart(type(self).__name__, *self.arguments.items())

    @property
    def keeps_sample(self) -> bool:
        return type(self).update is Measure.update

    @property
    def properties(self) -> Properties | None:
        """What leaves the value as it is, with these options; None where a measure does not say."""
        return None

    @property
    def lower_is_alike(self) -> bool:
        """Whether low values are those of alike layers, as of a distance."""
        return self.identical == 0 or self.better == "lower"

    @property
    def options(self) -> dict[str, Any]:
        """What a run records beside the values."""
        return dict(self.arguments) | ({"max_samples": self.max_samples} if self.keeps_sample else {})

    def update(self, features: Layers, index: Tensor | None = None, *, other: Layers | None = None) -> None:
        """Takes (L, n, D) features, their samples' (n,) integer positions in the data set, on the host, and, to compare
        two models, the (M, n, D') features that the `other` has for the same samples.

        Without positions samples are numbered as they come; on several processes give them, or the choice of samples,
        and of those that go into a sum together, depends on the split.
        """
        self.keep(self.admitted(features, index, other))

    def compute(self) -> Tensor:
        """(L, L) or (L, M) float64, as the function on all samples or those kept; raises what it raises.

        Raises:
            UserError: too few samples came, or a position came twice.
        """
        kept = self.kept()
        return self.values_of(kept.features, kept.other)

    def values_of(self, features: Tensor, other: Tensor | None = None) -> Tensor:
        """The function, by the options, as float64.

        Raises:
            UserError: a layer against itself is not `identical`, by which layers that are alike are known.
        """
        found = self.function(features, other, **self.arguments)
        values = torch.as_tensor(found, dtype=torch.float64, device=features.device)
        own = values.diagonal() if other is None and values.ndim == 2 else values.new_empty(0)
        if self.identical and len(wrong := own[(own - self.identical).abs() > abs(self.identical) / 100]):
            raise UserError(
                f"{self.label} gives {wrong[0]:.4g} for a layer against itself, but {type(self).__name__}.identical is "
                f"{self.identical:g}: set it, to 0 for a distance, or to NaN, with `better`, where it is no one number"
            )
        return values

    def interval(self, confidence: float = 0.95) -> Interval:
        """The value, as `compute` has it, and its interval by the `jackknife`, of all processes' samples.

        From sums over samples it costs next to nothing; from kept samples, what 21 values cost, and of linear CKA 4.

        Raises:
            UserError: what `compute` raises, a confidence out of bounds, or too few samples to leave some out.
        """
        return self._of_all(partial(self.interval_of_state, confidence))

    def expect_null(self, permutations: int = 200, seed: int = 0) -> None:
        """Says, before the first update, that `null` will be asked for.

        Raises:
            UserError: fewer than 19 permutations, a measure that keeps no samples to permute, or, where it permutes as
                they come, samples that came already.
        """
        check_seed(seed, "seed")
        self.require_null(permutations, seed, announced=True)
        if self.expected != (permutations, seed) and self.count() and not self.keeps_sample:
            raise UserError("null: expect_null comes before the first update: reset the metric in between")
        self.expected = permutations, seed

    def require_null(self, permutations: int, seed: int, *, announced: bool = False) -> None:
        """Raises what `expect_null` does; `announced`: there, in place of `null`."""
        require_permutations(permutations)
        if not self.keeps_sample:
            raise UserError(f"null: {self.label} keeps no samples to permute with these options: {self.keeps_by}")

    def null(self, permutations: int = 200, seed: int = 0) -> Null:
        """The value, and what it is where samples are paired by chance: of all processes' samples, those of one side in
        P random orders. The same N and seed give the same orders for all pairs of layers and all measures.

        It costs what P values cost, less what is done for each layer alone.

        Raises:
            UserError: what `compute` and `expect_null` raise, or more permutations than the samples have orders.
        """
        check_seed(seed, "seed")
        self.require_null(permutations, seed)
        return self._of_all(partial(self.null_of_state, permutations, seed))

    def null_of_state(self, permutations: int, seed: int) -> Null:
        """The null of the samples in the state as it is, whether joined across processes or not."""
        kept = self.kept()
        samples = kept.features.shape[1]
        require_permutations(permutations, samples)
        orders = shuffled(torch.arange(samples), permutations, seed).to(kept.features.device)
        return self.null_of(self.permuted(kept.features, kept.other, orders), seed, alone=kept.other is None)

    def permuted(self, features: Tensor, other: Tensor | None, orders: Tensor) -> Tensor:
        """(P, L, M) values with the samples of `other`, or of the columns' features, in each of (P, N) orders."""
        if self.pairs is not None:
            return self.pairs(**self.arguments).permuted(features, other, orders)
        theirs = features if other is None else other
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "similarity is NaN")  # said of the value
            return torch.stack([self.values_of(features, theirs[:, order]) for order in orders])

    def null_of(self, values: Tensor, seed: int, *, alone: bool) -> Null:
        """That of (1 + P, L, M) values, of which the first are those of the samples as they are."""
        if math.isnan(self.identical) and self.better is None:
            raise UserError(
                f"null: {self.label} does not say whether a high value or a low one is that of alike layers"
            )
        mirrored = alone and self.properties is not None and self.properties.symmetric
        return null_of_values(
            values, self.identical, lower=self.lower_is_alike, alone=alone, mirrored=mirrored, seed=seed
        )

    def _of_all(self, measured: Callable[[], Found]) -> Found:
        """What is measured with the states of all processes joined."""
        self.sync()
        try:
            return measured()
        finally:
            self.unsync(should_unsync=self._is_synced)

    def interval_of_state(self, confidence: float) -> Interval:
        """The interval of the samples in the state as it is, whether joined across processes or not: the measure again
        without each group of the kept samples."""
        kept = self.kept()
        return jackknife(self.values_of, kept.features, kept.other, confidence=confidence, index=kept.index)

    def admitted(self, features: Layers, index: Tensor | None, other: Layers | None) -> Samples:
        """The batch as it came, checked and counted."""
        ours, theirs = as_pair(features, other)
        numbers = self.numbered(index, *(each for each in (ours, theirs) if each is not None))
        return Samples(ours.detach(), None if theirs is None else theirs.detach(), numbers)

    def add(self, values: Tensor, units: Tensor) -> None:
        """Adds (n, …, …) float64 values of n units, with their (n,) numbers on the host, to their groups' sums."""
        for state, addend in zip((self.sums, self.units), sums_by_group(values, units), strict=True):
            state[:] = [addend[None] + state[0].to(addend.device) if state else addend[None]]

    def added(self) -> tuple[Tensor, Tensor]:
        """The sums of each of G groups, (G, …, …), and its number of units, (G,), of all processes."""
        return joined(self.sums).sum(0), joined(self.units).sum(0).cpu()


class PairMeasure(Measure):
    """Any torchmetrics metric of two tensors, such as `torchmetrics.MeanSquaredError()`, between every two layers.

    It is given the row's layer and the column's, (N, D) each and of one width, and computes one number.
    """

    label: str  # type: ignore[misc]  # of the metric that is given
    value_range = (None, None)  # what torchmetrics declares is for its plots, and narrower than what it computes
    identical = math.nan

    def __init__(self, metric: Metric, *, max_samples: int | None = 4096) -> None:
        """`metric`: whose own state stays as it is. `max_samples`: as of `Measure`."""
        super().__init__(max_samples=max_samples)
        self.metric = metric
        self.label = type(metric).__name__
        if metric.higher_is_better is not None:
            self.better = "higher" if metric.higher_is_better else "lower"

    def function(self, features: Layers, other: Layers | None = None) -> Tensor:
        ours, theirs = as_pair(features, other)
        metric = copy.deepcopy(self.metric).to(ours.device)
        metric.distributed_available_fn = lambda: False  # the samples of all processes are here
        rows, columns = (widened(layers).contiguous() for layers in (ours, ours if theirs is None else theirs))
        values = [[self._of_pair(metric, row, column) for column in columns] for row in rows]
        return warn_undefined(torch.tensor(values, dtype=torch.float64, device=ours.device), ours, theirs)

    def _of_pair(self, metric: Metric, row: Tensor, column: Tensor) -> float:
        metric.reset()
        with as_user_error(f"{self.label} cannot compare two layers, {tuple(row.shape)} each", _OTHER):
            metric.update(row, column)
            value = metric.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{self.label} gives {came} for two layers, expected one number. {_OTHER}")
        return float(value)


_OTHER = "Choose a metric of two tensors (N, D), or write a function and a layersim.similarity.Measure of it."


def as_measures(metrics: Mapping[str, object]) -> dict[str, Measure]:
    """Measures as they are, and other torchmetrics metrics as a `PairMeasure`.

    Raises:
        UserError: there are none, or one of them is no metric.
    """
    if not isinstance(metrics, Mapping) or not metrics:
        raise UserError(f"measures: expected one metric or more by name, got {metrics!r}. Leave it out for the usual.")
    measures = {}
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            given = metric.__name__ if isinstance(metric, type) else type(metric).__name__
            raise UserError(
                f"measures: {name} is {given}, expected a metric: of layersim.similarity, such as LinearCKA(), a "
                "Measure of your own, or one of torchmetrics that compares two tensors."
            )
        measures[name] = made = metric if isinstance(metric, Measure) else PairMeasure(metric)
        if untold := [each for each in ("label", "value_range", "function") if not hasattr(made, each)]:
            raise UserError(f"{type(made).__name__} does not say its {', '.join(untold)} (see layersim.Measure).")
    return measures


def measure_named(name: str) -> type[Measure]:
    """The class of that name.

    Raises:
        UserError: there is none; near ones are named.
    """
    if name not in NAMES:
        raise UserError(
            f"There is no measure {name!r}.{meant(name.lower(), NAMES)} Choose --measure from {', '.join(NAMES)}."
        )
    return getattr(import_module("layersim.similarity"), NAMES[name])
