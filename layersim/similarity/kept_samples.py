"""Samples that metrics keep: the same ones however the data is batched and split. Letters: L and M layers, N samples, D
and D' width."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from layersim.errors import UserError, check_choice
from layersim.evaluation import process
from layersim.outputs import LayerFeatures
from layersim.similarity.features import require_whole
from layersim.similarity.layer_metric import LayerMetric
from layersim.similarity.positions import as_positions, require_distinct, splitmix64

KeepOn = Literal["device", "host"]
"""Where samples are kept: where they came, or in the host's memory, where they are then measured too."""

PROCESS_STRIDE = 2**40  # samples a process may number by itself before it meets the next process's numbers


@dataclass(frozen=True)
class Samples:
    """Samples with their positions in the data set."""

    features: Tensor
    """(L, N, D) in the dtype they came in; (0, 0, 0) where there are none."""
    other: Tensor | None
    """What came with them: (M, N, D') features of the model compared with, or (N,) targets; None where nothing did."""
    index: Tensor
    """(N,) int64 on the host."""


class SampleKeeper(LayerMetric):
    """Keeps `max_samples` samples at most: those whose position in the data set has the smallest hash, so that it does
    not matter who saw which when. They are chosen before anything is copied, and take the place of those they replace.

    Every state is a list, empty at first, whose parts are joined along their first dimension across processes: neither
    L, D nor the dtype need be known beforehand, and a process without any batch takes part with nothing.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = None
    group = 1
    """Numbering by itself starts at a multiple of it."""
    reads_targets = False
    """Whether it reads the targets of samples that are shared."""

    seen: list[Tensor]
    """At most one (1,) int64 tensor on the host."""
    features: list[Tensor]
    """(n, L, D) tensors in the dtype they came in."""
    others: list[Tensor]
    """(n, …) tensors of the same samples: a second set of features, or targets, where there are any."""
    index: list[Tensor]
    """(n,) int64 tensors on the host: their samples' positions."""

    def __init__(self, *, max_samples: int | None, least: int = 1, keep_on: KeepOn = "device") -> None:
        """`max_samples`: all where None; `least`: how many whoever measures them needs; `keep_on`: where they are kept.

        Raises:
            UserError: `max_samples` below `least`.
        """
        super().__init__()
        if max_samples is not None:
            require_whole("max_samples", max_samples, least)
        self.max_samples = max_samples
        check_choice("keep_on", keep_on, KeepOn)
        self.keep_on = keep_on
        self.is_shared = False
        """Whether metrics read of it."""
        self._shared: tuple[KeptSamples, ...] = ()  # in a tuple, as torch takes a module for a part of this one
        self._shapes: list[tuple[int, int]] = []
        for state in ("seen", "features", "others", "index"):
            self.add_state(state, [], dist_reduce_fx="cat")
        self.keep_apart(max_samples, keep_on)

    @property
    def keeps_sample(self) -> bool:
        """Whether all that it reads at the end are the kept samples, so that several can share them."""
        return True

    def share(self, sample: "KeptSamples") -> None:
        """Keeps nothing from now on, and reads of a sample which is given the same batches and holds as many."""
        own, held = self.max_samples, sample.max_samples
        sample.max_samples = None if own is None or held is None else max(own, held)
        self._shared, sample.is_shared = (sample,), True

    def numbered(self, index: Tensor | None, *sets: Tensor) -> Tensor:
        """Counts a batch of samples, of which there are these (L, n, D) features, and gives their (n,) positions on
        the host.

        Without positions samples are numbered as they come, each process from a start of its own. Raises UserError for
        what is not n integers, and for other layers or widths than in the updates before.
        """
        before, samples = self.count(), sets[0].shape[1]
        shapes = [(len(features), features.shape[2]) for features in sets]
        if before and self._shapes and len(shapes) != len(self._shapes):
            raise UserError("other: expected with every update or with none: reset the metric in between")
        if before and self._shapes not in ([], shapes):
            told = " and ".join(f"{layers} layers of width {width}" for layers, width in self._shapes)
            raise UserError(
                f"features: expected {told}, as in the update before, got shape "
                f"{' and '.join(str(tuple(features.shape)) for features in sets)}: reset the metric in between"
            )
        self._shapes = shapes
        positions = as_positions(index, samples, before + process() * PROCESS_STRIDE // self.group * self.group)
        self.seen[:] = [torch.tensor([before + samples])]
        return positions

    def count(self) -> int:
        """How many samples were given, by all processes once they are joined."""
        return int(joined(self.seen).sum())

    def keep(self, batch: Samples) -> None:
        """Keeps the batch; of more than `max_samples`, those that the hash of their position chooses."""
        if self._shared:
            return
        if self.index and bool(self.others) != (batch.other is not None):
            raise UserError("other: expected with every update or with none: reset the metric in between")
        held, most = sum(map(len, self.index)), self.max_samples
        came = torch.arange(len(batch.index))
        left = came[:0]  # places of samples that are let go
        if most is not None and held + len(came) > most:
            stays = torch.zeros(held + len(came), dtype=torch.bool)
            stays[splitmix64(torch.cat([*self.index, batch.index])).argsort()[:most]] = True
            left, came = (~stays[:held]).nonzero().flatten(), stays[held:].nonzero().flatten()
        if len(came):
            self._put(self.features, batch.features, came, left)
            self._put(self.index, batch.index, came, left)
            if batch.other is not None:
                self._put(self.others, batch.other, came, left)

    @torch.inference_mode(False)  # whose tensors may not be changed outside of it
    def _put(self, state: list[Tensor], given: Tensor, came: Tensor, places: Tensor) -> None:
        """Copies the samples that `came` into these places of a state, and the rest behind them."""
        rows = _samples_first(given)[_on(came, given.device)].contiguous()
        rows = rows.cpu() if self.keep_on == "host" else rows
        if len(places):
            _make_one(state)
            state[0].index_copy_(0, _on(places, state[0].device), rows[: len(places)])
        if len(rows) > len(places):
            state.append(rows[len(places) :])

    def select(self, chosen: Tensor) -> None:
        """Lets go of all kept samples but the `chosen`, (n,) numbers on the host, in this order."""
        for state in (self.features, self.others, self.index):
            if state:
                _make_one(state)
                state[:] = [state[0][_on(chosen, state[0].device)]]

    def offer(self) -> Any:
        """The smallest hashes of as many positions as count."""
        if self.max_samples is None:
            return None
        return splitmix64(joined(self.index).long()).sort().values[: self.max_samples]

    def agree(self, offers: list[Any]) -> None:
        """Keeps of this process's samples those that are among all processes' first."""
        first = torch.cat(offers).sort().values[: self.max_samples]
        if len(first) == self.max_samples:
            self.select((splitmix64(joined(self.index).long()) <= first[-1]).nonzero().flatten())

    def kept(self, these: Tensor | None = None) -> Samples:
        """What all processes kept, by ascending position, `max_samples` at most.

        Args:
            these: (n,) whether each of the samples in the state is wanted; all where None.

        Raises:
            UserError: a position came twice.
        """
        keeper = self._shared[0] if self._shared else self
        if not keeper.index:
            return Samples(torch.empty(0, 0, 0), None, torch.empty(0, dtype=torch.int64))
        index = joined(keeper.index)
        chosen = splitmix64(index).argsort()[: self.max_samples] if these is None else these.nonzero().flatten()
        order = chosen[index[chosen].argsort()]
        require_distinct(index[order])
        if these is None and len(order) == len(index) and not torch.equal(index[order], index):
            keeper.select(order)  # those who share it need not copy it
            order = torch.arange(len(order))

        def taken(state: list[Tensor]) -> Tensor:
            _make_one(state)
            whole = len(order) == len(state[0]) and torch.equal(order, torch.arange(len(order)))
            return _samples_first(state[0] if whole else state[0][_on(order, state[0].device)])

        others = keeper.others if keeper is self or self.reads_targets else []
        return Samples(taken(keeper.features), taken(others) if others else None, joined(keeper.index)[order])


class KeptSamples(SampleKeeper):
    """The features of `max_samples` samples at most, with their classes: the very ones that a similarity of the same
    `max_samples` keeps.

    Without positions samples are numbered as they come, each process from a start of its own.
    """

    reads_targets = True

    def update(self, batch: LayerFeatures) -> None:
        """Takes samples, with targets in every update or in none."""
        index = self.numbered(batch.position, batch.values)
        self.keep(Samples(batch.values.detach(), batch.targets, index))

    def compute(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """By ascending position, what all processes kept: the (L, N, D) features in the dtype they came in, their (N,)
        targets, None where there are none, and their (N,) positions on the host.

        Raises:
            UserError: a position came twice.
        """
        kept = self.kept()
        return kept.features, kept.other, kept.index


def joined(parts: list[Tensor]) -> Tensor:
    """A list state as one tensor."""
    return torch.cat(parts) if parts else torch.empty(0)


def _make_one(parts: list[Tensor]) -> None:
    """Joins the tensors of a state in place, so that none is there twice."""
    if len(parts) > 1:
        parts[:] = [torch.cat(parts)]


def _on(rows: Tensor, device: torch.device) -> Tensor:
    """Numbers of rows where the rows are; no GPU waits for them."""
    return rows.to(device, non_blocking=True)


def _samples_first(values: Tensor) -> Tensor:
    """(L, n, D) → (n, L, D), and back; (n,) targets as they are."""
    return values.transpose(0, 1) if values.ndim == 3 else values
