"""What breaks off, or has no labels, is no part of what the Trainer does next."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from callbacks import LayerMeasuresCallback, SimilarityHeatmaps
from layersim.errors import UserError
from layersim.report.records import read_records
from layersim.similarity import RSA
from tests.callbacks.test_layer_measures_callback import InOrder, lines, model_of, rows, trainer, transformers


class Stops(transformers.TrainerCallback):  # type: ignore[misc]
    """Ends the first evaluation at its second batch, as Ctrl-C does."""

    steps = 0

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps == 2:
            raise KeyboardInterrupt


def raises(at: int) -> Any:
    """A `compute_metrics` that cannot, when it is called for that time."""
    told: list[Any] = []

    def metrics(found: Any) -> dict[str, float]:
        told.append(found)
        if len(told) == at:
            raise ZeroDivisionError
        return {}

    return metrics


def test_a_training_that_breaks_off_is_not_part_of_the_next(tmp_path: Path) -> None:
    data = rows("BERT", samples=16)
    run = trainer(model_of("BERT").model, tmp_path, LayerMeasuresCallback(measures="cosine"), train=data, test=data)
    run.compute_metrics = raises(at=2)
    with pytest.raises(ZeroDivisionError):
        run.train()
    run.train()
    (again,) = (path.parent for path in tmp_path.glob("*/layers.jsonl"))
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [2]
    assert [json.loads(line)["step"] for line in lines(again)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("error", "workers"),
    [(KeyboardInterrupt, 0), (ZeroDivisionError, 0), (KeyboardInterrupt, 1), (ZeroDivisionError, 1)],
)
def test_an_evaluation_that_breaks_off_is_not_part_of_the_next(
    error: type[BaseException], workers: int, tmp_path: Path
) -> None:
    """RSA of 16 of the samples, which their positions choose. Workers that stay are of one loader for all."""
    others: list[Any] = [Stops()] if error is KeyboardInterrupt else []
    options = {"dataloader_persistent_workers": workers > 0, "dataloader_num_workers": workers}
    measures: list[Any] = ["accuracy", SimilarityHeatmaps({"rsa": RSA(max_samples=16)})]
    data, model = rows("BERT", samples=20), model_of("BERT").model
    run = trainer(model, tmp_path / "again", LayerMeasuresCallback(measures=measures), *others, test=data, **options)
    run.compute_metrics = None if others else raises(at=1)
    with pytest.raises(error):
        run.evaluate()
    run.evaluate()
    fresh: list[Any] = ["accuracy", SimilarityHeatmaps({"rsa": RSA(max_samples=16)})]
    trainer(model, tmp_path / "once", LayerMeasuresCallback(measures=fresh), test=data).evaluate()
    assert lines(tmp_path / "again") == lines(tmp_path / "once")


def test_a_loader_that_accelerate_did_not_prepare_is_one_evaluation(tmp_path: Path) -> None:
    """While the training's loader stands at its end."""

    class Plain(InOrder):
        def get_eval_dataloader(self, *args: Any) -> Any:
            return DataLoader(self.eval_dataset, 8, collate_fn=self.data_collator)

    told = trainer(model_of("BERT").model, tmp_path, train=rows("BERT", samples=16), test=rows("BERT", samples=20))
    callbacks = [LayerMeasuresCallback(measures="accuracy")]
    data = {"train_dataset": told.train_dataset, "eval_dataset": told.eval_dataset}
    run = Plain(told.model, told.args, callbacks=callbacks, **data)
    run.train()
    run.evaluate()
    assert {each.samples for path in tmp_path.rglob("layers.jsonl") for each in read_records(path)} == {20}


def test_an_evaluation_without_labels_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    run = trainer(model_of("BERT").model, tmp_path, LayerMeasuresCallback(measures="accuracy"))
    for _ in range(2):
        with pytest.raises(UserError, match="and no labels in evaluation"):
            run.evaluate(rows("BERT", labels=False, samples=8))
    run.evaluate(rows("BERT", samples=20))
    assert [each.samples for each in read_records(tmp_path / "layers.jsonl")] == [20]
