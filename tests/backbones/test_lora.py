"""Low-rank adapters: what they compute, what trains, and that layers are read as before."""

import math
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersim.backbones import Lora, TransformersBackbone
from layersim.backbones.lora import merged_weights
from layersim.errors import UserError
from layersim.heads import SharedHead

from .tiny_transformers import CAUSAL, ENCODERS, batch_for, build, read, stock


@pytest.fixture
def peft() -> None:
    pytest.importorskip("peft", reason="needs the extra `lora`")


def trained(backbone: TransformersBackbone) -> set[str]:
    """Names of the parameters that train."""
    return {name for name, parameter in backbone.model.named_parameters() if parameter.requires_grad}


def merged(backbone: TransformersBackbone, factor: float) -> dict[str, Tensor]:
    """The weights of a model without adapters that computes the same: W + factor · B A, by hand."""
    state = backbone.model.state_dict()
    weights = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            update = state[f"{stem}.lora_B.default.weight"] @ state[f"{stem}.lora_A.default.weight"]
            transposed = type(backbone.model.get_submodule(stem).base_layer).__name__ == "Conv1D"  # GPT-2's
            tensor = tensor + factor * (update.T if transposed else update)
        weights[plain] = tensor
    return weights


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("Llama", "language-modeling"),
        ("Llama", "classification"),
        ("GPT-2", "language-modeling"),
        ("BERT", "classification"),
    ],
)
def test_every_layer_is_that_of_the_model_with_merged_weights(family: str, task: str) -> None:
    arguments = (CAUSAL | ENCODERS)[family]
    adapted = build(arguments, task, lora=Lora(r=2, alpha=6.0))  # all parameters are drawn, B too
    plain = build(arguments, task)
    different = read(plain, batch_for(plain))
    plain.model.load_state_dict(merged(adapted, factor=3.0))
    torch.testing.assert_close(merged_weights(adapted.model), merged(adapted, factor=3.0), rtol=1e-6, atol=1e-6)
    data = batch_for(adapted)
    torch.testing.assert_close(read(adapted, data), read(plain, data), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read(adapted, data)[-1], stock(adapted, data), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(read(adapted, data), different, atol=0.1), "adapters count"


@pytest.mark.usefixtures("peft")
def test_half_precision_is_merged_with_one_rounding() -> None:
    options = {"task": "language-modeling", "pretrained": False, "config_args": CAUSAL["Llama"], "dtype": "bfloat16"}
    model = TransformersBackbone(**options, lora=Lora(r=2, alpha=2.0)).model
    adapter = model.get_submodule("model.layers.0.self_attn.q_proj")
    nn.init.normal_(adapter.lora_B.default.weight)
    update = adapter.lora_B.default.weight.double() @ adapter.lora_A.default.weight.double()
    weight = merged_weights(model)["model.layers.0.self_attn.q_proj.weight"]
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, (adapter.base_layer.weight.double() + update).bfloat16())


@pytest.mark.usefixtures("peft")
def test_adapters_start_as_the_model_itself() -> None:
    torch.manual_seed(0)
    options = {"task": "language-modeling", "pretrained": False, "config_args": CAUSAL["Llama"]}
    plain = TransformersBackbone(**options)
    torch.manual_seed(0)
    adapted = TransformersBackbone(**options, lora=Lora())
    data = batch_for(plain)
    torch.testing.assert_close(read(adapted.eval(), data), read(plain.eval(), data))


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("norms", [False, True])
def test_adapters_the_head_and_if_asked_norms_train(norms: bool) -> None:
    backbone = build(CAUSAL["Llama"], "language-modeling", lora=Lora(r=2, target_modules=["q_proj"], norms=norms))
    expected = {"lm_head.weight", "model.norm.weight"}
    for layer in range(3):
        block = f"model.layers.{layer}"
        expected |= {f"{block}.self_attn.q_proj.lora_{side}.default.weight" for side in "AB"}
        if norms:
            expected |= {f"{block}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
    assert trained(backbone) == expected

    before = {name: parameter.detach().clone() for name, parameter in backbone.model.named_parameters()}
    head, data = SharedHead(backbone), batch_for(backbone) | {"label": batch_for(backbone)["input_ids"]}
    features = backbone.train()(data)
    head.loss(features.values, features.targets, range(3), [0.2, 0.3, 0.5]).backward()
    torch.optim.SGD(backbone.parameters(), lr=0.1).step()
    moved = {name for name, parameter in backbone.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == expected


@pytest.mark.usefixtures("peft")
def test_adapters_beside_half_precision_are_wide_and_move() -> None:
    torch.manual_seed(0)
    backbone = TransformersBackbone(
        task="language-modeling", pretrained=False, config_args=CAUSAL["Llama"], dtype="bfloat16", lora=Lora(r=2)
    )
    adapters = {name: weight for name, weight in backbone.named_parameters() if ".lora_" in name}
    assert {weight.dtype for weight in adapters.values()} == {torch.float32}
    head = {"model.lm_head.weight", "model.model.norm.weight"}
    others = {weight.dtype for name, weight in backbone.named_parameters() if name not in adapters.keys() | head}
    assert others == {torch.bfloat16}
    data = batch_for(backbone) | {"label": batch_for(backbone)["input_ids"]}
    features = backbone(data)
    assert features.values.dtype == torch.bfloat16
    SharedHead(backbone).loss(features.values, features.targets, range(3), [0.2, 0.3, 0.5]).backward()
    before = {name: weight.detach().clone() for name, weight in adapters.items()}
    torch.optim.SGD(backbone.parameters(), lr=1e-3).step()
    moved = {name for name, weight in adapters.items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in adapters if ".lora_B." in name}, "A waits for B to leave zero"


HALF_HEADS = [
    ("Llama", "language-modeling"),
    ("Llama", "classification"),
    ("GPT-NeoX", "language-modeling"),  # with LayerNorm, which takes no input of another type than its weight's
    ("GPT-2", "classification"),
    ("BERT", "classification"),  # a classifier of several parts, and no norm before it
    ("Gemma 2, softcapped", "classification"),
]


def half(family: str, task: str, **options: Any) -> TransformersBackbone:
    torch.manual_seed(0)
    arguments = (CAUSAL | ENCODERS)[family]
    return TransformersBackbone(task=task, pretrained=False, config_args=arguments, dtype="bfloat16", **options)


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("family", "task"), HALF_HEADS)
def test_a_head_beside_half_precision_is_wide_and_moves(family: str, task: str, mixed: bool) -> None:
    plain, backbone = half(family, task).eval(), half(family, task, lora=Lora(r=2)).eval()
    parameters = [*backbone.final_norm.parameters(), *backbone.classifier.parameters()]
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert all(parameter.requires_grad for parameter in parameters)
    data = batch_for(plain)
    torch.testing.assert_close(read(backbone, data), read(plain, data).float(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(read(backbone, data)[-1], stock(backbone, data), rtol=1e-5, atol=1e-5)

    labels = data["input_ids"] if task == "language-modeling" else torch.tensor([0, 1, 1])
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        features = backbone(data | {"label": labels})
        loss = SharedHead(backbone).loss(features.values, features.targets, range(3), [0.2, 0.3, 0.5])
    loss.backward()
    before = [parameter.detach().clone() for parameter in parameters]
    torch.optim.AdamW(parameters, lr=1e-4).step()
    for parameter, old in zip(parameters, before, strict=True):
        assert ((parameter - old).abs() > 5e-5).sum() >= 0.9 * (parameter.grad.abs() > 1e-6).sum() > 0


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("norm", ["final", "none"])
def test_raw_features_of_half_precision_are_read_by_a_wide_head(norm: Any) -> None:
    backbone = half("Llama", "language-modeling", lora=Lora(r=2))
    head, data = SharedHead(backbone, norm=norm), batch_for(backbone)
    features = backbone(data | {"label": data["input_ids"]})
    chosen = [1.0, 0.0, 0.0]
    expected = nn.functional.cross_entropy(head.logits(features.values[:1], [0])[0], features.targets)
    torch.testing.assert_close(head.loss(features.values, features.targets, range(3), chosen), expected)


@pytest.mark.usefixtures("peft")
def test_a_wide_head_that_a_trainer_narrows_is_read_all_the_same() -> None:
    plain, backbone = half("GPT-NeoX", "language-modeling"), half("GPT-NeoX", "language-modeling", lora=Lora(r=2))
    data = batch_for(plain)
    assert torch.equal(read(backbone.bfloat16().eval(), data), read(plain.eval(), data))


@pytest.mark.usefixtures("peft")
def test_a_head_tied_to_embeddings_of_half_precision_does_not_train() -> None:
    with pytest.warns(UserWarning, match=r"tied to embeddings of half precision.*dtype to float32"):
        backbone = half("GPT-2", "language-modeling", lora=Lora(r=2))
    assert trained(backbone)
    assert all(".lora_" in name for name in trained(backbone))
    wide = TransformersBackbone(task="language-modeling", pretrained=False, config_args=CAUSAL["GPT-2"], lora=Lora(r=2))
    assert {"transformer.wte.weight", "transformer.ln_f.weight"} <= trained(wide)


@pytest.mark.usefixtures("peft")
def test_norms_of_half_precision_are_not_trained() -> None:
    with pytest.raises(UserError, match=r"norms are of half precision.*norms: false.*float32"):
        half("Llama", "language-modeling", lora=Lora(r=2, norms=True))


@pytest.mark.usefixtures("peft")
def test_adapters_are_small() -> None:
    full = build(CAUSAL["Llama"], "language-modeling")
    adapted = build(CAUSAL["Llama"], "language-modeling", lora=Lora(r=1, target_modules=["q_proj", "v_proj"]))

    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    head = 24 * 50 + 24
    assert count(adapted) - head == 3 * ((24 + 24) + (24 + 12))  # r (inputs + outputs) for each map
    assert count(full) > 5 * (count(adapted) - head)


@pytest.mark.usefixtures("peft")
def test_a_map_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"no linear map query; they have .*q_proj.*target_modules"):
        build(CAUSAL["Llama"], "language-modeling", lora=Lora(target_modules=["q_proj", "query"]))


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'layersim\[lora\]'"):
        build(CAUSAL["Llama"], "language-modeling", lora=Lora())


@pytest.mark.parametrize(
    "options", [{"r": 0}, {"alpha": 0.0}, {"alpha": math.nan}, {"alpha": math.inf}, {"dropout": 1.0}]
)
def test_sizes_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="r ≥ 1, alpha > 0"):
        Lora(**options)


def test_adapters_of_no_map_are_refused() -> None:
    for wrong in ([], "query"):
        with pytest.raises(
            UserError, match=rf"^Expected a list of names of maps, or null for all, but got {re.escape(repr(wrong))}"
        ):
            Lora(target_modules=wrong)
