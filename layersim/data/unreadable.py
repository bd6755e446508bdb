"""Where files cannot be read: of what libraries say, little names the file, and less the line."""

import json
from collections.abc import Sequence
from pathlib import Path

from pyarrow import parquet

from layersim.errors import reason

_TEXTS = (".txt", ".csv", ".tsv", ".json", ".jsonl")


def first_fault(files: Sequence[str]) -> str | None:
    """The first of the files' faults that tells more than a reader's own words, in one line; None: nothing was found.

    Looked for are files without content, bytes that are no UTF-8, lines that are no JSON, and broken parquet files.
    """
    paths = [path for path in map(Path, files) if path.is_file()]
    for path in paths:
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
    return _broken_line(path, suffix) if suffix in _TEXTS else None


def _broken_line(path: Path, suffix: str) -> str | None:
    lines = []
    with path.open("rb") as file:
        for number, read in enumerate(file, start=1):
            try:
                lines.append(read.decode())
            except UnicodeDecodeError as error:
                return f", line {number}: invalid byte 0x{read[error.start]:02x}, expected UTF-8"
    if not suffix.startswith(".json"):
        return None
    try:
        json.loads("".join(lines))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            return f", line {error.lineno}: {error.msg}"
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line.strip() or "0")
        except json.JSONDecodeError as error:
            return f", line {number}: {error.msg}"
    return None
