"""What cannot be read: samples, found by reading each once and left out; and files, of which libraries tell little."""

import codecs
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, config
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from pyarrow import parquet
from rich.progress import track
from torch.utils.data import DataLoader

from layersim.data.splits import Integers
from layersim.errors import UserError, reason
from layersim.writing import written_whole

OnBadSample = Literal["error", "skip"]
Faults = dict[int, str]
"""Of rows that cannot be read, by their number: why."""

SKIP = "or set --data.on_bad_sample=skip"
NO_TEXT = "no text"
MARKED = "layersim_marked"
"""The name, for `open(errors=…)`, of what puts a mark where a file's bytes are no UTF-8."""
_MARK = "\ufdd0"  # a noncharacter, which Unicode keeps out of texts for good
_NAMED = 3  # of many faults
_TEXTS = (".txt", ".csv", ".tsv", ".json", ".jsonl")
_CHUNK = 256  # images that one loader worker reads at a time

codecs.register_error(MARKED, lambda error: (_MARK, error.end if isinstance(error, UnicodeDecodeError) else 0))


def text_faults(texts: pa.ChunkedArray) -> Faults:
    """The rows of a column of strings (N,) that are null, no UTF-8, or hold NUL, as a file of another encoding does."""
    raw = texts.cast(pa.large_binary())
    suspect = pc.fill_null(pc.or_(*(pc.match_substring(raw, bytes_) for bytes_ in (_MARK.encode(), b"\0"))), True)
    try:
        texts.validate(full=True)
        rows = np.flatnonzero(suspect.to_numpy())
    except pa.ArrowInvalid:
        rows = np.arange(len(raw))
    return {int(row): fault for row in rows if (fault := _text_fault(raw[int(row)].as_py()))}


def _text_fault(raw: bytes | None) -> str:
    if raw is None:
        return NO_TEXT
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return f"invalid byte 0x{raw[error.start]:02x}, expected UTF-8"
    return "bytes that are no UTF-8" if _MARK in text else "the byte NUL" if "\0" in text else ""


def cell_faults(rows: Dataset, check: Callable[[Any], object], rule: str, *, num_workers: int, told: str) -> Faults:
    """The rows (N,) of a data set of one column whose cell `check`, which depends on a `rule` in words, refuses with a
    UserError. All are read once, which is kept in the cache of `datasets`: not again by other processes and later runs.
    """
    key = hashlib.sha256(f"{rows._fingerprint} {rule}".encode()).hexdigest()[:32]
    kept = Path(config.HF_DATASETS_CACHE) / "layersim" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not there, or spoilt
        return {int(row): fault for row, fault in json.loads(kept.read_text(encoding="utf-8")).items()}
    checked = partial(_faults, check=check)
    loader: DataLoader[str] = DataLoader(rows, batch_size=_CHUNK, num_workers=num_workers, collate_fn=checked)
    silent = bool(rank_zero_only.rank)  # type: ignore[attr-defined]
    found = track(loader, f"reading {told}", transient=True, disable=silent or len(rows) <= _CHUNK)
    every = [fault for chunk in found for fault in chunk]
    faults = {row: fault for row, fault in enumerate(every) if fault}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs another reading
        kept.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(kept) as part:
            part.write_text(json.dumps(faults), encoding="utf-8")
    return faults


def _faults(rows: list[dict[str, Any]], check: Callable[[Any], object]) -> list[str]:
    """What is wrong with each row's only cell; empty where nothing is."""
    found = []
    for row in rows:
        try:
            check(*row.values())
            found.append("")
        except UserError as error:
            found.append(str(error).rstrip("."))
    return found


def left_over(total: int, faults: Faults, split: str, offset: int, *, told: bool) -> Integers:
    """The rows of a split that can be read, ascending, at least one; those that cannot are told, the first with their
    fault, unless that was `told` already."""
    named = [f"row {row + offset}: {faults[row]}" for row in sorted(faults)[:_NAMED]]
    if others := len(faults) - len(named):
        named.append(f"and {others} more")
    if len(faults) == total:
        raise UserError(f"no row of split {split} can be read ({'; '.join(named)}): change --data.path")
    if faults and not told:
        rank_zero_info(
            f"Left out, as they cannot be read: {len(faults)} of {total} rows in {split} ({'; '.join(named)})."
        )
    return np.setdiff1d(np.arange(total), np.fromiter(faults, np.int64))


def first_fault(files: Sequence[str]) -> str | None:
    """The first of the files' faults that tells more than a reader's own words, in one line; None: nothing was found.

    Looked for are files without content, bytes that are no UTF-8, lines that are no JSON, and broken parquet files.
    """
    paths = [Path(file) for file in files if os.path.isfile(file)]
    for path in paths:
        with contextlib.suppress(OSError):  # as of one that may not be read: the reader's own words tell that
            if found := _fault(path):
                return f"{path}{found}"
    # a txt file without content is an error only where there is no other
    return f"{paths[0]} is empty" if paths and not any(path.stat().st_size for path in paths) else None


def _fault(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        return None if suffix == ".txt" else " is empty"
    if suffix == ".parquet":
        try:
            parquet.read_schema(path)
        except Exception as error:
            return f": {reason(error)}"
    if path.name == "state.json" and b'"_data_files": []' in path.read_bytes():  # of a data set saved to disk
        return ": the data set has no rows"
    return _broken_line(path, suffix) if suffix in _TEXTS else None


def _broken_line(path: Path, suffix: str) -> str | None:
    lines = []
    with path.open("rb") as file:
        for number, read in enumerate(file, start=1):
            try:
                lines.append(read.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                return f", line {number}: invalid byte 0x{error.object[error.start]:02x}, expected UTF-8"
    if not suffix.startswith(".json"):
        return None
    try:
        json.loads(whole := "".join(lines))
        return None
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" or "\n" in whole[: error.pos].strip():  # what comes first is no line
            return f", line {error.lineno}: {error.msg}"
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line.strip() or "0")
        except json.JSONDecodeError as error:
            return f", line {number}: {error.msg}"
    return None
