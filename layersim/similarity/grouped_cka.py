"""Linear CKA over batches and processes. Letters: L and M layers, n samples or groups, D and D' width."""

from collections.abc import Iterator

import torch
from torch import Tensor

from layersim.errors import UserError, check_share
from layersim.precision import full_precision
from layersim.similarity.features import Layers, TooFewSamples, centred, require_samples, warn_undefined
from layersim.similarity.hsic import centred_kernel, hsic_without_groups
from layersim.similarity.intervals import (
    GROUPS,
    Interval,
    interval_of_replicates,
    jackknife_of_sums,
    leaving_out,
    sums_by_group,
)
from layersim.similarity.kept_samples import Samples, joined
from layersim.similarity.layer_pairs import LayerPairs, permuted_products, relation_cosines
from layersim.similarity.linear_cka import (
    LEAST,
    Estimator,
    bordered,
    check_estimator,
    hsic_of_groups,
    linear_cka,
    ratio,
    roots,
)
from layersim.similarity.measure import Measure
from layersim.similarity.null import Null, require_permutations, shuffled
from layersim.similarity.positions import dealt, require_distinct
from layersim.similarity.properties import Properties


def _pairs(estimator: Estimator, batch_size: int = LEAST["minibatch"]) -> LayerPairs[Tensor]:
    """The measure of all samples at once by its definition, for its null."""

    def look(layer: Tensor) -> Tensor | None:
        gram = _centred_gram(layer, estimator)
        return gram if gram.any() else None

    return LayerPairs(f'linear CKA with estimator="{estimator}"', LEAST[estimator], look, relation_cosines)


def _centred_gram(layer: Tensor, estimator: Estimator) -> Tensor:
    """(N, N) float64 of (N, D) features."""
    rows = centred(layer.double(), dim=0)
    return centred_kernel(rows @ rows.mT, unbiased=estimator != "biased")


class LinearCKA(Measure):
    """`linear_cka` over batches and processes: the same value whatever the loader's batch size, the order or the split.

    "minibatch": the groups are made of positions in the data set, group = position // `batch_size`, not of the loader's
    batches. An update of whole groups is used at once; other samples wait until their group is complete, at the latest
    for `compute`, where those of all processes meet. So processes that take contiguous shares of the data keep almost
    nothing, and processes that take turns keep everything.

    "debiased", "biased": the features are kept, `max_samples` of them at most: those whose position has the smallest
    hash, so that the choice depends on the data alone.

    A null of "minibatch" permutes within each group of positions, as samples come: `expect_null` before the first
    update says how often.
    """

    function = staticmethod(linear_cka)
    keeps_by = 'call expect_null before the first update, or choose LinearCKA(estimator="debiased", max_samples=4096)'
    pairs = staticmethod(_pairs)
    label = "linear CKA"
    value_range = (-1, 1)

    used: list[Tensor]
    """(n,) int64 tensors on the host: the numbers of the groups in the sums."""
    nulls: list[Tensor]
    """At most one (1 + P, L, M) float64 tensor: HSIC summed over the groups, with the samples of each in P orders."""

    def __init__(
        self, *, estimator: Estimator = "minibatch", batch_size: int = 64, max_samples: int | None = None
    ) -> None:
        """See `linear_cka`. Raises UserError for an unknown estimator, `batch_size` < 4, `max_samples` below what the
        estimator needs, or `max_samples` with "minibatch"."""
        check_estimator(estimator, batch_size)
        if max_samples is not None and estimator == "minibatch":
            raise UserError(
                f'max_samples: estimator="minibatch" streams and keeps no samples to cap, got {max_samples}: leave it '
                'out, or choose estimator="debiased"'
            )
        self.estimator: Estimator = estimator
        self.arguments = {"estimator": estimator} | ({"batch_size": batch_size} if estimator == "minibatch" else {})
        super().__init__(max_samples=max_samples)
        self.add_state("used", [], dist_reduce_fx="cat")
        self.add_state("nulls", [], dist_reduce_fx="sum")
        self.batch_size = self.group = batch_size
        self.value_range = (0 if estimator == "biased" else -1, 1)

    @property
    def keeps_sample(self) -> bool:
        return self.estimator != "minibatch"

    @property
    def properties(self) -> Properties:
        return Properties(orthogonal="own", translation="own", permutation=self.estimator != "minibatch")

    def update(self, features: Layers, index: Tensor | None = None, *, other: Layers | None = None) -> None:
        batch = self.admitted(features, index, other)
        if self.estimator != "minibatch":
            self.keep(batch)
        elif self._holds_whole_groups(batch.index):
            self._use(batch)
        else:
            self.keep(batch)
            self._use_complete()

    def compute(self) -> Tensor:
        if self.estimator != "minibatch":
            return super().compute()
        sums, _ = self._sums()
        return warn_undefined(ratio(sums.sum(0)))

    def interval_of_state(self, confidence: float) -> Interval:
        """From the sums over groups of consecutive positions, each of which counts as one sample; or, with another
        estimator, from sums over pairs of the kept samples, without measuring again without each group."""
        if self.estimator == "minibatch":
            unit = f"batches of {self.batch_size} positions"
            return jackknife_of_sums(lambda total, _: ratio(total), *self._sums(), confidence, unit)
        check_share("a confidence", confidence)
        kept = self.kept()
        value = linear_cka(kept.features, kept.other, estimator=self.estimator)
        group, order = dealt(kept.index, GROUPS).sort(stable=True)
        sizes = torch.unique_consecutive(group, return_counts=True)[1]
        with leaving_out(int(sizes.max()), len(group)):
            left = len(group) - int(sizes.max())
            require_samples(left, LEAST[self.estimator], f'linear CKA with estimator="{self.estimator}"')
        sets = [layers[:, order.to(layers.device)] for layers in (kept.features, kept.other) if layers is not None]
        layers = [layer for layers in sets for layer in layers]
        hsics = hsic_without_groups(layers, sizes.tolist(), unbiased=self.estimator != "biased")
        without = [ratio(bordered(rest, len(sets[0]), len(sets[-1]))) for rest in hsics]
        return interval_of_replicates(value, without, sizes, confidence, "samples")

    def require_null(self, permutations: int, seed: int, *, announced: bool = False) -> None:
        if self.estimator == "minibatch" and (announced or self.expected == (permutations, seed)):
            require_permutations(permutations)
        else:
            super().require_null(permutations, seed)

    def null_of_state(self, permutations: int, seed: int) -> Null:
        if self.estimator != "minibatch":
            return super().null_of_state(permutations, seed)
        sums, counts = self._sums()
        require_permutations(permutations, min(self.count(), self.batch_size), int(counts.sum()))
        whole = sums.sum(0)
        total = torch.stack([*self.nulls, *self._permuted(self.kept())]).sum(0)
        return self.null_of(total / roots(whole), seed, alone=bool(whole[-1, -1] == 0))

    def _sums(self) -> tuple[Tensor, Tensor]:
        """HSIC of all samples, complete groups or not, summed and counted in each jackknife group."""
        measure = f'linear CKA with estimator="{self.estimator}"'
        require_samples(self.count(), LEAST[self.estimator], measure)
        parts = [self.added()] if len(self.sums) else []
        kept = self.kept()
        used = joined(self.used).long()
        # a group in the sums had all its positions: one of them that still came, came twice
        again = kept.index[torch.isin(kept.index // self.batch_size, used)]
        require_distinct(torch.cat([used * self.batch_size, again, again]).sort().values)
        if len(kept.index):
            values, numbers = self._measured(kept)
            parts += [sums_by_group(values, numbers)] if len(numbers) else []
        if not parts:
            raise TooFewSamples(
                f"{measure} needs a group of {self.batch_size} consecutive positions with at least 4 samples, got "
                "none: give each sample its position in the data set as index, or raise batch_size"
            )
        sums, counts = zip(*parts, strict=True)
        return torch.stack(sums).sum(0), torch.stack(counts).sum(0)

    def _measured(self, batch: Samples) -> tuple[Tensor, Tensor]:
        """HSIC (n, L + 1, M + 1) in each of n groups of the batch's ascending positions, and the groups' numbers."""
        numbers, sizes = torch.unique_consecutive(batch.index // self.batch_size, return_counts=True)
        values = list(hsic_of_groups(batch.features, batch.other, sizes.tolist(), self.estimator))
        enough = numbers[sizes >= LEAST[self.estimator]]
        return torch.stack(values) if values else torch.empty(0), enough

    def _permuted(self, batch: Samples) -> Iterator[Tensor]:
        """Of each group of the batch's ascending positions, (1 + P, L, M) HSIC with its samples in each order; nothing
        where no null was asked for."""
        if self.expected is None or not len(batch.index):
            return
        sizes = torch.unique_consecutive(batch.index // self.batch_size, return_counts=True)[1].tolist()
        sets = [torch.split(x, sizes, dim=1) for x in (batch.features, batch.other) if x is not None]
        for index, *group in zip(torch.split(batch.index, sizes), *sets, strict=True):
            if (samples := len(index)) >= LEAST["minibatch"]:
                with full_precision(group[0].device), torch.no_grad():
                    grams = [[_centred_gram(layer, self.estimator) for layer in layers] for layers in group]
                    orders = shuffled(index, *self.expected).to(group[0].device)
                    products = permuted_products(grams[0], grams[-1], orders)
                yield products / (samples * (samples - 3))

    def _holds_whole_groups(self, index: Tensor) -> bool:
        """Whether (n,) positions are whole groups and nothing else, in order; asked of the host, so no GPU waits."""
        if not len(index) or len(index) % self.batch_size or int(index[0]) % self.batch_size:
            return False
        return torch.equal(index, torch.arange(len(index)) + index[0])

    def _use_complete(self) -> None:
        """Uses the complete groups once they are half of what waits, so that copying stays linear."""
        index = joined(self.index)
        _, group, sizes = torch.unique(index // self.batch_size, return_inverse=True, return_counts=True)
        complete = (sizes >= self.batch_size)[group]
        if 2 * int(complete.sum()) < len(index) or not complete.any():
            return
        self._use(self.kept(complete))
        self.select((~complete).nonzero().flatten())

    def _use(self, batch: Samples) -> None:
        """Adds whole groups to the sums."""
        values, numbers = self._measured(batch)
        self.add(values, numbers)
        for sums in self._permuted(batch):
            self.nulls[:] = [self.nulls[0].to(sums.device) + sums if self.nulls else sums]
        self.used.append(numbers)
