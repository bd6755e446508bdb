"""Parameter groups: against timm's own of a ViT, a list written out for a BERT, and through the Trainer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from layersim.backbones import Lora, TransformersBackbone
from layersim.errors import UserError
from layersim.heads import SeparateHeads
from layersim.module import LayerwiseModule
from layersim.objectives import UncertaintyWeighted
from layersim.optimization.parameter_groups import ParameterGroups
from layersim.optimization.schedules import WarmupDecay
from tests import tiny
from tests.backbones.tiny_transformers import CAUSAL, ENCODERS

ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def options(module: LayerwiseModule) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter in the optimizer that the module makes."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = module._make_optimizer()[0].param_groups
    found = {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}
    assert found.keys() == {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(found)
    return found


def test_by_default_all_parameters_are_one_group_as_they_come() -> None:
    module = tiny.module(optimizer=ADAMW)
    (group,) = module._make_optimizer()[0].param_groups
    assert all(one is other for one, other in zip(group["params"], module.parameters(), strict=True))
    assert group.keys() == torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).param_groups[0].keys()


def test_decay_is_left_out_where_timm_leaves_it_out() -> None:
    module = tiny.module(optimizer=ADAMW, parameter_groups=ParameterGroups(decay_norms_and_biases=False))
    model = module.backbone.model
    expected = {
        f"backbone.model.{name}": group["weight_decay"]
        for group in param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
        for name, parameter in model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    assert {name: decay for name, (_, decay) in options(module).items()} == expected
    assert {expected[f"backbone.model.{name}"] for name in ("pos_embed", "cls_token", "norm.weight")} == {0.0}


def test_rates_fall_by_layer_as_timms_do() -> None:
    groups = ParameterGroups(decay_norms_and_biases=False, layer_decay=0.75)
    module = tiny.module(optimizer=ADAMW, parameter_groups=groups)
    model = module.backbone.model
    theirs = param_groups_layer_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.75)
    expected = {
        f"backbone.model.{name}": (pytest.approx(0.01 * group["lr_scale"]), group["weight_decay"])
        for group in theirs
        for name, parameter in model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    assert options(module) == expected
    assert len(module._make_optimizer()[0].param_groups) == len(theirs)
    control = tiny.module(optimizer=ADAMW, parameter_groups=ParameterGroups(layer_decay=0.8))
    assert options(control) != expected


def test_a_bert_written_out() -> None:
    backbone = TransformersBackbone(
        task="classification", pretrained=False, config_args=ENCODERS["BERT"], num_classes=3
    )
    groups = ParameterGroups(decay_norms_and_biases=False, layer_decay=0.5, head_lr=0.2)
    found = options(LayerwiseModule(backbone, optimizer=ADAMW, parameter_groups=groups))
    rates = {"embeddings": 0.01 / 16, "layer.0": 0.01 / 8, "layer.1": 0.01 / 4, "layer.2": 0.01 / 2}
    rates |= {"pooler": 0.2, "classifier": 0.2}
    expected = {}
    for name in found:
        (rate,) = (rate for part, rate in rates.items() if f".{part}." in name)
        plain = name.endswith(".bias") or "LayerNorm" in name or "position_embeddings" in name
        expected[name] = (rate, 0.0 if plain else 0.1)
    assert found == expected
    embeddings = {name.rsplit(".", 2)[1]: decay for name, (_, decay) in found.items() if ".embeddings." in name}
    assert embeddings == {
        "word_embeddings": 0.1, "token_type_embeddings": 0.1, "position_embeddings": 0.0, "LayerNorm": 0.0
    }  # fmt: skip


def test_heads_of_each_layer_and_a_tied_one_have_the_heads_rate() -> None:
    separate = tiny.module(head=SeparateHeads, optimizer=ADAMW, parameter_groups=ParameterGroups(head_lr=1.0))
    fast = {name for name, (rate, _) in options(separate).items() if rate == 1.0}
    assert fast == {name for name in options(separate) if "classifiers" in name or ".head." in name}
    assert len(fast) == 2 * 3
    gpt = TransformersBackbone(task="language-modeling", pretrained=False, config_args=CAUSAL["GPT-2"])
    tied = options(LayerwiseModule(gpt, optimizer=ADAMW, parameter_groups=ParameterGroups(head_lr=1.0)))
    assert [name for name, (rate, _) in tied.items() if rate == 1.0] == ["backbone.model.transformer.wte.weight"]


def test_adapters_have_a_rate_of_their_own() -> None:
    pytest.importorskip("peft", reason="needs the extra `lora`")
    backbone = TransformersBackbone(
        task="language-modeling", pretrained=False, config_args=CAUSAL["Llama"], lora=Lora(r=2)
    )
    groups = ParameterGroups(adapter_lr=0.5, layer_decay=0.9)
    found = options(LayerwiseModule(backbone, optimizer=ADAMW, parameter_groups=groups))
    assert {rate for name, (rate, _) in found.items() if ".lora_" in name} == {0.5}
    assert 0.5 not in {rate for name, (rate, _) in found.items() if ".lora_" not in name}


def test_learned_weights_of_an_objective_do_not_decay() -> None:
    module = tiny.module(objective=UncertaintyWeighted(), optimizer=ADAMW)
    found = options(module)
    assert found.pop("objective.log_variances") == (0.01, 0.0)
    assert set(found.values()) == {(0.01, 0.1)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay above 0 and at most 1, but got 0"),
        ({"layer_decay": 1.5}, r"at most 1, but got 1\.5"),
        ({"head_lr": -1.0}, r"head_lr > 0, but got -1\.0"),
        ({"adapter_lr": float("nan")}, "adapter_lr > 0, but got nan"),
        ({"head_lr": "1e-3"}, "head_lr > 0, but got '1e-3'"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ParameterGroups(**wrong)


def test_a_rate_for_adapters_that_are_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="no adapters for adapter_lr"):
        tiny.module(parameter_groups=ParameterGroups(adapter_lr=0.1)).check_optimizer()


@pytest.mark.parametrize(
    ("grouped", "message"),
    [
        (lambda every: [{"params": every[2:]}], r"backbone\.model\.cls_token and 1 more are in no parameter group"),
        (lambda every: [{"params": every}, {"params": every[-1:]}], r"head\.bias is in a parameter group twice"),
        (lambda every: [{"params": [*every, every[0]]}], r"cls_token is in a parameter group twice"),
    ],
)
def test_groups_of_ones_own_hold_each_parameter_once(grouped: Callable[[Any], Any], message: str) -> None:
    class Own(LayerwiseModule):
        def grouped_parameters(self) -> list[dict[str, Any]]:
            return grouped(list(self.parameters()))  # type: ignore[no-any-return]

    with pytest.raises(UserError, match=message):
        Own(tiny.backbone()).check_optimizer()
    frozen = Own(tiny.backbone())
    frozen.requires_grad_(False)
    if "no parameter" in message:
        frozen.check_optimizer()  # what does not train may be left out


def test_groups_of_ones_own_may_be_generators_or_a_parameter_alone() -> None:
    class Own(LayerwiseModule):
        def grouped_parameters(self) -> list[dict[str, Any]]:
            *rest, last = self.parameters()
            return [{"params": (each for each in rest)}, {"params": last, "lr": 0.5}]

    found = options(Own(tiny.backbone(), optimizer=ADAMW))  # which are all that train, each once
    assert [name for name, (rate, _) in found.items() if rate == 0.5] == ["backbone.model.head.bias"]


@pytest.mark.parametrize(
    "form",
    [
        lambda module: module.parameters(),
        lambda module: module.named_parameters(),
        lambda module: {"params": list(module.parameters())},
        lambda module: [{"params": module.named_parameters()}],
    ],
)
def test_groups_of_ones_own_come_in_each_form_that_torch_takes(form: Callable[[nn.Module], Any]) -> None:
    class Own(LayerwiseModule):
        def grouped_parameters(self) -> Any:
            return form(self)

    assert options(Own(tiny.backbone(), optimizer=ADAMW)) == options(tiny.module(optimizer=ADAMW))


@pytest.mark.parametrize("groups", [[{"lr": 0.1}], [[0.1]]])
def test_what_is_no_group_is_refused(groups: Any) -> None:
    class Own(LayerwiseModule):
        def grouped_parameters(self) -> Any:
            return groups

    with pytest.raises(UserError, match="Expected groups with `params` from `grouped_parameters` of the module, got a"):
        Own(tiny.backbone(), optimizer=ADAMW).check_optimizer()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_that_is_made_by_ones_own_method_resumes_as_it_was(kind: Any, tmp_path: Path) -> None:
    class Own(LayerwiseModule):
        def configure_optimizers(self) -> Any:  # type: ignore[override]
            return kind(self.parameters(), lr=0.02, weight_decay=0.3)

    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    for epochs, path in ((1, None), (2, tmp_path / "one.ckpt")):
        trainer = Trainer(max_epochs=epochs, limit_train_batches=2, limit_val_batches=1, **options)
        trainer.fit(Own(tiny.backbone()), tiny.digits(), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "one.ckpt")
        (group,) = trainer.optimizers[0].param_groups
        assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)


def test_a_schedule_that_levels_the_rates_is_refused() -> None:
    cycle = partial(OneCycleLR, max_lr=0.1, total_steps=10)
    module = tiny.module(lr_scheduler=cycle, parameter_groups=ParameterGroups(head_lr=0.5))
    with pytest.raises(UserError, match=r"OneCycleLR starts all parameters from one learning rate, .* have 2"):
        module.check_optimizer()
    each = tiny.module(
        lr_scheduler=partial(OneCycleLR, max_lr=[0.1, 0.2], total_steps=10),
        parameter_groups=ParameterGroups(head_lr=0.5),
    )
    each.check_optimizer()


class Rates(Callback):
    """Each group's rate at each training step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})


def fit(path: Path, epochs: int, rate: float = 0.01, resumed: bool = False, decay: bool = True, **groups: Any) -> Rates:
    """Epochs of two steps, with their checkpoint."""
    module = tiny.module(
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=rate * 10),
        parameter_groups=ParameterGroups(**groups),
        lr_scheduler=partial(LambdaLR, lr_lambda=lambda epoch: 0.5**epoch) if decay else None,
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(
        default_root_dir=path, max_epochs=epochs, limit_train_batches=2, limit_val_batches=0,
        callbacks=[rates := Rates()], enable_checkpointing=False, **quiet,
    )  # fmt: skip
    trainer.fit(module, tiny.digits(), ckpt_path=path / "last.ckpt" if resumed else None)
    trainer.save_checkpoint(path / "last.ckpt")
    rates.groups = trainer.optimizers[0].param_groups  # type: ignore[attr-defined]
    return rates


@pytest.mark.parametrize("decay", [True, False])
def test_resuming_keeps_or_overrides_group_by_group(decay: bool, tmp_path: Path) -> None:
    """Rates that a schedule has halved stay where they were; new ones move theirs alone, by their ratio."""
    half = 0.5 if decay else 1.0
    given = {"head_lr": 0.2, "decay_norms_and_biases": False}
    first = fit(tmp_path, 1, decay=decay, **given)
    names = {"model", "model_no_decay", "head", "head_no_decay"}
    assert first.seen[0] == {name: 0.2 if "head" in name else 0.01 for name in names}
    same = fit(tmp_path, 2, decay=decay, resumed=True, **given)
    assert same.seen[0] == pytest.approx({name: half * (0.2 if "head" in name else 0.01) for name in names})
    other = fit(tmp_path, 3, decay=decay, resumed=True, **{**given, "head_lr": 0.1})
    assert other.seen[0] == pytest.approx({name: half**2 * (0.1 if "head" in name else 0.01) for name in names})
    base = fit(tmp_path, 4, rate=0.02, decay=decay, resumed=True, **{**given, "head_lr": 0.1})
    assert base.seen[0] == pytest.approx({name: half**3 * (0.1 if "head" in name else 0.02) for name in names})
    decays = {group["name"]: group["weight_decay"] for group in base.groups}  # type: ignore[attr-defined]
    assert decays == {"model": 0.2, "model_no_decay": 0.0, "head": 0.2, "head_no_decay": 0.0}


def test_resuming_refuses_other_groups(tmp_path: Path) -> None:
    fit(tmp_path, 1, head_lr=0.2)
    with pytest.raises(UserError, match=r"parameter groups .*'head of 2 parameters'.*, but .*layer_1 of 12 parameters"):
        fit(tmp_path, 2, resumed=True, layer_decay=0.5)


def test_a_warmup_scales_every_group(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1.0, 0.1)])
    schedule = WarmupDecay(optimizer, warmup=0.0, decay="linear")
    schedule.spread_over(4)
    for step in range(4):
        assert schedule.get_last_lr() == pytest.approx([1 - step / 4, 0.1 * (1 - step / 4)])
        optimizer.step()
        schedule.step()


@pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:The dirpath has changed")
@pytest.mark.parametrize("schedule", [None, "layersim.optimization.schedules.WarmupDecay"])
def test_a_rate_that_is_found_keeps_the_groups_apart(schedule: str | None, layersim: Callable[..., Path]) -> None:
    """By the command: options stand in the configuration, and layers keep their ratios to the rate that is found."""
    flags = ["--model.optimizer=AdamW", "--model.optimizer.lr=0.003", "--model.parameter_groups.layer_decay=0.5"]
    flags += ["--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.max_lr=1e4"]
    flags += [f"--model.lr_scheduler={schedule}", "--model.lr_scheduler.decay=constant"] if schedule else []
    flags += ["--model.lr_scheduler.warmup=0"] if schedule else []
    directory = layersim("fit", *tiny.FLAGS, *flags)
    config = yaml.safe_load((directory / "config.yaml").read_text())["model"]
    rate = config["optimizer"]["init_args"]["lr"]
    assert rate != 0.003
    assert config["parameter_groups"] == {
        "decay_norms_and_biases": True, "layer_decay": 0.5, "head_lr": None, "adapter_lr": None
    }  # fmt: skip
    stored = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    (state,) = stored["optimizer_states"]
    expected = {"embeddings": rate / 16, "layer_1": rate / 8, "layer_2": rate / 4, "layer_3": rate / 2, "head": rate}
    if schedule is None:
        assert {group["name"]: group["lr"] for group in state["param_groups"]} == pytest.approx(expected)
    assert stored["learning_rates"] == pytest.approx([expected[group["name"]] for group in state["param_groups"]])
    again = [f"--config={directory / 'config.yaml'}", f"--ckpt_path={directory / 'checkpoints/last.ckpt'}"]
    resumed = torch.load(layersim("fit", *again, "--trainer.max_epochs=2") / "checkpoints/last.ckpt", weights_only=True)
    assert resumed["learning_rates"] == pytest.approx(stored["learning_rates"])
