"""The shape of the cloud that a layer's features are: its ranks, directions and lengths. Letters: L layers, N samples,
D width, G jackknife groups."""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from layersim.errors import check_choice, check_share
from layersim.metrics.calibration import REACH
from layersim.outputs import LayerFeatures
from layersim.similarity.features import Layers, as_features, centred, require_samples
from layersim.similarity.intervals import jackknife_of_sums, sums_by_group
from layersim.similarity.kept_samples import KeepOn, SampleKeeper, Samples
from layersim.similarity.positions import as_positions

CONFIDENCE = 0.95
SampleCentering = Literal["none", "samples"]


def effective_rank(features: Layers, *, centering: SampleCentering = "none", index: Tensor | None = None) -> Tensor:
    """How many directions a layer's features spread over: RankMe, exp of the entropy of σ ÷ Σ σ over the singular
    values σ of the (N, D) features, 1 … min(N, D) (Garrido et al. 2023, arXiv 2210.02885, eq. 4, less its ε).

    It grows with N up to where N is many times D: compare it at equal N.

    Args:
        features: (L, N, D).
        centering: "none", as the paper has it, where the mean counts as a direction; "samples" takes the mean off.
        index: (N,) positions of the samples; 0 … N − 1 where None.

    Returns:
        (3, L) float64: the value, and the ends of its 95 % interval by the jackknife, with singular values along the
        directions of all samples. NaN of a layer that is zero, constant where it is centred, or not finite.

    Raises:
        UserError: samples in fewer than 2 groups.
    """
    check_choice("centering", centering, SampleCentering)
    features = as_features(features)
    index = as_positions(index, features.shape[1])
    sums, counts = zip(*(sums_by_group(_energies(layer.double(), centering), index) for layer in features), strict=True)
    return _jackknife(lambda total, _: _entropy_rank(total), torch.stack(sums, dim=1), counts[0])[..., 0]


def _energies(values: Tensor, centering: str) -> Tensor:
    """(N, min(N, D)) squared components of the samples along the singular directions: each column sums to its σ²."""
    values = centred(values, 0) if centering == "samples" else values
    if values.shape[1] > len(values):  # the same products of samples, in N dimensions
        values = torch.linalg.qr(values.mT, mode="r").R.mT
    if not values.isfinite().all():
        return values * torch.nan
    axes: Tensor = torch.linalg.eigh(values.mT @ values).eigenvectors
    return (values @ axes).square()


def _entropy_rank(energies: Tensor) -> Tensor:
    """(L, K) σ² → (L, 1)."""
    sizes = energies.sqrt()
    shares = sizes / sizes.sum(dim=1, keepdim=True)
    return torch.xlogy(shares, shares).sum(dim=1, keepdim=True).neg().exp()


def intrinsic_dimension(features: Layers, *, discard: float = 0.1) -> tuple[Tensor, Tensor]:
    """How many coordinates tell a layer's features apart locally: TwoNN (Facco et al. 2017, doi 10.1038/s41598-017-
    11873-y), from the ratio μ of each sample's distances to its second and its first neighbour.

    μ follows a Pareto law, whose exponent is the dimension: here its maximum likelihood, m ÷ Σ min(ln μ, ln μ(m)), with
    the `discard`ed share of largest ratios, which noise and outliers move most, known to be larger than the m-th alone.
    Too low where dimensions are many for so few samples (15 of 20 at N 100). Samples equal to another have no ratio and
    count once, as in the literature.

    Args:
        features: (L, N, D).
        discard: 0 … 1, the paper's 0.1.

    Returns:
        (3, L) float64: the value and the ends of its 95 % interval, which knows that neighbours' ratios depend on each
        other; NaN of a layer of fewer than 3 different samples, of samples all equally far apart, or not finite. And
        (L,) integers: how many samples were left out, as equal to another.
    """
    check_share("discard", discard, zero=True)
    features = as_features(features)
    found, different = [], []
    for layer in features:
        points = centred(torch.unique(layer, dim=0).double(), 0)
        different.append(len(points))
        usable = len(points) > 2 and bool(points.isfinite().all())
        found.append(_two_neighbours(points, discard) if usable else points.new_full((3,), torch.nan))
    return torch.stack(found, dim=1), features.shape[1] - torch.tensor(different)


def _two_neighbours(points: Tensor, discard: float) -> Tensor:
    """(3,) of (n, D) different points."""
    near = torch.cdist(points, points).fill_diagonal_(torch.inf).topk(min(4, len(points) - 1), largest=False).indices
    # anew, as the table's come of differences of squares
    exact = torch.linalg.vector_norm(points[near] - points[:, None], dim=-1)
    distances, order = exact.sort(dim=1)
    ratios = (distances[:, 1] / distances[:, 0]).log()
    kept = len(points) - int(discard * len(points))
    last = ratios.sort().values[kept - 1]
    total = ratios.clamp(max=last).sum()
    dimension = kept / total.masked_fill(total == 0, torch.nan)
    scores = (ratios <= last) / dimension - ratios.clamp(max=last)
    linked = torch.eye(len(points), dtype=torch.bool, device=points.device)
    linked.scatter_(1, near.gather(1, order[:, :2]), True)
    variance = torch.maximum(scores @ ((linked | linked.T).double() @ scores), scores @ scores)  # never below alone
    half = REACH * dimension.square() / kept * variance.sqrt()
    return torch.stack([dimension, dimension - half, dimension + half])


def directions(values: Tensor) -> Tensor:
    """(N, D) features → (N, D + 2) float64, whose sums give `spread`: the direction of each, its length, and 1."""
    values = values.double()
    norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return torch.cat([values / norms, norms, torch.ones_like(norms)], dim=1)


def spread(sums: Tensor) -> Tensor:
    """(L, D + 2) sums of `directions` → (L, 2) mean cosine of two different samples, and mean norm.

    The cosine is (‖Σ u‖² − N) ÷ N (N − 1) of the N directions u: 0 where they point anywhere, 1 where all are the same
    (Ethayarajh 2019, arXiv 1909.00512, "anisotropy"). NaN with a sample of length zero.
    """
    samples, total = sums[:, -1], sums[:, :-2]
    cosine = (total.square().sum(dim=1) - samples) / (samples * (samples - 1))
    return torch.stack([cosine, sums[:, -2] / samples], dim=1)


def _jackknife(estimate: Callable[[Tensor, Tensor], Tensor], sums: Tensor, counts: Tensor) -> Tensor:
    """(3, L, M) value, low and high."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of NaN: one warning is for all
        found = jackknife_of_sums(estimate, sums, counts, CONFIDENCE, "samples")
    return torch.stack([found.value, found.low, found.high])


class LayerGeometry(SampleKeeper):
    """Each layer's geometry over batches and processes: of all samples `mean_cosine` and `norm` (see `spread`), and of
    `max_samples` of them at most `effective_rank` and `intrinsic_dimension`.

    `compute` gives (3, L) float64 of each, the value and the ends of its 95 % interval, and (L,) `duplicates` that the
    dimension left out. Where a layer has no value it is NaN, and one UserWarning says so.
    """

    directions: list[Tensor]
    """At most one (G, L, D + 2) float64 tensor: sums of `directions`."""

    def __init__(
        self,
        *,
        max_samples: int | None = 2048,
        centering: SampleCentering = "none",
        keep_on: KeepOn = "device",
    ) -> None:
        super().__init__(max_samples=max_samples, least=3, keep_on=keep_on)
        check_choice("centering", centering, SampleCentering)
        self.centering = centering
        self.add_state("directions", [], dist_reduce_fx="sum")

    def update(self, batch: LayerFeatures) -> None:
        values = batch.values.detach()
        index = self.numbered(batch.position, values)
        self.keep(Samples(values, None, index))
        addend = torch.stack([sums_by_group(directions(layer), index)[0] for layer in values], dim=1)
        self.directions[:] = [addend + self.directions[0]] if self.directions else [addend]

    def compute(self) -> dict[str, Tensor]:
        require_samples(self.count(), 2, "layer geometry")
        sums = self.directions[0]
        kept = self.kept()
        cosine, norm = _jackknife(lambda total, _: spread(total), sums, sums[:, 0, -1].cpu()).unbind(-1)
        dimension, duplicates = intrinsic_dimension(kept.features)
        rank = effective_rank(kept.features, centering=self.centering, index=kept.index)
        found = {"effective_rank": rank, "intrinsic_dimension": dimension, "mean_cosine": cosine, "norm": norm}
        missing = {name: (values[0].isnan().nonzero().flatten() + 1).tolist() for name, values in found.items()}
        told = [f"{name} at layer {', '.join(map(str, layers))}" for name, layers in missing.items() if layers]
        if told:
            why = "(layers count from 1): features there are zero, not finite, or fewer than three differ"
            warnings.warn(f"geometry is NaN for {', '.join(told)} {why}", UserWarning, stacklevel=2)
        return found | {"duplicates": duplicates}
