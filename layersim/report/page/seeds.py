"""Runs that differ in their seed alone, put together: the mean at each layer and its 95 % interval.

Letters: R runs, L layers.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]

from layersim.report.configuration import flat, seed_of
from layersim.report.quantity import curves
from layersim.report.records import LayerRecord

CONFIDENCE = 0.95

_SEED_IN_NAME = re.compile(r"[-_./]?seed[-_=]?\d+", re.IGNORECASE)
_SAYS_NOTHING = {"experiment", "seed_everything", "data.init_args.seed", "ckpt_path", "trainer.default_root_dir"}
"""Keys of a configuration in which runs of one group may differ: names, places, and what draws weights and split."""


def mean_interval(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean over runs, (L,), and half the width of its 95 % interval, (L,), of (R, L) values.

    Student's t interval: mean ± t(0.975, R − 1) s / √R, with s² the unbiased variance over the runs. It takes runs as
    independent and normal. One run has no interval: NaN.
    """
    numbers = np.asarray(values, dtype=np.float64)
    runs, layers = numbers.shape
    mean = numbers.mean(axis=0)
    if runs == 1:
        return mean, np.full(layers, math.nan)
    quantile = float(stdtrit(runs - 1, (1 + CONFIDENCE) / 2))
    return mean, quantile * numbers.std(axis=0, ddof=1) / math.sqrt(runs)


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, and of one depth: what is put together."""

    name: str
    """The experiment, less its seed."""
    layers: int
    members: list[int]
    """The runs' places in the list that was grouped."""


def group_runs(names: Sequence[str], records: Sequence[LayerRecord]) -> list[Group]:
    """Runs whose experiments have one name apart from a seed (`digits/aligned-seed3`), in order of appearance.

    Models of different depths share no layers, so the same experiment with another L is a group of its own.
    """
    members: dict[tuple[str, int], list[int]] = {}
    for place, (name, record) in enumerate(zip(names, records, strict=True)):
        members.setdefault((_SEED_IN_NAME.sub("", name) or name, record.layers), []).append(place)
    counted = [name for name, _ in members]
    return [
        Group(name if counted.count(name) == 1 else f"{name} ({layers} layers)", layers, places)
        for (name, layers), places in members.items()
    ]


def shared_quantities(records: Sequence[LayerRecord]) -> dict[str, NDArray[np.float64]]:
    """All of which every record has one number a layer, by name, each as (R, L)."""
    each = [curves(record.quantities) for record in records]
    return {
        name: np.asarray([one[name].values for one in each]) for name in each[0] if all(name in one for one in each)
    }


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What else than the seed differs between the configurations of runs that are put together, and a seed that two
    runs share: reasons why the interval is not one over seeds. Empty where there are none."""
    settings = [flat(config) for config in configs]
    keys = sorted({key for config in settings for key in config} - _SAYS_NOTHING)
    told = [key for key in keys if len({repr(config.get(key)) for config in settings}) > 1]
    reasons = [f"their configurations differ in {', '.join(told)}"] if told else []
    seeds = [seed for config in configs if (seed := seed_of(config))]
    if shared := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        reasons.append(f"more than one has the seed {', '.join(shared)}")
    return reasons
