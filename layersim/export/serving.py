"""What goes along with an exported model for whoever serves it: names, preprocessing, a tokenizer, exits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Serving:
    """What goes along with an exported model for whoever serves it."""

    class_names: Sequence[str] | None = None
    """The classes in the order of their numbers."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Of images: what is told otherwise than by the backbone's `data_config`."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `layersim.json`."""
    write: Callable[[Path], None] = lambda folder: None
    """Writes further files, such as a tokenizer's, beside the model."""
    usage: Callable[[Iterable[str]], str] = lambda names: ""
    """Lines of Python that make the inputs of these names, as NumPy arrays, for the README."""

    @property
    def entries(self) -> dict[str, Any]:
        """What `layersim.json` gets of it."""
        return {**self.record, **({"classes": list(self.class_names)} if self.class_names else {})}


NOTHING = Serving()
