"""The loader of training and evaluation."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from layersim.data.splits import Sample


class Loader(DataLoader[Sample]):
    """A loader that begins an epoch with its first batch: Lightning asks for the iterator before it tells a resumed
    training's epoch, and workers that read ahead would read another one's order.

    To Lightning it is one that can go on within an epoch. It keeps no state for that: `TrainSampler` and
    `StreamLoader` ask the trainer.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...
