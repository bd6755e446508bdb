"""Parts that a training leaves as they are: bitwise, in evaluation mode, without a graph, on two processes too."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from layersim.backbones import TimmBackbone
from layersim.errors import UserError
from layersim.heads import LinearProbes, SeparateHeads, SharedHead, TunedLens
from layersim.module import LayerwiseModule
from layersim.objectives import Aligned, KLToLast, UncertaintyWeighted
from layersim.optimization.parameter_groups import ParameterGroups
from tests import tiny
from tests.processes import last_record, run_command

LENS = ["--model.head=TunedLens", "--model.freeze=backbone"]


def module(**options: Any) -> LayerwiseModule:
    """With dropout, and by a fast optimizer."""
    torch.manual_seed(0)
    backbone = TimmBackbone(
        "vit_tiny_patch16_224",
        num_classes=10,
        img_size=8,
        in_chans=1,
        model_args=tiny.ARCHITECTURE | {"proj_drop_rate": 0.2, "drop_path_rate": 0.1},
    )
    torch.nn.init.normal_(backbone.classifier.weight)
    given = {"head": TunedLens, "freeze": "backbone", "optimizer": partial(torch.optim.AdamW, lr=1e-2)}
    return LayerwiseModule(backbone, **given | options)


def trainer(path: Path, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    told = {"enable_checkpointing": False, "limit_val_batches": 1, "max_steps": 4}
    return Trainer(default_root_dir=path, accelerator="cpu", **quiet | told | options)


def state(made: LayerwiseModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in made.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({}, {"head.maps"}),
        ({"head": LinearProbes}, {"head.classifiers"}),
        ({"head": SeparateHeads, "objective": Aligned("uniform")}, {"head.classifiers.0", "head.classifiers.1"}),
        ({"head": SharedHead, "freeze": ["head"]}, {"backbone.model.blocks", "backbone.model.patch_embed"}),
        (
            {"parameter_groups": ParameterGroups(decay_norms_and_biases=False), "objective": UncertaintyWeighted()},
            {"head.maps", "objective.log_variances"},
        ),
    ],
)
def test_what_is_frozen_stays_bitwise(options: dict[str, Any], moves: set[str], tmp_path: Path) -> None:
    made = module(**options)
    before = state(made)
    trainer(tmp_path).fit(made, tiny.digits())
    moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    others = {"backbone.model.pos_embed", "backbone.model.cls_token"} if options.get("freeze") else set[str]()
    assert all(name.startswith(tuple(moves)) for name in moved - others)
    assert all(any(name.startswith(part) for name in moved) for part in moves)
    optimizer = made.configure_optimizers()
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert held == {id(each) for each in made.parameters() if each.requires_grad}, "the optimizer sees what trains"


def test_a_frozen_part_is_in_evaluation_mode_while_the_rest_trains(tmp_path: Path) -> None:
    seen: list[tuple[bool, bool, bool]] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            parts = pl_module.backbone, pl_module.head.final_norm, pl_module.head.maps
            seen.append(tuple(part.training for part in parts))  # type: ignore[arg-type]

    made = module()
    trainer(tmp_path, callbacks=[Look()], val_check_interval=1, max_steps=3).fit(made, tiny.digits())
    assert seen == [(False, False, True)] * 3
    assert not made.eval().head.maps.training
    assert not made.train().backbone.training


def test_a_model_that_was_left_in_evaluation_mode_is_told_unless_that_was_asked_for(tmp_path: Path) -> None:
    """By Lightning itself, whose line is passed over where parts are frozen."""
    with pytest.warns(UserWarning, match=r"Found \d+ module\(s\) in eval mode"):
        trainer(tmp_path).fit(tiny.module().eval(), tiny.digits())


def test_no_graph_is_kept_through_a_frozen_backbone() -> None:
    made = module()
    made.trainer = trainer(Path("."))
    batch = {"image": torch.randn(4, 1, 8, 8), "label": torch.tensor([0, 1, 2, 3])}
    features, loss = made.loss_of(batch, [0, 1, 2], None)  # type: ignore[arg-type]
    assert not features.values.requires_grad
    loss.backward()
    assert {name for name, each in made.named_parameters() if each.grad is not None} == {
        name for name, _ in made.named_parameters() if name.startswith("head.maps")
    }


def test_the_lenss_own_loss_is_the_default() -> None:
    assert isinstance(module().objective, KLToLast)
    assert isinstance(module(head=LinearProbes).objective, Aligned)
    with pytest.warns(UserWarning, match=r"set --model\.freeze=backbone"):
        module(freeze=None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": SharedHead}, "With backbone frozen nothing of the model is left to train"),
        ({"freeze": "backbone,head"}, "With backbone and head frozen nothing of the model is left"),
        ({"freeze": "neck"}, "Expected backbone or head to freeze, but got 'neck'"),
        ({"head": SharedHead, "objective": UncertaintyWeighted()}, "With backbone frozen nothing of the model"),
    ],
)
def test_nothing_to_train_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        module(**options)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
def test_a_resumed_training_of_a_lens_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """From the checkpoint of its third step of six; dropout of the frozen model is off."""

    def fit(**options: Any) -> LayerwiseModule:
        seed_everything(3, verbose=False)
        kept = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=3, save_top_k=-1)
        made = module()
        trainer(tmp_path, enable_checkpointing=True, callbacks=[kept], max_steps=6).fit(made, tiny.digits(), **options)
        return made

    whole = fit()
    (third,) = (tmp_path / "kept").glob("*step=3.ckpt")
    resumed = fit(ckpt_path=third)
    torch.testing.assert_close(state(resumed), state(whole), rtol=0, atol=0)
    assert whole.head.maps[0].weight.abs().max() > 0


def test_two_processes_train_a_lens_as_one_does(tmp_path: Path) -> None:
    """By plain SGD, whose steps are its gradients; the maps move, the model does not."""
    common = [*tiny.FLAGS, *LENS, "--model.optimizer=SGD", "--model.optimizer.lr=5", "--data.eval_batch_size=50"]
    one = run_command("fit", 1, tmp_path, *common, "--data.batch_size=104")
    two = run_command("fit", 2, tmp_path, *common, "--data.batch_size=52")
    assert last_record(one)["accuracy"] == last_record(two)["accuracy"]
    assert last_record(two)["loss"] == pytest.approx(last_record(one)["loss"], rel=1e-6)
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (one, two)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
        assert name.startswith("head.maps") or torch.equal(states[1][name], value)
    assert states[0]["head.maps.0.weight"].abs().max() > 1e-4


@pytest.mark.parametrize("parts", ["backbone", "backbone,head", "[backbone,head]"])
def test_the_command_refuses_before_anything_is_built(
    parts: str, layersim: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.create_model", lambda *args, **named: pytest.fail("built"))
    layersim("fit", *tiny.FLAGS, f"--model.freeze={parts}", status=2)
    assert "frozen nothing of the model is left to train" in capsys.readouterr().err
