"""FeatureTap: what it records against what the libraries and the model itself say, and what it leaves behind."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersim import FeatureTap, UserError
from tests import tiny
from tests.backbones import tiny_transformers
from tests.tapping.chain import Chain, inputs


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# What is recorded


def test_of_a_timm_vit_it_is_what_the_backbone_reads() -> None:
    backbone = tiny.backbone().eval()
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad(), FeatureTap(backbone, "model.blocks.*") as tap:
        features = backbone({"image": images}).values
        assert torch.equal(tap.take(), features)
    assert tap.names == ["model.blocks.0", "model.blocks.1", "model.blocks.2"]


@pytest.mark.parametrize("family", ["BERT", "ALBERT", "GPT-2"])
def test_of_a_transformers_model_it_is_the_hidden_states(family: str) -> None:
    """ALBERT runs one block three times; GPT-2's last hidden state is normed, so the layers below are compared."""
    backbone = tiny_transformers.build(tiny_transformers.CLASSIFIERS[family])
    batch = tiny_transformers.batch_for(backbone)
    blocks = {"BERT": "bert.encoder.layer.*", "ALBERT": "*.*.*.*.albert_layers.*", "GPT-2": "transformer.h.*"}[family]
    pools: dict[Any, Any] = {"cls": 0, "last": -1, (lambda hidden: hidden[:, 2]): 2}
    for pool, token in pools.items():
        with torch.no_grad(), FeatureTap(backbone.model, blocks, pool) as tap:
            states = backbone.model(**batch, output_hidden_states=True).hidden_states[1:]
        compared = slice(2 if family == "GPT-2" else 3)
        assert torch.equal(tap.take()[compared], torch.stack([state[:, token] for state in states])[compared])
    if family == "ALBERT":
        name = "albert.encoder.albert_layer_groups.0.albert_layers.0"
        assert tap.names == [name, f"{name}#2", f"{name}#3"]


def test_of_maps_the_mean_is_over_all_positions() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), FeatureTap(model, "layer*", "mean") as tap:
        model(images)
        features = tap.take_by_name()
        maps = model.forward_intermediates(images, intermediates_only=True)[1:]
        assert [tensor.shape[1] for tensor in features.values()] == [64, 128, 256, 512]
        for tensor, stage in zip(features.values(), maps, strict=True):
            torch.testing.assert_close(tensor, stage.mean((2, 3)), rtol=1e-6, atol=1e-6)
        tap.take_by_name()
        model(images)
        with pytest.raises(UserError, match=r"layers of one width, but layer1 has 64, layer2 has 128, .*take_by_name"):
            tap.take()
    for pool in ("cls", "last"):
        with (
            FeatureTap(model, "layer1", pool),  # type: ignore[arg-type]
            pytest.raises(UserError, match=rf'layer1 puts out \(2, 64, 16, 16\), which pool="{pool}" does not fit'),
        ):
            model(images)


def test_several_passes_are_one_behind_the_other() -> None:
    model, x = Chain(), inputs(10)
    with FeatureTap(model, "blocks.*") as tap:
        expected = torch.stack(model(x))
        assert torch.equal(tap.take(), expected)
        for part in x.split(4):
            model(part)
        torch.testing.assert_close(tap.take(), expected)
        with pytest.raises(UserError, match="None of the chosen layers ran since the last take"):
            tap.take()
    model(x)
    with pytest.raises(UserError, match="None of the chosen layers ran"):
        tap.take()


def test_layers_come_as_they_ran_whatever_the_patterns_order() -> None:
    model = Chain()
    with FeatureTap(model, ["blocks.*.1", "blocks.*", "blocks.[02].0", "blocks.1"]) as tap:
        model(inputs())
        taken = tap.take_by_name()
    ran = ["0.0", "0.1", "0", "1.1", "1", "2.0", "2.1", "2"]
    assert list(taken) == tap.names == [f"blocks.{name}" for name in ran]
    assert torch.equal(taken["blocks.2"], taken["blocks.2.1"])
    assert torch.equal(taken["blocks.1"], model(inputs())[1])


def test_parts_called_without_the_whole_are_recorded_too() -> None:
    model, x = Chain(), inputs()
    with FeatureTap(model, "blocks.*") as tap:
        middle = model.blocks[0](x)
        last = model.blocks[2](model.blocks[1](middle))
        taken = tap.take()
    assert torch.equal(taken[[0, 2]], torch.stack([middle, last]))


def test_a_module_that_runs_twice_is_two_layers() -> None:
    class Shared(Chain):
        def forward(self, x: Tensor, times: int = 2) -> Any:
            for _ in range(times):
                x = self.blocks[0](x)
            return x

    model, x = Shared(), inputs()
    with FeatureTap(model, "blocks.0") as tap:
        twice = model(x)
        once, second = tap.take()
        assert torch.equal(second, twice)
        assert torch.equal(once, model(x, times=1))
        with pytest.raises(UserError, match=r"as often each, but got blocks.0, blocks.0#2, then blocks.0\."):
            tap.take()
        tap.open()
        model(x, times=3)
        assert torch.equal(tap.take()[1], twice), "opened again it knows of no layers before"
        assert tap.names == ["blocks.0", "blocks.0#2", "blocks.0#3"]


def test_a_pass_that_fails_is_not_recorded() -> None:
    class Failing(Chain):
        def forward(self, x: Tensor) -> Any:
            outputs = super().forward(x)
            if len(x) == 3:
                raise ZeroDivisionError
            return outputs

    model, x = Failing(), inputs(4)
    with FeatureTap(model, "blocks.*") as tap:
        with pytest.raises(ZeroDivisionError):
            model(x[:3])
        with pytest.raises(UserError, match="None of the chosen layers ran since the last take"):
            tap.take()
        expected = torch.stack(model(x))
        try:
            model(x[:3])
        except ZeroDivisionError:
            expected = torch.cat([expected, torch.stack(model(x[:2]))], 1)  # this one does not fail
        assert torch.equal(tap.take(), expected)


@pytest.mark.parametrize("fails", [True, False])
def test_parts_called_after_a_pass_have_samples_of_their_own(fails: bool) -> None:
    class Whole(Chain):
        def forward(self, x: Tensor) -> Any:
            outputs = super().forward(x)
            if fails and len(x) == 3:
                raise ZeroDivisionError
            return outputs

    model, x = Whole(), inputs(9)
    with FeatureTap(model, "blocks.*") as tap:
        first = model(x[:2]) if fails else []
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            model(x[2:5])
        last = [part := model.blocks[0](x[5:]), part := model.blocks[1](part), model.blocks[2](part)]
        taken = tap.take_by_name()
    if fails:  # a pass of its own, behind those before
        assert torch.equal(torch.stack(list(taken.values())), torch.cat([torch.stack(first), torch.stack(last)], 1))
    else:
        assert torch.equal(taken["blocks.2#2"], last[2])
    nested = nn.Sequential(nn.Sequential(model.blocks[0]))
    with FeatureTap(nested, "0.0") as tap:
        parts = {"0.0": nested[0](x[:3]), "0.0#2": model.blocks[0](x[3:])}  # neither is the whole
    for name, features in tap.take_by_name().items():
        assert torch.equal(features, parts.pop(name))
    assert not parts


def test_a_pool_gives_a_tensor() -> None:
    model = Chain()
    with (
        FeatureTap(model, "blocks.0", lambda tokens: tokens.tolist()),
        pytest.raises(UserError, match=r"blocks\.0: expected the pool to give \(\d+, D\) from .*, got list: change"),
    ):
        model(inputs())


@dataclass
class Output:
    loss: None
    hidden: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, x + 1),
        lambda x: [None, (x, x + 1)],
        lambda x: {"mask": None, "hidden": x},
        lambda x: Output(None, x),
    ],
)
def test_of_structures_the_first_tensor_counts(wrap: Any) -> None:
    class Wrapping(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x)

    model = nn.Sequential(Wrapping())
    with FeatureTap(model, "0", "mean") as tap:
        model(x := torch.randn(3, 5, 2))
        torch.testing.assert_close(tap.take(), x.mean(1)[None])


def test_what_the_model_does_in_place_afterwards_is_not_seen() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    model = nn.Sequential(nn.Identity(), InPlace())
    with FeatureTap(model, "*") as tap:
        model(torch.zeros(2, 3))
        assert tap.take()[:, 0, 0].tolist() == [0, 1]


def test_training_under_autocast_is_undisturbed() -> None:
    gradients = []
    for tapped in (False, True):
        model = Chain().train()
        tap = FeatureTap(model, "blocks.*")
        with torch.autocast("cpu", torch.bfloat16):
            if tapped:
                tap.open()
            outputs = model(inputs())
            outputs[-1].sum().backward()
            tap.close()
        gradients.append([parameter.grad for parameter in model.parameters()])
    taken = tap.take()
    assert not taken.requires_grad
    assert taken.dtype == torch.bfloat16
    assert torch.equal(taken, torch.stack(outputs))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_runs_again_is_not_recorded(reentrant: bool) -> None:
    calls = []

    class Checkpointed(Chain):
        def forward(self, x: Tensor) -> Any:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    model = Checkpointed()
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with FeatureTap(model, "blocks.*") as tap:
        model(inputs().requires_grad_()).sum().backward()
    assert len(calls) == 2, "the block really ran again"
    taken = tap.take()
    assert tap.names == ["blocks.0", "blocks.1", "blocks.2"]
    assert torch.equal(taken, torch.stack(Chain()(inputs())))


# What is left behind


def test_hooks_are_gone_after_the_block_an_error_and_the_taps_end() -> None:
    model = Chain()
    with FeatureTap(model, "blocks.*"):
        assert hooks(model) == 5, "the control: they were there"
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), FeatureTap(model, "blocks.*"):
        model(torch.ones(2, 3))
    assert hooks(model) == 0
    with pytest.raises(ZeroDivisionError), FeatureTap(model, "blocks.*", lambda _: 1 / 0):  # type: ignore[arg-type, return-value]
        model(inputs())
    assert hooks(model) == 0
    tap = FeatureTap(model, "blocks.*").open()
    model(inputs())
    tap.open()
    assert hooks(model) == 5, "opened again it records once"
    del tap
    assert hooks(model) == 0


def test_hooks_of_others_stay() -> None:
    model = Chain()
    model.blocks[1].register_forward_hook(lambda *_: None)
    with FeatureTap(model, "blocks.*"):
        assert hooks(model) == 6
    assert hooks(model) == 1


# What is refused


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "block.*",
            r'no submodule matches "block.\*", .* Did you mean blocks.*There are: blocks, blocks.\*, blocks',
        ),
        (["blocks.*", "head"], r'no submodule matches "head"'),
        ("", "no submodule matches"),
        ([], "at least one pattern, got an empty list"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FeatureTap(Chain(), pattern)


def test_modules_that_never_ran_are_named() -> None:
    model = Chain()
    with FeatureTap(model, "blocks") as tap:
        model(inputs())
        with pytest.raises(
            UserError, match=r"None of the chosen layers ran .* blocks only holds modules: .* blocks\.\*"
        ):
            tap.take()
    with FeatureTap(model, "blocks.*") as tap:
        model.blocks[1](inputs())
        with pytest.raises(UserError, match=r"every chosen layer to run, but not so blocks\.0, blocks\.2 since"):
            tap.take()


class Giving(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.block = nn.Identity()
        self.output = output

    def forward(self) -> Any:
        return self.block(self.output)


@pytest.mark.parametrize(
    ("output", "pool", "message"),
    [
        (None, "cls", "block puts out no tensor but NoneType"),
        (torch.ones(2, 3).long(), "cls", "block puts out torch.int64, no floating-point numbers"),
        (torch.ones(2), "mean", r'block puts out \(2,\), which pool="mean" does not fit'),
        (
            torch.ones(2, 3, 4),
            lambda x: x,
            r"block: expected the pool to give \(2, D\) from \(2, 3, 4\), got \(2, 3, 4\)",
        ),
        (torch.ones(2, 3, 4), lambda x: x.flatten(0, 1), r"expected the pool to give \(2, D\) .*, got \(6, 4\)"),
    ],
)
def test_outputs_that_are_no_features_are_refused(output: Any, pool: Any, message: str) -> None:
    model = Giving(output)
    with pytest.raises(UserError, match=message), FeatureTap(model, "block", pool):
        model()
    assert hooks(model) == 0


def test_layers_of_other_samples_unknown_pools_and_data_parallel_are_refused() -> None:
    class Halving(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[::2]

    model = nn.Sequential(nn.Identity(), Halving())
    with (
        FeatureTap(model, "*") as tap,
        pytest.raises(UserError, match=r"1 puts out \(2, 2\) for a batch of 4 samples, whose samples the first axis"),
    ):
        model(torch.ones(4, 2))
    with FeatureTap(Chain(), "blocks.[01]") as tap:  # parts, each of which was given samples of its own
        blocks = tap._modules
        blocks["blocks.0"](torch.ones(4, 4))
        blocks["blocks.1"](torch.ones(2, 4))
        with pytest.raises(UserError, match=r"layers of one number of samples, but blocks.0 has 4, blocks.1 has 2"):
            tap.take()
    with pytest.raises(UserError, match='pool: expected one of cls, mean, last, or a function, got "max"'):
        FeatureTap(model, "*", "max")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="DataParallel runs copies of its modules"):
        FeatureTap(nn.DataParallel(model), "*")


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("compile", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(2, 4))])
def test_torchscript_is_refused_where_it_is_tapped(compile: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), compile(nn.Sequential(nn.Linear(4, 4))))
    for whole, name in ((model[1], "0"), (model, "1"), (model, "1.0")):
        with pytest.raises(UserError, match=r"TorchScript runs past the hooks of a tap: .* before torch\.jit"):
            FeatureTap(whole, name)
    with FeatureTap(model, "0") as tap:
        model(x := inputs())
    assert torch.equal(tap.take()[0], model[0](x)), "elsewhere it is no matter"
