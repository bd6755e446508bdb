"""The state that similarity metrics share: sums, a count, kept samples. Letters: L and M layers, N samples, D and D'
width."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor

from layersim.errors import UserError
from layersim.similarity.features import Layers, as_pair
from layersim.similarity.intervals import Interval, jackknife, sums_by_group
from layersim.similarity.keeping import SampleKeeper, joined
from layersim.similarity.properties import Properties


@dataclass(frozen=True)
class Batch:
    """Samples with their positions in the data set."""

    features: Tensor
    """(L, n, D)."""
    other: Tensor | None
    """(M, n, D') of the same samples, from the model compared with."""
    index: Tensor
    """(n,) int64 on the host."""


class SampleMetric(SampleKeeper):
    """A similarity of samples that carry their position in the data set: of kept ones, or from sums over all."""

    label: ClassVar[str]
    """Its name for people, as in "linear CKA"."""
    value_range: tuple[float | None, float | None]
    """The smallest and the largest possible value, None where there is no bound; some options narrow the class's."""
    identical: ClassVar[float] = 1.0
    """The value of a layer against itself."""
    better: ClassVar[Literal["higher", "lower"] | None] = None
    """Which values are better: neither, of a similarity."""

    sums: list[Tensor]
    """At most one (1, G, …, …) float64 tensor: a sum for each jackknife group, so that an interval needs no samples."""
    units: list[Tensor]
    """At most one (1, G) int64 tensor on the host: how many units each of the sums is over."""

    def __init__(self, *, max_samples: int | None, least: int, group: int = 1) -> None:
        """`least`: how many samples the measure needs. `group`: numbering by itself starts at a multiple of it.

        Raises:
            UserError: `max_samples` below `least`.
        """
        super().__init__(max_samples=max_samples, least=least, group=group)
        for state in ("sums", "units"):
            self.add_state(state, [], dist_reduce_fx="cat")

    @property
    @abstractmethod
    def properties(self) -> Properties:
        """What the measure promises with these options."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What a run records beside the values."""

    def interval(self, confidence: float = 0.95) -> Interval:
        """The value, as `compute` has it, and its interval by the `jackknife`, of all processes' samples.

        From sums over samples it costs next to nothing; from kept samples, what 21 values cost, and of linear CKA 4.

        Raises:
            UserError: what `compute` raises, a confidence out of bounds, or too few samples to leave some out.
        """
        self.sync(dist_sync_fn=self.dist_sync_fn)
        try:
            return self.interval_of_state(confidence)
        finally:
            self.unsync(should_unsync=self._is_synced)

    @abstractmethod
    def interval_of_state(self, confidence: float) -> Interval:
        """The interval of the samples in the state as it is, whether joined across processes or not."""

    def admit(self, features: Layers, index: Tensor | None, other: Layers | None) -> Batch:
        """The batch as it came, checked and counted, with its (n,) positions on the host.

        Without positions samples are numbered as they come, each process from a start of its own.
        """
        ours, theirs = as_pair(features, other)
        numbers = self.numbered(ours.shape[1], index)
        return Batch(ours.detach(), None if theirs is None else theirs.detach(), numbers)

    def add(self, values: Tensor, units: Tensor) -> None:
        """Adds (n, …, …) float64 values of n units, with their (n,) numbers on the host, to their groups' sums."""
        for state, addend in zip((self.sums, self.units), sums_by_group(values, units), strict=True):
            state[:] = [addend[None] + state[0].to(addend.device) if state else addend[None]]

    def added(self) -> tuple[Tensor, Tensor]:
        """The sums of each of G groups, (G, …, …), and its number of units, (G,), of all processes."""
        return joined(self.sums).sum(0), joined(self.units).sum(0).cpu()

    def keep(self, batch: Batch) -> None:
        """Keeps the batch."""
        other = None if batch.other is None else batch.other.transpose(0, 1)
        self.keep_rows(batch.features.transpose(0, 1), other, batch.index)

    def kept(self) -> Batch:
        """What all processes kept, positions ascending, `max_samples` at most.

        Raises:
            UserError: a position came twice.
        """
        kept = self.kept_rows()
        other = None if kept.others is None else kept.others.transpose(0, 1)
        return Batch(kept.features.transpose(0, 1), other, kept.index)


def require_measures(measures: Mapping[str, object]) -> None:
    """Raises UserError where one of them is no similarity of layers, as torchmetrics' own are not."""
    for name, measure in measures.items():
        if not isinstance(measure, SampleMetric):
            given = measure.__name__ if isinstance(measure, type) else type(measure).__name__
            raise UserError(
                f"measures: {name} is {given}, expected a metric of layersim.similarity, such as LinearCKA(), or of a "
                "class of yours that inherits from layersim.similarity.samples.SampleMetric."
            )


class WholeMetric(SampleMetric):
    """A measure of samples that are kept, as most need all of theirs at once; with options that let sums suffice, a
    measure overrides what is kept and computed.

    Of more than `max_samples` those whose position has the smallest hash are kept, so that the choice depends on the
    data alone: the same value whatever the batch size, the order and the number of processes.
    """

    function: Callable[..., Tensor]
    """The measure: (L, N, D) features, against themselves or (M, N, D') others, → (L, M)."""

    def __init__(self, *, max_samples: int | None, least: int, group: int = 1, **arguments: Any) -> None:
        """`least`: how many samples the measure needs. `group`: see SampleMetric. `arguments`: of the function.

        Raises:
            UserError: `max_samples` below `least`.
        """
        super().__init__(max_samples=max_samples, least=least, group=group)
        self.arguments = arguments

    @property
    def options(self) -> dict[str, Any]:
        """What a run records beside the values."""
        return {**self.arguments, "max_samples": self.max_samples}

    def update(self, features: Layers, index: Tensor | None = None, *, other: Layers | None = None) -> None:
        """Takes (L, n, D) features, their samples' (n,) integer positions in the data set, on the host, and, to compare
        two models, the (M, n, D') features that the `other` has for the same samples.

        Without positions samples are numbered as they come; on several processes give them, or the choice of samples
        depends on the split.
        """
        self.keep(self.admit(features, index, other))

    def compute(self) -> Tensor:
        """(L, L) or (L, M) float64, as the function on the kept samples; raises what it raises."""
        kept = self.kept()
        return self.function(kept.features, kept.other, **self.arguments)

    def interval_of_state(self, confidence: float) -> Interval:
        """The measure again without each group of the kept samples."""
        kept = self.kept()
        return jackknife(
            partial(self.function, **self.arguments), kept.features, kept.other, confidence=confidence, index=kept.index
        )
