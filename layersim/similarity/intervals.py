"""How far a measure would move on other samples: intervals by the delete-a-group jackknife.
Letters: L and M layers, N samples, D and D' width, G groups, n units."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from layersim.errors import UserError, check_share
from layersim.similarity.features import Layers, TooFewSamples, as_pair, require_whole, warn_undefined
from layersim.similarity.positions import as_positions, dealt

GROUPS = 20  # twice as many would make an interval three hundredths narrower, and cost twice as much


@dataclass(frozen=True)
class Interval:
    """A measure's (L, M) values, and where those of the population may be: float64 throughout."""

    value: Tensor
    """(L, M) of all samples."""
    standard_error: Tensor
    """(L, M) how far the values of other samples as many would scatter."""
    low: Tensor
    """(L, M) value − t · standard error."""
    high: Tensor
    """(L, M) value + t · standard error."""
    confidence: float
    """The share of such intervals that hold the population's value, above 0 and below 1."""


def jackknife(
    measure: Callable[..., Tensor],
    features: Layers,
    other: Layers | None = None,
    *,
    groups: int = GROUPS,
    confidence: float = 0.95,
    index: Tensor | None = None,
) -> Interval:
    """The interval of any measure: value ± t · standard error, from the measure without each group of samples in turn.

    The delete-a-group jackknife (Quenouille 1949; Tukey 1958; Shao and Wu 1989), with weights for groups that differ in
    size (Busing, Meijer and van der Leeden 1999, delete-m_j), and Student's t with a degree of freedom less than there
    are groups. Which group a sample is in depends on the hash of its position alone. No bootstrap: that draws samples
    twice, and of two equal samples each is the other's nearest neighbour, and an unbiased HSIC is biased.

    The interval is about the value as it is: what the jackknife estimates of its bias is not taken off, so that a
    measure that depends on N (biased CKA, CCA, neighbours) has the interval of what it measures at this N. It is not
    cut at the ends of the measure's range. Samples count as independent: those that are not, as the tokens of one
    text, have intervals that are too narrow. They are too wide, by up to twice, where two layers have nothing in
    common (all but cosine, angular distance, minibatch CKA and RSA), and for SVCCA and nearest neighbours throughout.

    Args:
        measure: (L, N, D), or that and (M, N, D'), → (L, M), as all measures here; bind their options with `partial`.
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.
        groups: G, 2 or more; the cost is that of the measure G + 1 times.
        confidence: above 0, below 1.
        index: (N,) positions of the samples in the data set; where None, 0 … N − 1.

    Raises:
        UserError: a confidence out of bounds, fewer than 2 groups or with samples in fewer, what the measure raises of
            all samples, or of those without one group.
    """
    check_share("a confidence", confidence)
    require_whole("groups", groups, 2)
    features, other = as_pair(features, other)
    sets = [features] if other is None else [features, other]
    value = measure(*sets)
    group = dealt(as_positions(index, features.shape[1]), groups)
    present, sizes = torch.unique(group, return_counts=True)
    without = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "similarity is NaN")  # said once, of the value
        for number, size in zip(present, sizes.tolist(), strict=True):
            rest = (group != number).nonzero().flatten().to(features.device)
            with leaving_out(size, len(group)):
                without.append(measure(*(x[:, rest] for x in sets)))
    return interval_of_replicates(value, without, sizes, confidence, "samples")


def jackknife_of_sums(
    estimate: Callable[[Tensor, Tensor], Tensor], sums: Tensor, counts: Tensor, confidence: float, unit: str
) -> Interval:
    """`jackknife` of a measure that is a function of sums over units, and their () number → (L, M): at the cost of the
    (G, …) float64 `sums` and (G,) `counts` in each group. `unit` is what errors call many units.

    Raises:
        UserError: a confidence out of bounds, or units in fewer than 2 groups.
    """
    check_share("a confidence", confidence)
    value = warn_undefined(estimate(sums.sum(0), counts.sum()))
    sums, sizes = sums[counts > 0], counts[counts > 0]
    others = 1 - torch.eye(len(sizes), dtype=sums.dtype, device=sums.device)  # a difference would not be exactly zero
    rests = torch.tensordot(others, sums, dims=1)
    without = [estimate(rest, count) for rest, count in zip(rests, sizes.sum() - sizes, strict=True)]
    return interval_of_replicates(value, without, sizes, confidence, unit)


def sums_by_group(values: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """(n, …) values of n units with their (n,) numbers on the host → (G, …) sums, and (G,) counts on the host."""
    group = dealt(units, GROUPS)
    sums = values.new_zeros(GROUPS, *values.shape[1:]).index_add_(0, group.to(values.device, non_blocking=True), values)
    return sums, torch.bincount(group, minlength=GROUPS)


def interval_of_replicates(
    value: Tensor, without: Sequence[Tensor], sizes: Tensor, confidence: float, unit: str
) -> Interval:
    """From (L, M) values of all units, and without each of J groups of (J,) `sizes`: Busing et al. 1999.

    `unit` is what errors call many units. Raises UserError for fewer than 2 groups.
    """
    if len(sizes) < 2:
        raise TooFewSamples(
            f"interval: expected {unit} in at least 2 groups, got {int(sizes.sum())} {unit} in {len(sizes)}: use more "
            "data, or ask for no interval"
        )
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # intervals alone need more than torch

    shares = (sizes.double() / sizes.sum()).to(value).view(-1, 1, 1)
    pseudo = value + (1 / shares - 1) * (value - torch.stack(list(without)))
    variance = ((pseudo - (shares * pseudo).sum(0)).square() * (shares / (1 - shares))).mean(0)
    error = variance.sqrt()
    if unknown := int((error.isnan() & ~value.isnan()).sum()):
        warnings.warn(
            f"the interval is NaN for {unknown} pairs of layers that have a value, but none without some group of "
            f"{unit}: use more data",
            UserWarning,
            stacklevel=3,
        )
    reach = float(stdtrit(len(sizes) - 1, (1 + confidence) / 2)) * error
    return Interval(value, error, value - reach, value + reach, confidence)


@contextmanager
def leaving_out(size: int, samples: int) -> Iterator[None]:
    """Within, a TooFewSamples says that the samples are too few because some are left out."""
    try:
        yield
    except UserError as error:
        raise TooFewSamples(
            f"interval: {size} of the {samples} samples are left out at a time, and then {error}"
        ) from error
