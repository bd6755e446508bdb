"""The module: the loss it trains on, what it computes, precision, accumulation, compilation, and what stops it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from layersim.backbones import TimmBackbone
from layersim.errors import UserError
from layersim.heads import SeparateHeads, SharedHead
from layersim.objectives import (
    Aligned,
    Alternating,
    CosineRegularized,
    LastLayer,
    Objective,
    Reading,
    Step,
    UncertaintyWeighted,
)
from tests import tiny


def trainer(path: Path, **options: Any) -> Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return Trainer(default_root_dir=path, accelerator="cpu", **{**quiet, "max_epochs": 1, **options})


def batch(samples: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(samples, 1, 8, 8, generator=generator),
        "label": torch.randint(0, 10, (samples,), generator=generator),
        "position": torch.arange(samples),
    }


def test_loss_is_the_aligned_loss_of_the_library_models_own_logits() -> None:
    """λ-weighted cross-entropies of the classifier read at every block, all from timm's own modules."""
    module = tiny.module(objective=Aligned("linear"))
    model, data = module.backbone.model, batch()
    expected = torch.zeros(())
    for weight, (_, prefix) in zip(
        [1 / 6, 2 / 6, 3 / 6],
        model.forward_intermediates(data["image"], return_prefix_tokens=True, intermediates_only=True),
        strict=True,
    ):
        expected = expected + weight * nn.functional.cross_entropy(model.head(model.norm(prefix[:, 0])), data["label"])
    output = module(data)
    torch.testing.assert_close(output.loss, expected)
    assert output.readout.predictions.shape == (3, 6)


def test_prediction_needs_no_labels() -> None:
    """Hidden ones (−1) are left alone, and what is said of a sample is the same without."""
    module, data = tiny.module(), batch()
    expected = module.validation_step(data, 0).readout
    output = module.predict_step({**data, "label": torch.tensor([3, -1, -1, 0, 9, -1])}, 0)
    assert torch.equal(output.readout.predictions, expected.predictions)
    assert torch.equal(output.readout.confidences, expected.confidences)
    assert output.loss is None


def test_lightnings_trainer_gives_predictions_back(tmp_path: Path) -> None:
    module, data = tiny.module(), batch()
    (output,) = trainer(tmp_path).predict(module, DataLoader([{key: value[0] for key, value in data.items()}]))
    expected = module.eval().predict_step({key: value[:1] for key, value in data.items()}, 0)
    torch.testing.assert_close(output.features.values, expected.features.values)
    assert torch.equal(output.readout.predictions, expected.readout.predictions)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The layers that each training step reads, filled as it goes."""
    readings: list[list[int]] = []
    original = SharedHead.loss

    def loss(self: SharedHead, features: Tensor, targets: Tensor, layers: Any, weights: Any) -> Tensor:
        readings.append(list(layers))
        return original(self, features, targets, layers, weights)

    monkeypatch.setattr(SharedHead, "loss", loss)
    return readings


def test_standard_training_reads_the_last_layer_alone(asked: list[list[int]], tmp_path: Path) -> None:
    trainer(tmp_path, limit_train_batches=2, limit_val_batches=0).fit(tiny.module(objective=LastLayer()), tiny.digits())
    assert asked == [[2], [2]]


def test_alternating_switches_by_optimizer_step_under_accumulation(asked: list[list[int]], tmp_path: Path) -> None:
    trainer(tmp_path, limit_train_batches=8, limit_val_batches=0, accumulate_grad_batches=2).fit(
        tiny.module(objective=Alternating()), tiny.digits()
    )
    assert [len(layers) for layers in asked] == [1, 1, 3, 3, 1, 1, 3, 3]


def test_alternating_by_micro_batch_goes_on_over_epochs(asked: list[list[int]], tmp_path: Path) -> None:
    """As in the paper's GPT-2 code: an optimizer step mixes both losses; an epoch of 3 batches shifts the turn."""
    trainer(tmp_path, limit_train_batches=3, limit_val_batches=0, accumulate_grad_batches=2, max_epochs=2).fit(
        tiny.module(objective=Alternating(counts="micro-batches")), tiny.digits()
    )
    assert [len(layers) for layers in asked] == [1, 3, 1, 3, 1, 3]


def test_training_learns_and_the_control_does_not(tmp_path: Path) -> None:
    def losses(learning_rate: float) -> list[float]:
        torch.manual_seed(0)
        module = tiny.module(optimizer=partial(torch.optim.AdamW, lr=learning_rate))
        data = tiny.digits()
        trainer(tmp_path, max_epochs=5).fit(module, data)
        held_out = next(iter(data.val_dataloader()))
        readout = module(held_out).readout
        return readout.losses.tolist()

    trained, control = losses(3e-3), losses(0.0)
    assert all(after < 0.8 * before for after, before in zip(trained, control, strict=True))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_precisions_agree_with_single_precision(precision: str, tmp_path: Path) -> None:
    if precision == "16-mixed" and not torch.cuda.is_available():
        pytest.skip("16-mixed scales gradients on a GPU")

    def weights(precision: str) -> Tensor:
        module = tiny.module(optimizer=partial(torch.optim.SGD, lr=0.1))
        trainer(tmp_path, precision=precision, limit_train_batches=3, limit_val_batches=1).fit(module, tiny.digits())
        return module.backbone.model.head.weight.detach().double()

    reference = weights("32-true")
    moved = (reference - tiny.module().backbone.model.head.weight.double()).norm()
    difference = (weights(precision) - reference).norm()
    assert difference < (0.1 if "bf16" in precision else 1e-4) * moved


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    def gradient(batch_size: int, accumulate: int) -> Tensor:
        torch.manual_seed(0)
        module = tiny.module(optimizer=partial(torch.optim.SGD, lr=1.0))
        before = module.backbone.model.head.weight.detach().clone()
        data = tiny.digits(batch_size=batch_size)
        trainer(
            tmp_path, max_steps=1, accumulate_grad_batches=accumulate, limit_val_batches=0, num_sanity_val_steps=0
        ).fit(module, data)
        return before - module.backbone.model.head.weight.detach()

    torch.testing.assert_close(gradient(32, 2), gradient(64, 1), rtol=1e-4, atol=1e-6)


def test_compiled_backbone_gives_the_same_numbers() -> None:
    plain, compiled = tiny.module(), tiny.module(compile=True)
    assert plain.state_dict().keys() == compiled.state_dict().keys(), "checkpoints stay exchangeable"
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch()).loss, plain(batch()).loss, rtol=1e-4, atol=1e-5)


def test_compiled_training_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the tracing of torch.compile but without the code generation of its default backend, which takes long."""
    monkeypatch.setattr(TimmBackbone, "compile", lambda self: nn.Module.compile(self, backend="aot_eager"))

    def weights(**options: Any) -> Tensor:
        module = tiny.module(optimizer=partial(torch.optim.SGD, lr=0.1), **options)
        trainer(tmp_path, limit_train_batches=3, limit_val_batches=1).fit(module, tiny.digits())
        return module.backbone.model.head.weight.detach()

    torch.testing.assert_close(weights(compile=True), weights(), rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_no_number_stops_training_before_the_step(tmp_path: Path) -> None:
    class Diverges(Aligned):
        def weights(self, num_layers: int, step: Step | None) -> list[float]:
            worse = float("inf") if step is not None and step.number == 25 else 1.0
            return [weight * worse for weight in super().weights(num_layers, step)]

    module = tiny.module(objective=Diverges())
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    with pytest.raises(UserError, match=r"(inf|nan) in epoch 1, step 25.*last good checkpoint is .*last\.ckpt"):
        trainer(tmp_path, max_epochs=2, callbacks=[keep], limit_val_batches=0, enable_checkpointing=True).fit(
            module, tiny.digits()
        )
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    unsaved = trainer(tmp_path, max_epochs=2)
    with pytest.raises(UserError, match="No checkpoint had been written"):
        unsaved.fit(tiny.module(objective=Diverges()), tiny.digits())


class Reads(Objective):
    """Asks for what it is told to, and gives what it is told to make of it."""

    def __init__(self, asked: list[int], make: Callable[[Reading], Any]) -> None:
        super().__init__()
        self.asked, self.make = asked, make

    def layers(self, num_layers: int, step: Step | None) -> list[int]:
        return self.asked

    def forward(self, read: Reading) -> Tensor:
        return self.make(read)


@pytest.mark.parametrize("asked", [[0, 3], [-1], [1, 0], [1, 1], [], [1.5], None, 2])
def test_layers_that_do_not_exist_are_refused_on_construction(asked: Any) -> None:
    with pytest.raises(UserError, match="Expected some of the layers 0 … 2, ascending, but Reads asks for "):
        tiny.module(objective=Reads(asked, lambda read: read.losses.sum()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda read: read.losses.detach().sum(), r"from Reads, but got one of shape \(\) without a gradient"),
        (
            lambda read: read.losses,
            r"shape \(\) with a gradient from Reads, but got one of shape \(2,\) with a gradient",
        ),
        (lambda read: 1.5, "but got float"),
        (lambda read: read.losses.sum() * torch.nan, "The loss is nan in epoch 0, step 0; training stops before"),
        (lambda read: read.loss([0.5, 0.5]), "Expected 3 layer weights, but the objective gives 2"),
        (lambda read: read.loss([0.1, 0.4, 0.5]), r"weighs layers \[1\], but reads \[0, 2\]. Change its `layers`"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_refused_before_the_step(
    make: Callable[[Reading], Any], message: str, tmp_path: Path
) -> None:
    module = tiny.module(objective=Reads([0, 2], make))
    before = module.backbone.model.head.weight.detach().clone()
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(module, tiny.digits())
    assert torch.equal(module.backbone.model.head.weight, before)


def test_an_objective_in_five_lines_trains_and_is_measured(tmp_path: Path) -> None:
    """The worst of the layers, which no weights known beforehand can tell."""

    class Worst(Objective):
        def forward(self, read: Reading) -> Tensor:
            return read.losses.max()

    torch.manual_seed(0)
    module, data = tiny.module(objective=Worst(), optimizer=partial(torch.optim.AdamW, lr=3e-3)), tiny.digits()
    data.setup("fit")
    held_out = next(iter(data.val_dataloader()))
    before = module(held_out)
    assert before.loss == before.readout.losses.max()
    trainer(tmp_path, max_epochs=5).fit(module, data)
    assert module(held_out).loss < 0.8 * before.loss


def test_learned_weights_are_trained_and_saved(tmp_path: Path) -> None:
    module = tiny.module(objective=UncertaintyWeighted(), optimizer=partial(torch.optim.AdamW, lr=0.01))
    fitted = trainer(tmp_path, max_epochs=2)
    fitted.fit(module, tiny.digits())
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["objective.log_variances"]
    assert (stored > 0.05).all(), "losses of more than half a nat are uncertain"
    again = tiny.module(objective=UncertaintyWeighted())
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again.objective.log_variances, stored)


def test_weights_that_do_not_fit_the_layers_are_refused_on_construction() -> None:
    with pytest.raises(UserError, match=r"Expected 3 layer weights.*got 2"):
        tiny.module(objective=Aligned([0.5, 0.5]))


@pytest.mark.parametrize(
    ("objective", "head", "unused"),
    [
        (LastLayer(), SharedHead, False),
        (Aligned(), SharedHead, False),
        (Aligned([0.5, 0.5, 0.0]), SharedHead, True),
        (Aligned("uniform"), SeparateHeads, False),
        (LastLayer(), SeparateHeads, True),
        (Alternating(), SeparateHeads, True),
        (CosineRegularized(), SeparateHeads, True),
        (UncertaintyWeighted(), SeparateHeads, False),
    ],
)
def test_unused_parameters_are_foreseen(objective: Any, head: Any, unused: bool) -> None:
    module = tiny.module(objective=objective, head=head)
    assert module.has_unused_parameters is unused
    without_gradient = False
    for step in (Step(0), Step(1)):
        module.zero_grad()
        layers = objective.layers(3, step)
        data = batch()
        features = module.backbone(data, layers).values
        objective(Reading(module.head, features, data["label"], layers, 3, step)).backward()
        without_gradient |= any(parameter.grad is None for parameter in module.parameters())
    assert without_gradient is unused, "the same, found by a backward pass"
