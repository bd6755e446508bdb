"""Reports of one JSON object in a run's directory, a key a line."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from layersim.errors import UserError


def write_report(path: Path, values: Mapping[str, Any]) -> Path:
    """Writes the values, none of them NaN, and gives the path."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in values.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return path


def read_report(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The values of these keys; a key that this version does not know is passed over.

    Raises:
        UserError: the file is no JSON object, or a key is missing.
        OSError, ValueError: it cannot be read, or is no JSON.
    """
    read = json.loads(path.read_text())
    if not isinstance(read, Mapping):
        raise UserError(f"the file: expected a JSON object, got {read!r}.")
    keys = list(keys)
    if absent := [key for key in keys if key not in read]:
        raise UserError(f"the file: {', '.join(absent)} absent.")
    return {key: read[key] for key in keys}
