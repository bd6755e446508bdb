"""The truncated model's own forward is the readout at its last layer, family by family."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.export.truncation import agree, kept_layers, library_of, readout_without, truncate
from layersim.heads import Head, SharedHead
from tests.backbones import test_vision, tiny_transformers
from tests.backbones.tiny_transformers import CAUSAL, CLASSIFIERS, DECODER, GPT2
from tests.export.exported import batch, readout, separate

FAMILIES = {
    **{f"timm, {name}": ("timm", name) for name in test_vision.FAMILIES},
    **{f"transformers, {name}": ("classification", name) for name in CLASSIFIERS},
    **{f"transformers, language model, {name}": ("language-modeling", name) for name in CAUSAL},
}


def build(family: str) -> Backbone:
    kind, name = FAMILIES[family]
    if kind == "timm":
        return test_vision.build(*test_vision.FAMILIES[name])
    return tiny_transformers.build(CLASSIFIERS[name], kind)


def logits(backbone: Backbone, model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return library_of(backbone).logits(model, batch(backbone))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_readout_at_the_last_layer(family: str) -> None:
    backbone = build(family)
    for head in (SharedHead(backbone).eval(), separate(backbone)):
        model = truncate(backbone, head, 2)
        assert type(model) is type(backbone.model)
        assert not model.training
        torch.testing.assert_close(logits(backbone, model), readout(backbone, head, 1), rtol=1e-5, atol=1e-5)
    other = readout(backbone, head, 2)
    assert not torch.allclose(logits(backbone, model), other, atol=1e-2), "the last layer says something else"


@pytest.mark.parametrize(
    "family",
    ["timm, ViT, class token", "timm, EVA-02", "timm, DeiT, distilled", "transformers, BERT", "transformers, ALBERT"],
)
def test_one_layer_and_all(family: str) -> None:
    backbone = build(family)
    for head in (SharedHead(backbone).eval(), separate(backbone)):
        for layers in (1, 3):
            found = logits(backbone, truncate(backbone, head, layers))
            torch.testing.assert_close(found, readout(backbone, head, layers - 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, logits(backbone, backbone.model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "blocks"),
    [
        ("timm, ViT, class token", "blocks"),
        ("timm, BEiT", "blocks"),
        ("transformers, BERT", "bert.encoder.layer"),
        ("transformers, language model, GPT-2", "transformer.h"),
        ("transformers, DINOv2", "dinov2.encoder.layer"),
    ],
)
def test_without_a_block_in_the_middle(family: str, blocks: str) -> None:
    """Against the library's own model with the block taken out of its list."""
    backbone = build(family)
    reference: Any = copy.deepcopy(backbone.model)
    del reference.get_submodule(blocks)[1]
    found = truncate(backbone, SharedHead(backbone).eval(), [0, 2])
    torch.testing.assert_close(logits(backbone, found), logits(backbone, reference), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(backbone, found), logits(backbone, backbone.model), atol=1e-2)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("transformers")])
def test_every_family_loses_a_block_in_the_middle(family: str) -> None:
    """On another batch than the one that `truncate` itself compares on."""
    backbone = build(family)
    head = SharedHead(backbone).eval()
    expected = readout_without(backbone, head, [0, 2], batch(backbone))
    torch.testing.assert_close(logits(backbone, truncate(backbone, head, [0, 2])), expected, rtol=1e-5, atol=1e-5)


def test_window_and_global_attention_follow_their_layers() -> None:
    """Without their entries the layers that stay would get the pattern of a model of that depth."""
    pattern = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    backbone = tiny_transformers.build(
        {"model_type": "gemma2", **DECODER, "num_hidden_layers": 4, "layer_types": pattern, "sliding_window": 2}
    )
    head = SharedHead(backbone).eval()
    model: Any = truncate(backbone, head, [0, 2, 3])
    assert model.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    expected = readout_without(backbone, head, [0, 2, 3], batch(backbone))
    torch.testing.assert_close(logits(backbone, model), expected, rtol=1e-5, atol=1e-5)
    usual = type(model)(type(model.config).from_dict({**model.config.to_dict(), "layer_types": None})).eval()
    usual.load_state_dict(model.state_dict())
    assert not torch.allclose(logits(backbone, usual), expected, atol=1e-3)


def test_qwens_window_starts_where_it_did() -> None:
    arguments = {
        "model_type": "qwen2",
        **DECODER,
        "use_sliding_window": True,
        "sliding_window": 2,
        "max_window_layers": 2,
    }
    backbone = tiny_transformers.build(arguments)
    model: Any = truncate(backbone, SharedHead(backbone), [0, 2])
    assert model.config.max_window_layers == 1
    assert model.config.layer_types == ["full_attention", "sliding_attention"]


def test_weights_with_an_entry_for_each_layer_keep_theirs() -> None:
    """timm's learned rotary frequencies are one tensor for all blocks."""
    backbone = test_vision.build("vit_small_patch16_rope_mixed_224", 32, {})
    head = SharedHead(backbone).eval()
    for kept in ([0, 1], [0, 2]):
        model: Any = truncate(backbone, head, kept)
        assert torch.equal(model.rope.freqs, backbone.model.rope.freqs[:, kept])
        expected = readout_without(backbone, head, kept, batch(backbone))
        torch.testing.assert_close(logits(backbone, model), expected, rtol=1e-5, atol=1e-5)


def test_a_block_that_knows_its_place_cannot_move() -> None:
    backbone = tiny_transformers.build({"model_type": "gpt2", **GPT2, "scale_attn_by_inverse_layer_idx": True})
    head = SharedHead(backbone).eval()
    torch.testing.assert_close(
        logits(backbone, truncate(backbone, head, 2)), readout(backbone, head, 1), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(UserError, match=r"with the layers 1, 3 does not give the readout.*depends on a block's place"):
        truncate(backbone, head, [0, 2])


def test_a_tied_language_model_with_separate_heads_is_untied() -> None:
    backbone = tiny_transformers.build(CAUSAL["GPT-2"], "language-modeling")
    shared, own = truncate(backbone, SharedHead(backbone), 2), truncate(backbone, separate(backbone), 2)
    assert isinstance(shared, PreTrainedModel)
    assert isinstance(own, PreTrainedModel)
    for model, tied in ((shared, True), (own, False)):
        assert model.config.tie_word_embeddings is tied
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


def test_the_model_is_a_copy() -> None:
    backbone = build("timm, ViT, class token")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = truncate(backbone, separate(backbone), 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_raw_readings_are_no_stock_models() -> None:
    backbone = build("timm, ViT, class token")
    head = SharedHead(backbone, norm="none").eval()
    with pytest.raises(UserError, match=r"SharedHead reads layer 2 raw .* no stock model does\. .* all 3 layers"):
        truncate(backbone, head, 2)
    found = logits(backbone, truncate(backbone, head, 3))
    torch.testing.assert_close(found, readout(backbone, head, 2), rtol=1e-5, atol=1e-5)


def test_what_is_no_librarys_model_is_refused() -> None:
    class OwnHead(Head):
        def logits(self, features: torch.Tensor, layers: Any) -> torch.Tensor:
            return features

    backbone = build("timm, ViT, class token")
    with pytest.raises(UserError, match="OwnHead does not say what it reads a layer with, which export asks for"):
        truncate(backbone, OwnHead(backbone), 2)
    plain = nn.Module()
    plain.num_layers = 3
    with pytest.raises(UserError, match="a backbone with a model to export, but got Module"):
        truncate(plain, SharedHead(backbone), 2)  # type: ignore[arg-type]


def test_layers_are_counted_or_listed_in_whatever_whole_numbers() -> None:
    counts: list[Any] = [2, np.int64(2), torch.tensor(2), [0, 1], (0, 1), range(2), np.arange(2), torch.tensor([0, 1])]
    for given in counts:
        kept = kept_layers(given, 3)
        assert kept == [0, 1]
        assert {type(layer) for layer in kept} == {int}
    wrong: list[Any] = [2.0, "2", None, [], [1], [0, 3], [0, -1], [0, 0], [1, 0], ["0"], [[0, 1]], [0, 0.5]]
    for given in wrong:
        with pytest.raises(UserError, match="Expected ascending layer numbers from 0 to at most 2, the first being 0"):
            kept_layers(given, 3)


def test_agreement_is_to_a_share_of_the_largest_logit() -> None:
    large, small = torch.tensor([100.0, 0.0]), torch.tensor([1e-3, 0.0])
    assert agree(large + 9e-4, large)
    assert not agree(large + 2e-3, large)
    assert agree(small + 9e-6, small)
    assert not agree(small + 2e-5, small)
    assert not agree(large, large[:1])
    assert not agree(large * float("nan"), large)
