"""transformers models of every family we name, small enough to be built in a test."""

from typing import Any

import torch
from torch import Tensor, nn

from layersim.backbones import TransformersBackbone
from layersim.heads import SharedHead

L = 3
ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": L,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
DECODER = ENCODER | {"num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": L,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
GPT2 = {"n_embd": 24, "n_layer": L, "n_head": 2, "vocab_size": 50, "n_positions": 40, "pad_token_id": 0}
OPT = ENCODER | {"ffn_dim": 32, "word_embed_proj_dim": 24, "pad_token_id": 0}
OPT.pop("intermediate_size")
DEBERTA = ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
MODERNBERT = ENCODER | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

ENCODERS: dict[str, dict[str, Any]] = {
    "BERT": {"model_type": "bert", **ENCODER},
    "RoBERTa": {"model_type": "roberta", **ENCODER},
    "DistilBERT": {"model_type": "distilbert", **ENCODER, "hidden_dim": 32},
    "ALBERT": {"model_type": "albert", **ENCODER, "embedding_size": 12},
    "ALBERT with two groups of two": {"model_type": "albert", **ENCODER, "num_hidden_groups": 2, "inner_group_num": 2},
    "DeBERTa-v2": {"model_type": "deberta-v2", **DEBERTA},
    "DeBERTa-v2 with a convolution": {"model_type": "deberta-v2", **DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"},
    "ModernBERT": {"model_type": "modernbert", **MODERNBERT},
    "ModernBERT, mean": {"model_type": "modernbert", **MODERNBERT, "classifier_pooling": "mean"},
}
ENCODERS["DistilBERT"].pop("intermediate_size")
IMAGES: dict[str, dict[str, Any]] = {
    "ViT": {"model_type": "vit", **VISION, "intermediate_size": 32},
    "DINOv2": {"model_type": "dinov2", **VISION},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "GPT-2": {"model_type": "gpt2", **GPT2},
    "GPT-NeoX": {"model_type": "gpt_neox", **ENCODER, "pad_token_id": 0},
    "OPT": {"model_type": "opt", **OPT},
    "OPT, projected, norms behind": {
        "model_type": "opt",
        **OPT,
        "word_embed_proj_dim": 12,
        "do_layer_norm_before": False,
    },
    "Llama": {"model_type": "llama", **DECODER},
    "Qwen2": {"model_type": "qwen2", **DECODER},
    "Mistral": {"model_type": "mistral", **DECODER},
    "Gemma": {"model_type": "gemma", **DECODER},
    "Gemma 2, softcapped": {"model_type": "gemma2", **DECODER, "final_logit_softcapping": 3.0},
}
CLASSIFIERS = ENCODERS | IMAGES | CAUSAL


def build(arguments: dict[str, Any], task: Any = "classification", **options: Any) -> TransformersBackbone:
    torch.manual_seed(0)
    classes = 7 if task == "classification" else None
    backbone = TransformersBackbone(
        task=task, pretrained=False, num_classes=classes, config_args=dict(arguments), **options
    )
    for parameter in backbone.parameters():  # constant biases and norms would hide mistakes
        nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


def batch_for(backbone: TransformersBackbone, padding: str = "right") -> dict[str, Tensor]:
    """Three texts of 6, 3 and 4 tokens padded on one side, or three images."""
    generator = torch.Generator().manual_seed(1)
    if backbone.input_size:
        return {"image": torch.randn(3, *backbone.input_size, generator=generator)}
    lengths = torch.tensor([6, 3, 4]).unsqueeze(1)
    places = torch.arange(6) if padding == "right" else torch.arange(6).flip(0)
    mask = (places < lengths).long()
    texts = torch.randint(5, 50, (3, 6), generator=generator)
    padding_id = backbone.model.config.pad_token_id or 0
    return {"input_ids": texts.where(mask > 0, torch.tensor(padding_id)), "attention_mask": mask}


def stock(backbone: TransformersBackbone, batch: dict[str, Tensor]) -> Tensor:
    """The library's own logits: of each sample, or of every token that is no padding."""
    with torch.no_grad():
        if "image" in batch:
            return backbone.model(pixel_values=batch["image"]).logits
        logits = backbone.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[batch["attention_mask"] > 0] if backbone.task == "language-modeling" else logits


def read(backbone: TransformersBackbone, batch: dict[str, Tensor]) -> Tensor:
    """(L, N, C) logits of the shared head."""
    with torch.no_grad():
        return SharedHead(backbone).logits(backbone(batch).values, range(backbone.num_layers))
