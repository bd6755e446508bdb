"""What is written of every sample, with and without its label."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from callbacks import PredictionWriter
from tests import tiny


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        ({"label": torch.tensor([3, 1, 2])}, [1, 3, 2]),
        ({"label": torch.tensor([3, -1, 2])}, [None, 3, 2]),
        ({}, [None, None, None]),
    ],
)
def test_a_target_that_is_hidden_is_null(labels: dict[str, Any], targets: list[int | None], tmp_path: Path) -> None:
    module, writer = tiny.module().eval(), PredictionWriter()
    batch = {"image": torch.randn(3, 1, 8, 8), "index": torch.tensor([5, 2, 7]), "position": torch.arange(3), **labels}
    trainer: Any = SimpleNamespace(world_size=1, is_global_zero=True, default_root_dir=tmp_path)
    with torch.no_grad():
        writer.on_predict_batch_end(trainer, module, module.predict_step(batch, 0), batch, 0)
    writer.on_predict_epoch_end(trainer, module)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert table["index"] == [2, 5, 7]
    assert table["target"] == targets
    assert [len(row) for row in table["prediction"]] == [3, 3, 3]
