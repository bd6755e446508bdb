"""The layer features of a LightningModule that is not ours, batch by batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from layersim.errors import UserError
from layersim.outputs import LayerFeatures
from layersim.tapping.feature_tap import FeatureTap
from layersim.tapping.layout import batch_sizes, tokens_first
from layersim.tapping.output_pooling import Pool


class TappedModule:
    """Taps a LightningModule while its step runs, over one epoch.

    Args:
        module: any.
        layers: its submodules, as `FeatureTap` takes them.
        pool: as `FeatureTap` takes it.
        layout: as `FeatureTap` takes it.

    Raises:
        UserError: as `FeatureTap`.
    """

    def __init__(
        self, module: LightningModule, layers: str | Sequence[str], pool: Pool, layout: str | None = None
    ) -> None:
        self.module = module
        self.pool = pool
        self.layout = layout
        self.tap = FeatureTap(module, layers, pool, layout=layout)
        self._samples = 0

    def read(self, batch: Any) -> LayerFeatures:
        """What the layers put out since the tap was opened. Closes it, as later callbacks may run the model too.

        Raises:
            UserError: as `FeatureTap.take`; no layout was told, and the step ran on another number of samples than the
                batch has, such as each video's frames.
        """
        self.tap.close()
        features = self.tap.take()
        samples = features.shape[1]
        sizes = batch_sizes(batch, either=tokens_first(self.module))
        if self.layout is None and sizes.first and samples not in sizes.first:
            raise UserError(
                f"The step puts {samples} samples through {self.tap.names[0]} for {sizes} samples. If each is a "
                'sample, set layout, such as "NTD"; or pool frames or crops of one sample by a function given as pool.'
            )
        self._samples += samples
        position = _position(batch, samples)
        if position is None and self.module.trainer.world_size > 1:
            rank_zero_warn(
                'The batches have no "position", one integer a sample: each process numbers its own, minibatch CKA '
                "groups each process's samples, and samples that a sampler repeats count twice."
            )
        return LayerFeatures(features, position=position)

    def options(self) -> dict[str, Any]:
        """Which features were measured: the layers' names, first layer first, and the pool's."""
        pool = self.pool if isinstance(self.pool, str) else getattr(self.pool, "__name__", type(self.pool).__name__)
        told = {} if self.layout is None else {"layout": self.layout}
        return {"layers": self.tap.names, "pool": pool, **told}

    def shape(self) -> tuple[int, int]:
        """L, and N of all processes; to be called on each."""
        samples = torch.tensor(self._samples, device=self.module.device)
        return len(self.tap.names), int(self.module.trainer.strategy.reduce(samples, reduce_op="sum"))


def _position(batch: Any, samples: int) -> Tensor | None:
    """(N,) positions among the data that are read, where the batch has them."""
    position = batch.get("position") if isinstance(batch, Mapping) else None
    usable = isinstance(position, Tensor) and position.shape == (samples,) and not position.is_floating_point()
    return position if usable else None
