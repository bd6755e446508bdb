"""Numbers that are not finite are named by layer, batch and sample; 16-bit overflows are skipped and counted."""

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from layersim.data import Digits
from layersim.errors import UserError
from layersim.objectives import Objective
from layersim.objectives.reading import Reading
from layersim.outputs import LayerFeatures
from layersim.runs.finite import Finiteness, broken, first_broken
from tests import tiny

SAMPLE = 700
"""The index of the sample that makes trouble."""


class Troubled(Digits):
    """The digits, of which one has infinite pixels, or very bright ones."""

    pixel = torch.inf

    def load(self) -> Any:
        splits = super().load()
        for split in splits.values():
            split.images[split.index == SAMPLE] *= self.pixel  # type: ignore[attr-defined]
        return splits


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, max_epochs=1, **(quiet | {"enable_checkpointing": False} | options))


def where(data: Digits, role: str) -> int:
    """Which batch has the sample, in the first epoch."""
    fresh = Digits(seed=data.seed, batch_size=data.batch_size)
    fresh.setup()
    loader = fresh.train_dataloader() if role == "train" else fresh.val_dataloader()
    return next(number for number, batch in enumerate(loader) if SAMPLE in batch["index"])


def seed_with(role: str) -> int:
    """Of a split of the digits that has the sample in this role."""
    for seed in range(20):
        data = Digits(seed=seed)
        data.setup()
        if SAMPLE in data.splits[role].index:
            return seed
    raise AssertionError


class Breaks(nn.Module):
    """A block whose output is not finite for bright samples; or whose gradient is not."""

    def __init__(self, block: nn.Module, how: Any) -> None:
        super().__init__()
        self.block = block
        self.how = how

    def forward(self, tokens: Tensor, **options: Any) -> Tensor:
        out: Tensor = self.how(self.block(tokens, **options), tokens)
        return out


def bright(tokens: Tensor) -> Tensor:
    return (tokens.abs().amax(dim=(1, 2), keepdim=True) > 1e3).float()


def nan_where_bright(out: Tensor, tokens: Tensor) -> Tensor:
    return out / (1 - bright(tokens))


class NoGradient(torch.autograd.Function):
    """The same forwards; backwards NaN where the sample is bright."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask > 0, torch.nan, gradients[0]), None


def module_that(how: Any) -> Any:
    module = tiny.module(optimizer=partial(torch.optim.SGD, lr=1e-3))
    blocks = module.backbone.model.blocks
    blocks[1] = Breaks(blocks[1], how)
    return module


def fails(module: Any, data: Digits, folder: Path) -> str:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        trainer(folder, limit_val_batches=0).fit(module, data)
    steps = int(re.search(r"step (\d+);", str(caught.value))[1])  # type: ignore[index]
    if steps == 0:
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(value.isfinite().all() for value in module.state_dict().values()), "no weight has taken it up"
    return str(caught.value)


def test_inputs_are_named(tmp_path: Path) -> None:
    data = Troubled(seed=seed_with("train"))
    told = fails(tiny.module(), data, tmp_path)
    assert f"First not finite: its image, of sample {SAMPLE} (batch {where(data, 'train')})." in told


def test_features_are_named(tmp_path: Path) -> None:
    data = Troubled(seed=seed_with("train"))
    data.pixel = 1e6
    told = fails(module_that(nan_where_bright), data, tmp_path)
    assert f"First not finite: features of layer 2, of sample {SAMPLE} (batch {where(data, 'train')})." in told


def test_gradients_are_named_before_the_weights_take_them_up(tmp_path: Path) -> None:
    data = Troubled(seed=seed_with("train"))
    data.pixel = 1e6
    told = fails(module_that(lambda out, tokens: NoGradient.apply(out, bright(tokens))), data, tmp_path)
    assert told.startswith("The loss is finite, but not its gradient, in epoch 0, step ")
    where_ = f"of sample {SAMPLE} (batch {where(data, 'train')})."
    assert re.search(rf"not finite: the gradient of backbone\.model\.\S+( \(layer 1\))?, {re.escape(where_)}", told)


def test_gradients_whose_squares_overflow_are_taken(tmp_path: Path) -> None:
    class Steep(Objective):
        def forward(self, read: Reading) -> Tensor:
            return read.losses.mean() * 1e25

    module = tiny.module(objective=Steep(), optimizer=partial(torch.optim.SGD, lr=1e-28))
    trainer(tmp_path, limit_val_batches=0, limit_train_batches=2).fit(module, tiny.digits())
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_loss_that_the_objective_alone_breaks(tmp_path: Path) -> None:
    class Broken(Objective):
        def forward(self, read: Reading) -> Tensor:
            return read.losses.mean() * torch.inf

    told = fails(tiny.module(objective=Broken()), tiny.digits(), tmp_path)
    assert "The loss is inf in epoch 0, step 0; " in told
    assert "First not finite: Broken (batch 0)." in told


def test_a_loss_at_a_layer_is_named() -> None:
    module = tiny.module()
    values = torch.zeros(3, 4, 16)
    targets = torch.tensor([0, 1, 2, 3])

    class Head:
        def losses(self, features: Tensor, targets: Tensor, layers: list[int]) -> Tensor:
            return torch.where((targets == 2) & (torch.tensor(layers) == 1), torch.inf, 1.0)

    found = first_broken({"index": torch.tensor([7, 8, 9, 10])}, LayerFeatures(values, targets), [0, 1, 2], Head())  # type: ignore[arg-type]
    assert found == "the loss at layer 2, of sample 9"
    finite = first_broken({"index": torch.arange(4)}, LayerFeatures(values, targets), [0, 1, 2], module.head)
    assert finite == ""


def test_a_token_is_named_by_its_sample() -> None:
    values = torch.zeros(2, 5, 4)
    values[1, 3, 0] = torch.nan
    position = torch.tensor([3, 3, 3, 9, 9]) * 2**20 + torch.tensor([0, 1, 2, 0, 1])
    batch = {"index": torch.tensor([40, 41]), "position": torch.tensor([3, 9]), "input_ids": torch.zeros(2, 4).long()}
    found = first_broken(batch, LayerFeatures(values, position=position), [0, 1], tiny.module().head)
    assert found == "features of layer 2, of sample 41, token 0"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_vectors(value: float) -> None:
    features = torch.randn(2, 3, 5).half() * 1e3
    features[1, 2, 4] = value
    assert broken(features).tolist() == [[False] * 3, [False, False, True]]
    both = torch.tensor([torch.inf, -torch.inf, 1.0]).view(1, 1, 3)
    assert broken(both).item()


def test_validation_names_layer_and_sample(tmp_path: Path) -> None:
    data = Troubled(seed=seed_with("val"), batch_size=64)
    data.pixel = 1e6
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer(tmp_path).validate(module_that(nan_where_bright), data, verbose=False)
        trainer(tmp_path).validate(tiny.module(), data, verbose=False)
    told = [str(warning.message) for warning in warned if "features are not" in str(warning.message)]
    assert told == [
        f"features are not finite first at layer 2, sample {SAMPLE} (batch {where(data, 'val')}); 1 in all are so in "
        "this process. What is measured of their layers is NaN."
    ]


def test_an_evaluation_that_broke_off_is_not_told_by_the_next() -> None:
    finite = Finiteness()
    whole = LayerFeatures(torch.zeros(2, 4, 3), torch.zeros(4), torch.arange(4))
    broken_one = LayerFeatures(torch.full((2, 4, 3), torch.nan), torch.zeros(4), torch.arange(4))
    for number, features in enumerate((whole, broken_one, whole)):
        finite.watch(number, {}, features)  # and no end of it
    finite.watch(0, {}, whole)
    finite.tell_broken()
    finite.watch(0, {}, broken_one)
    with pytest.warns(UserWarning, match=r"not finite first at layer 1, .*\(batch 0\); 4 in all"):
        finite.tell_broken()


def test_overflows_of_sixteen_bits_are_skipped_and_counted(tmp_path: Path) -> None:
    """On the host, with a scale under which the first gradients overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**25, growth_interval=1000)  # type: ignore[attr-defined]
    module = tiny.module(optimizer=partial(torch.optim.SGD, lr=1e-3))
    fitted = trainer(
        tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], limit_val_batches=0, limit_train_batches=12
    )
    fitted.fit(module, tiny.digits(batch_size=8))
    halvings = 25 - torch.tensor(scaler.get_scale()).log2().item()
    assert halvings >= 1, "the control: something did overflow"
    assert fitted.callback_metrics["train/overflows"] == halvings
    assert all(value.isfinite().all() for value in module.state_dict().values())
