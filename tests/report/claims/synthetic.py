"""Synthetic runs whose verdicts are known."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike

from layersim.report.claims import Verdict, judge, read_arms
from layersim.report.lens import lens_quantities, write_lens_record
from layersim.report.records import LayerRecord, append_record
from layersim.report.transfer import TransferReport
from tests.report.recorded import recorded
from tests.report.test_exits import report as exit_report

WAYS: dict[str, dict[str, Any]] = {
    "standard": {"objective": {"class_path": "layersim.objectives.LastLayer"}},
    "aligned": {"objective": {"class_path": "layersim.Aligned", "init_args": {"weights": "linear"}}},
    "separate": {
        "objective": {"class_path": "layersim.Aligned", "init_args": {"weights": "uniform"}},
        "head": {"class_path": "layersim.SeparateHeads", "init_args": {}},
    },
}
LAYERS = np.arange(4)
APART = np.abs(LAYERS[:, None] - LAYERS)
Facts = dict[str, Any]
"""Fields of a record, `exits` (the share of parameters saved); by layer accuracies `shifted`, `probed`, or as a lens
has them, `readable` and `known`."""
Way = Callable[[int], Facts]
"""From the seed."""


def make(
    directory: Path,
    way: str,
    seed: int,
    facts: Facts | None = None,
    *,
    lr: float = 0.1,
    task: str = "classification",
    data_seed: int = 0,
    **trainer: Any,
) -> Path:
    """A finished run of four layers."""
    told = dict(facts or {})
    saved, shifted, probed = (told.pop(key, None) for key in ("exits", "shifted", "probed"))
    lens = {who: told.pop(who) for who in ("readable", "known") if who in told}
    backbone = {"class_path": "layersim.TransformersBackbone", "init_args": {"name_or_path": "tiny", "task": task}}
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 3, **trainer},
        "model": {"backbone": backbone, "optimizer": {"init_args": {"lr": lr}}, **WAYS[way]},
        "data": {"class_path": "layersim.data.Digits", "init_args": {"num_workers": seed, "seed": data_seed}},
        "experiment": way,
        "ckpt_path": told.pop("ckpt_path", None),
    }
    values: Facts = {"epoch": 2, "step": 30, "stage": "validate", "layers": 4, "samples": 1000}
    append_record(directory / "layers.jsonl", recorded(**(values | told)))
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    if saved is not None:
        parameters = {"model": 100, "head": 10, "separate_heads": 130, "share_saved": saved}
        exit_report(parameters=parameters).write(directory)
    if shifted is not None or probed is not None:
        transfer: Facts = {"model": str(directory), "layers": 4, "split": "val", "data": {}, "samples": 1000}
        steps = {} if shifted is None else {"noise": [{"strength": 1.0, "accuracy": shifted}]}
        probe = {"data": {}, "classes": 2, "train_samples": 9, "samples": 500, "penalty": [1.0] * 4, "accuracy": probed}
        report = TransferReport(**transfer, accuracy=shifted, shifts=steps, probe=None if probed is None else probe)
        report.write(directory)
    if lens:
        quantities = lens_quantities(lens, {who: [1.0] * 4 for who in lens}, {})
        where: Facts = {"epoch": 0, "step": 0, "stage": "validate", "layers": 4, "samples": 800}
        write_lens_record(directory, LayerRecord(**where, quantities=quantities))
    return directory


def verdicts(root: Path, ways: dict[str, Way], name: str, seeds: int = 3, **options: Any) -> list[Verdict]:
    """What the claim comes to for runs of these ways, three seeds each."""
    arms = read_arms(
        {
            way: [make(root / f"{way}-{seed}", way, seed, of(seed), **options) for seed in range(seeds)]
            for way, of in ways.items()
        }
    )
    return [verdict for verdict in judge(arms) if verdict.claim.name == name]


def wiggle(values: ArrayLike, size: float = 0.001) -> Callable[[int], list[float]]:
    """The values, each off by at most `size`, differently for each seed."""
    return lambda seed: (np.asarray(values) + size * np.cos(2.1 * seed + np.arange(np.size(values)) ** 2)).tolist()


def field(key: str, values: ArrayLike, size: float = 0.001) -> Way:
    return lambda seed: {key: wiggle(values, size)(seed)}


def cosine(slope: float, size: float = 0.001) -> Way:
    """Falls by `slope` a layer."""
    return lambda seed: {"similarity": {"cosine": (0.2 - APART * (slope + size * (seed - 1))).tolist()}}


def two_measures(follows: float, size: float) -> Way:
    def facts(seed: int) -> Facts:
        noise = np.random.default_rng(seed).normal(size=(4, 4))
        nearness = 1 - 0.2 * APART
        return {
            "similarity": {"cosine": nearness.tolist(), "cka": (0.2 * (follows * nearness + size * noise)).tolist()}
        }

    return facts


def chance(*p: float) -> Way:
    """Family-wise p of the pairs (1, 2), (1, 3) … (3, 4), of cosine and CKA alike."""

    def facts(seed: int) -> Facts:
        family = np.full((4, 4), np.nan)
        family[np.triu_indices(4, 1)] = p
        family = np.where(np.isnan(family), family.T, family)
        null = {"permutations": 199, "p": family.tolist(), "p_family": family.tolist(), "calibrated": APART.tolist()}
        values = (1 - 0.2 * APART).tolist()
        return {"similarity": {"cosine": values, "cka": values}, "nulls": {"cosine": null, "cka": null}}

    return facts


def probability(values: ArrayLike, size: float = 0.001) -> Way:
    return field("target_probability", values, size)


def saturation(*counts: int, moved: int = 1) -> Way:
    """Counts by layer, some of the first layer's moved to the last by the seed."""
    return lambda seed: {"saturation": [counts[0] - moved * seed, *counts[1:3], counts[3] + moved * seed]}


def curve(middle: float) -> Facts:
    return {"threshold": [0.0, 0.5, None], "mean_exit_layer": [1.0, 2.5, 4.0], "accuracy": [0.5, middle, 0.9]}


def exits(middle: float, size: float = 0.001) -> Way:
    def facts(seed: int) -> Facts:
        curve = {"threshold": [0.0, 0.5, None], "mean_exit_layer": [1.0, 2.5, 4.0]}
        return {"exit_curve": curve | {"accuracy": [0.5, middle + size * math.cos(3 * seed), 0.9]}}

    return facts


def fixed(**facts: Any) -> Way:
    return lambda seed: facts


RISES, FALLS, FLAT, HALF = [0.2, 0.5, 0.7, 0.8], [0.2, 0.7, 0.5, 0.8], [0.2, 0.5, 0.5, 0.8], [0.5] * 4
LATE, EARLY, WORSE = [0.1, 0.1, 0.5, 0.97], [0.5, 0.9, 0.96, 0.97], [0.05, 0.1, 0.4, 0.96]
