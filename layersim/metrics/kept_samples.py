"""A sample of the features with their classes, the same however the data is batched and split. Letters: L layers,
N samples, D width."""

from torch import Tensor

from layersim.outputs import LayerFeatures
from layersim.similarity.keeping import SampleKeeper


class KeptSamples(SampleKeeper):
    """Keeps `max_samples` samples at most, those whose position has the smallest hash: the very ones that a similarity
    of the same `max_samples` keeps.

    Without positions samples are numbered as they come, each process from a start of its own.
    """

    def __init__(self, *, max_samples: int | None, least: int = 1) -> None:
        """`least`: how many samples whoever measures them needs.

        Raises:
            UserError: `max_samples` below `least`.
        """
        super().__init__(max_samples=max_samples, least=least)

    def update(self, batch: LayerFeatures) -> None:
        """Takes samples, with targets in every update or in none."""
        index = self.numbered(batch.values.shape[1], batch.position)
        self.keep_rows(batch.values.detach().transpose(0, 1), batch.targets, index)

    def compute(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """By ascending position, what all processes kept: the (L, N, D) features in the dtype they came in, their (N,)
        targets, None where there are none, and their (N,) positions on the host.

        Raises:
            UserError: a position came twice.
        """
        kept = self.kept_rows()
        return kept.features.transpose(0, 1), kept.others, kept.index
