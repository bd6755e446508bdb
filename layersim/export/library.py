"""What differs between the libraries that models come from. Letters: N samples, C classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class Library(ABC):
    """Builds, runs, saves and loads a backbone's model with the library's own means."""

    name: str
    """The package that is imported to load an export."""
    usage: str
    """Lines of Python that load an export from the folder they run in, for its README."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The backbone's model, whole."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Its blocks."""

    @abstractmethod
    def untrained(self, kept: Sequence[int], *, tied: bool) -> nn.Module:
        """A model of the same kind with the `kept` layers alone, its weights not yet set.

        Args:
            kept: ascending layer numbers 0 … L − 1.
            tied: whether its classifier may be its embedding, where it was.

        Raises:
            UserError: the library cannot express it.
        """

    def sources(self, kept: Sequence[int]) -> list[int]:
        """For each block of `untrained(kept)`, the number of the block whose weights it takes."""
        return list(kept)

    @abstractmethod
    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the model's own forward takes of a batch."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """(N, C) logits of the model's own forward, of the samples that layersim reads."""

    @abstractmethod
    def probe(self) -> dict[str, Tensor]:
        """A small batch on the model's device, to compare models by."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, class_names: Sequence[str] | None) -> None:
        """Writes a model of `untrained`, with weights, as the library does."""

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """Reads back what `save` wrote, as `usage` does."""
