"""Reports of one JSON object in a run's directory, a key a line."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from layersim.errors import UserError
from layersim.report.reading import DamagedFile, read_json, read_text
from layersim.writing import written_whole

MOST_BYTES = 2**24
"""Of a report; those of two models of hundreds of layers have some hundred thousand."""

Report = TypeVar("Report")


def write_report(path: Path, values: Mapping[str, Any]) -> Path:
    """Writes the values, none of them NaN, and gives the path."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in values.items())
    with written_whole(path) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return path


def read_report(path: Path, kind: type[Report], verb: str, *, or_nan: Collection[str] = ()) -> Report | None:
    """The report in a file, None where there is none; a key that this version does not know is passed over.

    Args:
        path: of the file.
        kind: the report's dataclass, whose fields are the keys.
        verb: of the command that writes it.
        or_nan: keys that are NaN where the file has null.

    Raises:
        DamagedFile: the file cannot be read, is no JSON object, a key is missing, or a value does not fit.
    """
    if not path.exists():
        return None
    try:
        read = read_json(read_text(path, MOST_BYTES))
        keys = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        if absent := [key for key in keys if key not in read]:
            raise UserError(f"the file: {', '.join(absent)} absent.")
        return kind(**{key: math.nan if key in or_nan and read[key] is None else read[key] for key in keys})
    except UserError as error:
        raise DamagedFile(f"{path} is damaged; run `layersim {verb}` again. {error}") from error
