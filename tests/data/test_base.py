"""What every data module shares, on a source whose samples are partly random."""

import inspect
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import nn

import layersim.data
from layersim.data import (
    Digits,
    Docstrings,
    EvaluationSampler,
    Images,
    LanguageModeling,
    Split,
    SplitDataModule,
    StdlibCode,
    Text,
    TrainSampler,
)
from layersim.data.source_data import SourceData
from layersim.data.splits import Sample, evaluation_generator, hold_out
from layersim.errors import UserError
from tests.data import pictures


class Noise(Split):
    def inputs(self, place: int) -> Sample:
        return {"noise": torch.rand(())}


class NoiseData(SplitDataModule):
    loads = 0

    def load(self) -> dict[str, Split]:
        self.loads += 1
        index = np.arange(100, 123)
        return {
            "train": Noise("a", index, index % 4, seed=self.seed),
            "val": Noise("a", index[:7] + 50, None, seed=self.seed),
        }


def read(loader: Any, epoch: int) -> dict[int, float]:
    """What an epoch shows of each sample, by index."""
    loader.sampler.set_epoch(epoch)
    seen: dict[int, float] = {}
    for batch in loader:
        seen |= dict(zip(batch["index"].tolist(), batch["noise"].tolist(), strict=True))
    return seen


def test_random_samples_depend_on_seed_epoch_and_index_alone() -> None:
    def epochs(**options: Any) -> list[dict[int, float]]:
        data = NoiseData(**options)
        data.setup()
        loader = data.train_dataloader()
        return [read(loader, epoch) for epoch in (0, 1)]

    alone = epochs(batch_size=5)
    assert alone == epochs(batch_size=3, num_workers=2)  # the workers live on from epoch to epoch
    assert alone[0].keys() == alone[1].keys() == set(range(100, 123))
    assert len({*alone[0].values(), *alone[1].values()}) == 46
    assert epochs(batch_size=5, seed=1) != alone

    resumed = NoiseData(batch_size=5)
    resumed.setup()
    assert read(resumed.train_dataloader(), 1) == alone[1]


def test_a_runs_seed_draws_training_and_leaves_evaluation_as_it_is() -> None:
    """So runs of several seeds differ in all that training draws, and are measured on the same samples."""

    def seen(seed: int) -> tuple[dict[int, float], dict[int, float]]:
        lightning.seed_everything(seed, verbose=False)
        data = NoiseData(batch_size=5)
        data.setup()
        return read(data.train_dataloader(), 0), read(data.val_dataloader(), 0)

    (train, val), (other_train, other_val) = seen(1), seen(2)
    assert seen(1) == (train, val)
    assert (list(val), val) == (list(other_val), other_val)
    assert list(train) != list(other_train), "the order"
    assert not train.items() & other_train.items(), "augmentation"


def test_reading_leaves_the_models_random_numbers_alone() -> None:
    data = NoiseData()
    data.setup()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(torch.rand(3), expected)


def test_batches_and_loaders() -> None:
    data = NoiseData(batch_size=5, eval_batch_size=4)
    data.setup()
    data.setup("fit")
    assert data.loads == 1
    train, val, predict = data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()
    assert isinstance(train.sampler, TrainSampler)
    assert isinstance(val.sampler, EvaluationSampler)
    first = next(iter(train))
    assert {key: value.dtype for key, value in first.items()} == {
        "noise": torch.float32,
        "label": torch.int64,
        "index": torch.int64,
        "position": torch.int64,
    }
    assert torch.equal(first["label"], first["index"] % 4)
    order = (150 + evaluation_generator(0).permutation(7)).tolist()
    assert [batch["index"].tolist() for batch in val] == [order[:4], order[4:]]
    assert [batch["position"].tolist() for batch in val] == [[0, 1, 2, 3], [4, 5, 6]]
    assert all("label" not in batch for batch in val)
    assert [batch["index"].tolist() for batch in predict] == [batch["index"].tolist() for batch in val]
    assert data.num_classes == 4
    assert data.class_names is None
    assert NoiseData(batch_size=5).eval_batch_size == 5
    assert train.pin_memory == torch.cuda.is_available()


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own use of torch's pytree
@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # on purpose: 23 samples
def test_lightning_keeps_the_samplers() -> None:
    """Trained and validated by a trainer, the module sees the samples that the samplers name, epoch by epoch."""

    class Listener(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = SimpleNamespace(num_classes=4, input_size=None)
            self.weight = nn.Parameter(torch.zeros(()))
            self.seen: list[tuple[str, list[int]]] = []

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            self.seen.append(("train", batch["index"].tolist()))
            return self.weight * batch["noise"].mean()

        def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
            self.seen.append(("val", batch["index"].tolist()))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    class Adapted(NoiseData):
        adapted: Any = None

        def adapt(self, backbone: Any) -> None:
            self.adapted = backbone

    data, module = Adapted(batch_size=10), Listener()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    assert data.adapted is module.backbone
    expected = []
    for epoch in range(2):
        order = np.random.default_rng([0, epoch]).permutation(23) + 100
        expected += [("train", part.tolist()) for part in np.split(order, [10, 20])]
        expected.append(("val", (150 + evaluation_generator(0).permutation(7)).tolist()))
    assert module.seen == expected


def test_held_out_samples_are_stratified_and_disjoint() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 21]).astype(np.int64)
    kept, held = hold_out(labels, 20, seed=0, remedy="--x")
    assert sorted([*kept, *held]) == list(range(101))
    assert np.abs(np.bincount(labels[held]) - 20 * np.bincount(labels) / 101).max() < 1
    assert np.array_equal(held, hold_out(labels, 20, seed=0, remedy="--x")[1])
    assert not np.array_equal(held, hold_out(labels, 20, seed=1, remedy="--x")[1])
    with pytest.raises(UserError, match=r"cannot hold out 2 of 101 samples .* Change --x"):
        hold_out(labels, 2, seed=0, remedy="--x")


def test_preflight_refuses_labels_that_the_backbone_does_not_know() -> None:
    message = r"in 0\.\.2, as the backbone has 3 classes, but the train data has 3, and the data has 4 classes: set "
    with pytest.raises(UserError, match=message + r"--model\.backbone\.init_args\.num_classes 4"):
        NoiseData().check(SimpleNamespace(num_classes=3, input_size=None))
    data = NoiseData()
    data.check(SimpleNamespace(num_classes=4, input_size=None))
    labels = data.splits["train"].labels
    assert labels is not None
    labels[3] = -1
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.3, but the train data has -1"):
        data.check(SimpleNamespace(num_classes=4, input_size=None))


@pytest.mark.parametrize(
    "labels", [[0.2, 0.9, 1.9, 0.5], [0, 1, np.nan, 0], ["0", "1", "0", "1"], [0, 1], np.zeros((4, 2), np.int64)]
)
def test_labels_that_are_not_one_whole_number_a_sample_are_refused(labels: Any) -> None:
    with pytest.raises(UserError, match=r"^Expected a whole number as label for each of 4 samples of a\.$"):
        Noise("a", np.arange(4), np.array(labels), seed=0)


def test_preflight_refuses_an_empty_split() -> None:
    data = NoiseData()
    data.setup()
    data.splits["val"] = Noise("a", np.arange(0), None, seed=0)
    with pytest.raises(UserError, match=r"the val data is empty: change --data\.val_split"):
        data.check(SimpleNamespace(num_classes=4, input_size=None))


LINES = "".join(f'{{"text": "text {number}", "label": {number % 2}}}\n' for number in range(20))
OPTIONS: dict[type[SplitDataModule], dict[str, Any]] = {
    Digits: {"resize": True},
    Docstrings: {"packages": ["numpy", "torch"], "per_package": 20, "tokenizer": "bytes"},
    Images: {},
    LanguageModeling: {"tokenizer": "bytes"},
    StdlibCode: {"max_files": 20},
    Text: {"tokenizer": "bytes"},
    NoiseData: {},
}
"""Of every data module of the package, and of one of a user's."""


def made(kind: Any, folder: Path, **options: Any) -> Any:
    """Data of that kind, which read a file in the folder where they read any, ready for a backbone of images."""
    (folder / "a.jsonl").write_text(LINES)
    path = pictures.parquet(folder, [0, 1] * 10) if kind is Images else str(folder / "a.jsonl")
    data = kind(*[path] * issubclass(kind, SourceData), **OPTIONS[kind], **options)
    data.setup()
    data.adapt(pictures.BACKBONE)
    return data


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_split_goes_to_a_worker_that_is_no_fork(kind: Any, tmp_path: Path) -> None:
    """Workers are spawned on macOS, and forked by a server on Linux from Python 3.14: both get it pickled."""
    data = made(kind, tmp_path)
    pickle.dumps(data.train_dataloader().collate_fn)
    for split in data.splits.values():
        torch.testing.assert_close(pickle.loads(pickle.dumps(split))[0], split[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if issubclass(kind, SourceData)])
def test_every_stream_goes_there(kind: Any, tmp_path: Path) -> None:
    data = made(kind, tmp_path, streaming=True, val_split="train")
    pickle.dumps(data.train_dataloader().collate_fn)
    torch.testing.assert_close([*pickle.loads(pickle.dumps(data.stream))], [*data.stream], rtol=0, atol=0)


@pytest.mark.parametrize("kind", OPTIONS)
def test_only_what_may_draw_pays_for_a_generator_of_its_own(kind: Any, tmp_path: Path) -> None:
    split = made(kind, tmp_path).splits["train"]
    state = torch.get_rng_state()
    split.inputs(0)
    assert split.random is (kind in (Images, NoiseData)) is not torch.equal(torch.get_rng_state(), state)


def test_every_data_module_of_the_package_is_among_those() -> None:
    public = (getattr(layersim.data, name) for name in layersim.data.__all__)
    assert {each for each in public if inspect.isclass(each) and issubclass(each, SplitDataModule)} == {
        SplitDataModule,
        *OPTIONS,
    } - {NoiseData}


@pytest.mark.parametrize("kind", [Images, Text])
def test_data_without_labels_tell_no_classes(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    path = pictures.parquet(tmp_path, [0, 1]) if kind is Images else str(tmp_path / "a.jsonl")
    data = kind(path, label_column=None, val_split="train")
    data.setup()
    with pytest.raises(UserError, match=r"data without labels do not tell their classes: set --data\.label_column"):
        _ = data.num_classes


def test_missing_test_data_names_the_option() -> None:
    data = NoiseData()
    data.setup()
    with pytest.raises(UserError, match=r"there is no test data: set --data\.test_split"):
        data.test_dataloader()


def test_classes_are_unknown_before_setup() -> None:
    with pytest.raises(UserError, match=r"call setup\(\) first"):
        _ = NoiseData().num_classes


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("eval_batch_size", -1), ("num_workers", -1)])
def test_options_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"^{option} must be at least [01], got {value}: change --data\.{option}$"):
        NoiseData(**{option: value})
    with pytest.raises(UserError, match=r"got -1\. Change --data\.seed\.$"):
        NoiseData(seed=-1)


def test_a_limit_that_a_data_module_does_not_heed_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"NoiseData reads all of its 7 val samples: leave --data\.max_eval_samples out"
    ):
        NoiseData(max_eval_samples=6).setup()
    data = NoiseData(max_train_samples=23, max_eval_samples=7)
    data.setup()
    assert [len(split) for split in data.splits.values()] == [23, 7]
