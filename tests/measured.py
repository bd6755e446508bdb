"""What a run's `layers.jsonl` says, for tests."""

import json
from pathlib import Path
from typing import Any


def measured(directory: Path) -> list[dict[str, Any]]:
    """A dictionary for each line: its head, and the values of each quantity by name; null is None."""
    lines = [json.loads(line) for line in (directory / "layers.jsonl").read_text().splitlines()]
    return [line | {name: one["values"] for name, one in line["quantities"].items()} for line in lines]
