"""transformers backbones of families that nobody named: read by watching the model run, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersim.backbones import TransformersBackbone
from layersim.backbones.logit_path import _Search
from layersim.backbones.tiny_input import check_last_token
from layersim.errors import UserError
from tests.backbones.tiny_transformers import (
    CLASSIFIERS,
    DECODER,
    ENCODER,
    GPT2,
    VISION,
    L,
    batch_for,
    build,
    read,
    stock,
)

ELECTRA = {"model_type": "electra", **ENCODER, "embedding_size": 12}
BLOOM = {"model_type": "bloom", "hidden_size": 24, "n_layer": L, "n_head": 2, "vocab_size": 50, "pad_token_id": 0}
BART = {"model_type": "bart", "d_model": 24, "vocab_size": 50, "encoder_layers": 2, "decoder_layers": L}
BART |= {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("attention_heads", 2), ("ffn_dim", 32))
}
T5 = {"model_type": "t5", "d_model": 24, "num_layers": L, "num_heads": 2, "d_ff": 32, "d_kv": 12, "vocab_size": 50}
T5 |= {"decoder_start_token_id": 0}
XLNET = {"model_type": "xlnet", "d_model": 24, "n_layer": L, "n_head": 2, "d_inner": 32, "vocab_size": 50}
NESTED = {"vision_config": VISION | {"intermediate_size": 32}}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "ELECTRA": (ELECTRA, "classification"),
    "XLM-RoBERTa": ({"model_type": "xlm-roberta", **ENCODER}, "classification"),
    "MPNet": ({"model_type": "mpnet", **ENCODER}, "classification"),
    "BLOOM": (BLOOM, "language-modeling"),
    "BLOOM, classifier": (BLOOM, "classification"),
    "BERT as a decoder": ({"model_type": "bert", **ENCODER, "is_decoder": True}, "language-modeling"),
    "BART": (BART, "classification"),
    "BART's decoder": (BART | {"encoder_layers": L}, "language-modeling"),
    "T5, whose base model wants the decoder's texts": (T5, "classification"),
    "XLNet, blocks with the sequence first": (XLNET, "classification"),
    "Granite, logits divided": ({"model_type": "granite", **DECODER, "logits_scaling": 3.0}, "language-modeling"),
    "Cohere, logits multiplied": ({"model_type": "cohere", **DECODER, "logit_scale": 0.0625}, "language-modeling"),
    "CLIP": ({"model_type": "clip", **NESTED}, "classification"),
    "SigLIP": ({"model_type": "siglip", **NESTED}, "classification"),
    "BEiT, relative positions": (
        {"model_type": "beit", **VISION, "intermediate_size": 32, "use_relative_position_bias": True},
        "classification",
    ),
    "DeiT": ({"model_type": "deit", **VISION, "intermediate_size": 32}, "classification"),
    "Longformer, padded to its window": (
        {"model_type": "longformer", **ENCODER, "attention_window": [4] * L, "pad_token_id": 0},
        "classification",
    ),
}


def expected_of(backbone: TransformersBackbone, batch: dict[str, Tensor]) -> Tensor:
    """The library's own logits; XLNet looks at the last token even where it is padding, so its texts go alone."""
    if backbone.model.config.model_type != "xlnet":
        return stock(backbone, batch)
    rows = [{key: value[n : n + 1, :length] for key, value in batch.items()} for n, length in enumerate((6, 3, 4))]
    return torch.cat([stock(backbone, row) for row in rows])


@pytest.mark.parametrize("family", OTHERS)
def test_families_that_nobody_named_are_read(family: str) -> None:
    """Blocks, norm, pooling and classifier are found by watching the model run."""
    backbone = build(*OTHERS[family])
    batch = batch_for(backbone)
    if backbone.model.config.is_encoder_decoder:  # looks at the end of the text
        batch["input_ids"][torch.arange(3), torch.tensor([5, 2, 3])] = backbone.model.config.eos_token_id
    logits = read(backbone, batch)
    assert len(logits) == L
    torch.testing.assert_close(logits[-1], expected_of(backbone, batch), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], logits[-1], atol=1e-2)


@pytest.mark.filterwarnings("ignore:dinov2_with_registers comes without")
def test_registers_are_left_out_of_a_mean_over_patches() -> None:
    backbone = build({"model_type": "dinov2_with_registers", **VISION, "num_register_tokens": 2})
    assert (backbone.layout.pooling, backbone.layout.prefix) == ("class and mean", 3)
    torch.testing.assert_close(read(backbone, batch_for(backbone))[-1], stock(backbone, batch_for(backbone)))


def test_a_text_as_long_as_it_likes() -> None:
    """XLNet's -1 positions are no bound."""
    backbone = build(XLNET)
    assert backbone.max_positions is None
    texts = torch.full((2, 70), 7)
    assert backbone({"input_ids": texts, "attention_mask": torch.ones_like(texts)}).values.shape == (L, 2, 24)


def test_a_single_layer_is_read() -> None:
    for family in ("BERT", "Llama", "ViT"):
        count = "n_layer" if "n_layer" in CLASSIFIERS[family] else "num_hidden_layers"
        backbone = build(CLASSIFIERS[family] | {count: 1})
        batch = batch_for(backbone)
        logits = read(backbone, batch)
        assert len(logits) == 1
        torch.testing.assert_close(logits[0], stock(backbone, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_type": "bert", **ENCODER, "num_hidden_layers": 0}, "no list of blocks.*at least one layer"),
        ({"model_type": "eurobert", **DECODER}, "cannot follow .* from its blocks.*blocks, final_norm, classifier"),
        ({"model_type": "squeezebert", **ENCODER, "embedding_size": 24}, "no list of blocks that put out tokens"),
    ],
)
def test_a_family_that_cannot_be_followed_names_the_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(arguments)


@pytest.mark.parametrize(
    ("arguments", "task", "paths", "message"),
    [
        (BLOOM, "language-modeling", {"final_norm": "h.0.self_attention.dense"}, "the model's own logits.*final_norm"),
        (BLOOM, "classification", {"pooling": "first"}, "do not give the model's own logits.*pooling"),
        (ELECTRA, "classification", {"blocks": "encoder.block"}, r"nothing at 'encoder\.block'.*blocks"),
        (ELECTRA, "classification", {"blocks": "encoder"}, "Expected a list of blocks at 'encoder'"),
        (ELECTRA, "classification", {"final_norm": "norm"}, "nothing at 'norm'.*final_norm"),
        (ELECTRA, "classification", {"classifier": "top"}, "nothing at 'top'.*classifier"),
    ],
)
def test_paths_that_lead_astray_are_refused(
    arguments: dict[str, Any], task: str, paths: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(arguments, task, **paths)


def test_a_classifier_of_zeros_does_not_tell_which_token_it_looks_at(tmp_path: Path) -> None:
    """It must not be guessed; where the user names it, it is taken."""
    model = build(CLASSIFIERS["Llama"]).model
    nn.init.zeros_(model.score.weight)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"logits do not depend on the tokens.*pooling"):
        TransformersBackbone(str(tmp_path), task="classification")
    named = {"final_norm": "norm", "classifier": "score", "pooling": "last"}
    backbone = TransformersBackbone(str(tmp_path), task="classification", **named).eval()  # type: ignore[arg-type]
    values = backbone(batch_for(backbone)).values
    torch.testing.assert_close(values, build(CLASSIFIERS["Llama"])(batch_for(backbone)).values)


@pytest.mark.parametrize("family", [name for name in OTHERS if not name.startswith("XLNet")])
def test_half_precision_is_explained_alike(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to three digits must not make one choice of tokens look like another; and where it makes many tensors
    look like one another, no dead end is walked into twice."""
    asked, gap = [], _Search._gap
    monkeypatch.setattr(_Search, "_gap", lambda *told: asked.append(tuple(map(id, told[1:]))) or gap(*told))
    arguments, task = OTHERS[family]
    options: dict[str, Any] = {"task": task, "pretrained": False, "config_args": arguments}
    exact, half = TransformersBackbone(**options), TransformersBackbone(**options, dtype="bfloat16")
    assert str(half.layout) == str(exact.layout)
    assert len(asked) <= 4 * len(set(asked))


@pytest.mark.parametrize(
    ("config", "read", "other"),
    [
        ({**BART, "model_type": "mbart"}, [5, 7, 2], [5, 2, 7]),
        (
            GPT2 | {"model_type": "gpt2", "pad_token_id": 2, "eos_token_id": 2},
            [5, 7, 9],
            [5, 7, 2],
        ),
    ],
)
def test_texts_of_which_the_model_looks_at_another_token_are_refused(
    config: dict[str, Any], read: list[int], other: list[int]
) -> None:
    """An end of text that a language follows; one that is the padding too."""
    backbone = build(config, "classification")
    read_as, refused = ({"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, 3)} for row in (read, other))
    check_last_token(backbone, lambda: read_as)
    with pytest.raises(UserError, match=r"on these texts: .* Let the tokenizer end a text with the token"):
        check_last_token(backbone, lambda: refused)
