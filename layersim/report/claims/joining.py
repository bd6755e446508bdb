"""Runs that only evaluated a checkpoint, put together with the run that trained it."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from layersim.report.claims.finished import FinishedRun
from layersim.report.records import LayerRecord

_BY_MEASURE = ("similarity", "options", "similarity_interval")


def join_evaluations(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """The runs, those that trained one of the others' checkpoints with what the others measured besides, and notes.

    What a run recorded itself stays. An evaluation whose accuracies are not those that the training ended with is of
    another state, and passed over.
    """
    trained = {run.directory.resolve(): run for run in runs}
    notes = []
    for run in runs:
        owner = run.checkpoint.parent.parent if run.evaluated and run.checkpoint is not None else None
        if owner is None or owner not in trained or owner == run.directory.resolve():
            continue
        fitted = trained[owner]
        del trained[run.directory.resolve()]
        if not _same_state(fitted.record, run.record):
            notes.append(
                f"{run.directory} is passed over: its accuracies are not those that {fitted.directory} ended with."
            )
            continue
        trained[owner], added = _joined(fitted, run)
        told = f"adds to it: {', '.join(added)}" if added else "adds nothing to it"
        notes.append(f"{run.directory} evaluated a checkpoint of {fitted.directory} and {told}.")
    return list(trained.values()), notes


def _joined(fitted: FinishedRun, other: FinishedRun) -> tuple[FinishedRun, list[str]]:
    """The run with what the other has and it lacks, and the names of that."""
    missing: dict[str, Any] = {
        one.name: getattr(other.record, one.name)
        for one in fields(LayerRecord)
        if one.name not in _BY_MEASURE and getattr(fitted.record, one.name) in (None, {})
    }
    found = {name: value for name, value in missing.items() if value not in (None, {})}
    added = [name.replace("_", " ") for name in found]
    for measure, matrix in other.record.similarity.items():
        mine = measure not in fitted.record.similarity
        alike = fitted.record.options.get(measure) == other.record.options.get(measure)
        interval = measure in other.record.similarity_interval and measure not in fitted.record.similarity_interval
        if mine:
            found.setdefault("similarity", dict(fitted.record.similarity))[measure] = matrix
            found.setdefault("options", dict(fitted.record.options))[measure] = other.record.options.get(measure, {})
            added.append(measure)
        if interval and (mine or alike):
            intervals = found.setdefault("similarity_interval", dict(fitted.record.similarity_interval))
            intervals[measure] = other.record.similarity_interval[measure]
            added.append(f"{measure}'s interval")
    parts = {
        name: getattr(other, name)
        for name in ("exits", "transfer")
        if getattr(fitted, name) is None and getattr(other, name) is not None
    }
    return replace(fitted, record=replace(fitted.record, **found), **parts), [*added, *parts]


def _same_state(first: LayerRecord, second: LayerRecord) -> bool:
    """Whether two records may be of one model on the same samples: as far as told, they agree but for rounding."""
    if (first.layers, first.samples) != (second.layers, second.samples):
        return False
    pairs = zip(first.accuracy or [], second.accuracy or [], strict=False)
    return all(math.isclose(one, other, abs_tol=1e-3) for one, other in pairs)
