"""What is written of every sample, with and without its label."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LambdaCallback
from torch.utils.data import DataLoader

from callbacks import PredictionWriter
from layersim.errors import UserError
from tests import tiny
from tests.callbacks.test_monitors import trainer


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


def test_its_folder_is_there_before_anything_is_predicted(tmp_path: Path) -> None:
    folder, found = tmp_path / "new" / "run", []
    look = LambdaCallback(on_predict_start=lambda *_: found.append(folder.is_dir()))
    data = tiny.digits()
    data.setup("validate")
    run = trainer(folder, [PredictionWriter(), look], limit_predict_batches=1)
    run.predict(tiny.module(), data.val_dataloader())
    assert found == [True]
    assert pq.read_table(folder / "predictions.parquet").num_rows == data.val_dataloader().batch_size


class Outside(LightningModule):
    """Predicts what no LayerwiseModule does."""

    def predict_step(self, batch: Any, number: int) -> Any:
        return torch.zeros(2)


@pytest.mark.parametrize(
    ("module", "batch", "message"),
    [
        (Outside(), {"index": torch.arange(2)}, "but got Tensor of a batch that is a dict"),
        (Outside(), [torch.zeros(2, 4)], "but got Tensor of a batch that is a list"),
        (tiny.module(), {"image": torch.zeros(2, 1, 8, 8)}, "but got LayerOutput of a batch that is a dict"),
    ],
)
def test_what_is_no_prediction_of_layers_is_refused(module: Any, batch: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as told:
        trainer(tmp_path, [PredictionWriter()]).predict(module, DataLoader([batch], batch_size=None))  # type: ignore
    assert "\n" not in str(told.value)
    assert not [*tmp_path.iterdir()]
