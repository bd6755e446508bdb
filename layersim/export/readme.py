"""The README of an export."""

from typing import Any


def readme(record: dict[str, Any], usage: str) -> str:
    """What the export is, and the lines that load it."""
    kept, whole = record["layers"], record["of"]
    if len(kept) == whole:
        what = f"all {whole} layers"
    elif kept[-1] == len(kept):
        what = f"the first {len(kept)} of {whole} layers"
    else:
        what = f"{len(kept)} of {whole} layers ({', '.join(map(str, kept))})"
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return (
        f"# {record['model']}, {what}\n\n"
        f"Written by {versions}; needs no layersim. In this folder:\n\n"
        f"```python\n{usage}```\n"
    )
