"""What the model says of every sample at every layer, as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pyarrow import parquet
from torch import Tensor

from callbacks.evaluation import check_one_loader
from callbacks.loggers import make_directory
from layersim.errors import UserError
from layersim.evaluation import everywhere
from layersim.outputs import LayerOutput
from layersim.writing import written_whole

PREDICTIONS_FILE = "predictions.parquet"


class PredictionWriter(Callback):
    """Writes `predictions.parquet` when predictions are made: one row a sample, in the order of the data.

    Columns: `index` (position in the data set), `target` (null where there is no label), `prediction` and `confidence`
    (lists of L, first layer first).
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, list[Any]]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        make_directory(trainer)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_one_loader(trainer.num_predict_batches)
        self._batches = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **more: Any
    ) -> None:
        if not isinstance(outputs, LayerOutput) or not isinstance(batch, Mapping) or "index" not in batch:
            raise UserError(
                "PredictionWriter writes what a LayerwiseModule predicts of batches with an index, but got "
                f"{type(outputs).__name__} of a batch that is a {type(batch).__name__}. Leave it out of the callbacks."
            )
        self._batches.append(_columns(outputs, batch["index"], batch.get("label")))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = everywhere(self._batches)
        if trainer.is_global_zero:
            tables = [pa.table(batch, schema=_SCHEMA) for batch in batches]
            path = Path(trainer.default_root_dir) / PREDICTIONS_FILE
            with written_whole(path) as part:
                parquet.write_table(pa.concat_tables(tables).sort_by("index"), part)
            print(f"Predictions: {path}")


_SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "target": pa.int64(),
        "prediction": pa.list_(pa.int64()),
        "confidence": pa.list_(pa.float32()),
    }
)


def _columns(output: LayerOutput, index: Tensor, labels: Tensor | None) -> dict[str, list[Any]]:
    samples = output.features.values.shape[1]
    if samples != len(index):
        raise UserError(
            f"predict writes a row for each sample, but the model reads {samples} tokens in {len(index)} samples. "
            "It serves classifiers; use validate to measure a language model."
        )
    targets = [-1] * samples if labels is None else labels.tolist()
    return {
        "index": index.tolist(),
        "target": [None if target < 0 else target for target in targets],
        "prediction": output.readout.predictions.T.tolist(),
        "confidence": output.readout.confidences.T.to(torch.float32).tolist(),
    }
