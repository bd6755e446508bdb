"""What a transformers configuration says layer by layer is cut along with the layers, or the export refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from layersim.errors import UserError
from layersim.export import export_as
from layersim.export.transformers_library import cut_entries
from layersim.heads import SharedHead
from tests.backbones.test_other_families import OTHERS
from tests.backbones.tiny_transformers import DECODER, build
from tests.export.exported import readout
from tests.export.test_stock import loaded, logits

KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
FOUR = DECODER | {"num_hidden_layers": 4}
NEO = {
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 2,
    "vocab_size": 50,
    "attention_types": [[["global", "local"], 2]],
}
BY_LAYER: dict[str, dict[str, Any]] = {
    "GPT-Neo": {"model_type": "gpt_neo", **NEO, "window_size": 2, "pad_token_id": 0},
    "Mistral, a window": {"model_type": "mistral", **FOUR, "sliding_window": 2},
    "Gemma 2, windows": {"model_type": "gemma2", **FOUR, "sliding_window": 2, "layer_types": KINDS},
    "Qwen2, windows": {
        "model_type": "qwen2", **FOUR, "use_sliding_window": True, "sliding_window": 2, "layer_types": KINDS
    },
    "SmolLM3": {"model_type": "smollm3", **FOUR, "no_rope_layers": [1, 0, 1, 0]},
    "Qwen3-MoE": {
        "model_type": "qwen3_moe", **FOUR, "mlp_only_layers": [0, 2], "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "Cohere 2": {"model_type": "cohere2", **FOUR, "sliding_window": 2, "layer_types": KINDS},
    "Granite": {"model_type": "granite", **FOUR, "logits_scaling": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("layers", [2, [0, 2, 3]])
@pytest.mark.parametrize("family", BY_LAYER)
def test_language_models_whose_layers_differ_are_cut(family: str, layers: Any, tmp_path: Path) -> None:
    """The stock model gives the readout, or, without a block in between, has been compared or refused by us."""
    backbone = build(BY_LAYER[family], "language-modeling")
    head = SharedHead(backbone).eval()
    export_as("stock", backbone, head, layers, tmp_path / "cut")
    model = loaded(tmp_path / "cut")
    assert model.config.num_hidden_layers == (2 if layers == 2 else 3)
    if layers == 2:
        torch.testing.assert_close(logits(backbone, model), readout(backbone, head, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["CLIP", "SigLIP", "DeiT", "BART", "XLNet, blocks with the sequence first"])
def test_classifiers_of_other_families_are_cut(family: str, tmp_path: Path) -> None:
    backbone = build(*OTHERS[family])
    head = SharedHead(backbone).eval()
    export_as("stock", backbone, head, 2, tmp_path / "cut")
    model = loaded(tmp_path / "cut")
    inputs = backbone.tiny_batch
    with torch.no_grad():
        expected = head.logits(backbone(inputs).values, range(backbone.num_layers))[1]
        key = "pixel_values" if backbone.input_size else "input_ids"
        inputs = {key: inputs["image"]} if backbone.input_size else inputs
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


def test_entries_by_layer() -> None:
    entries = {
        "layer_types": ["a", "b", "c", "d"],
        "no_rope_layers": [1, 0, 0, 1],
        "moe_layers": [1, 3],
        "full_attn_idxs": [0, 2],
        "per_layer_config": {"01": {"head_dim": 2}, "03": {"head_dim": 4}},
        "max_window_layers": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "architectures": ["a", "b", "c", "d"],
    }
    assert cut_entries(entries, [0, 1, 3], 4) == {
        "layer_types": ["a", "b", "d"],
        "no_rope_layers": [1, 0, 1],
        "moe_layers": [1, 2],
        "full_attn_idxs": [0],
        "per_layer_config": {"01": {"head_dim": 2}, "02": {"head_dim": 4}},
        "max_window_layers": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "architectures": ["a", "b", "c", "d"],
    }


MIXTRAL = {"model_type": "mixtral", **DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
UNTRACED = {
    "BART counts the ends of its texts": ("torch", OTHERS["BART"], "torch.export cannot follow"),
    "Mixtral's experts are the data's choice": ("onnx", (MIXTRAL, "language-modeling"), "written as ONNX"),
}


@pytest.mark.parametrize("case", UNTRACED)
def test_what_cannot_be_traced_is_refused_in_one_line_with_the_way_out(case: str, tmp_path: Path) -> None:
    form, family, said = UNTRACED[case]
    backbone = build(*family)
    with pytest.raises(UserError, match=f"{said}.*--format stock") as error:
        export_as(form, backbone, SharedHead(backbone).eval(), 2, tmp_path / "program")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "program").exists()
