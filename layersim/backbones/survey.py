"""Which families of timm and transformers layersim reads: a tiny model of each is built, and the backbone asked."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import timm
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from layersim.backbones.huggingface import TransformersBackbone
from layersim.backbones.vision import TimmBackbone
from layersim.errors import UserError, as_user_error, reason

Library = Literal["timm", "transformers"]
Use = Literal["images", "texts", "language model"]

_SIZES = {
    96: "hidden_size d_model n_embd dim embed_dim emb_dim d_embed embedding_size word_embed_proj_dim lru_width "
    "pooler_hidden_size projection_dim hidden_dim encoder_hidden_size linear_head_dim hidden_size_global",
    2: "window_size n_groups mamba_n_groups num_hidden_layers n_layer n_layers num_layers encoder_layers "
    "decoder_layers num_decoder_layers num_blocks num_key_value_heads num_kv_heads swa_num_key_value_heads "
    "multi_query_group_num num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "swa_num_attention_heads linear_num_key_heads linear_num_value_heads linear_num_heads index_n_heads mamba_n_heads",
    64: "image_size intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner dim_ff ffn_hidden_size "
    "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp",
    24: "head_dim d_kv d_head dim_head attention_head_dim kv_channels swa_head_dim",
    48: "mamba_d_head",
    12: "rotary_dim",
    8: "num_local_experts num_experts n_routed_experts moe_num_experts patch_size",
    16: "coordinate_size shape_size",
    99: "vocab_size encoder_hash_byte_group_vocab",
    1: "expand",
    0: "num_kv_shared_layers",
}
_SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
"""Sizes of a tiny model, by the names that configurations give them."""
_TIMM_SIZES = ("test", "atto", "femto", "pico", "nano", "xxs", "xxt", "xs", "tiny", "small", "mini")


@dataclass(frozen=True)
class Reading:
    """What became of one family: the reason why it is refused, None where it is read."""

    family: str
    use: Use
    refused: str | None


def survey(library: Library, names: Iterable[str] = ()) -> Iterator[Reading]:
    """Builds a tiny model of each family, or of those named alone, and tells which are read.

    Raises:
        UserError: a name that is no family of the library.
    """
    known = _timm_families() if library == "timm" else _transformers_families()
    names = list(names) or sorted(known)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{library} has no family {', '.join(unknown)} with a classifier or a causal language model.")
    for family in names:
        for use, build in known[family].items():
            yield Reading(family, use, _refusal(build))


def _refusal(build: Callable[[], object]) -> str | None:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            build()
        except UserError as error:
            return str(error)
        except Exception as error:  # a fault of ours, which the table is to show
            return f"FAULT: {type(error).__name__}: {reason(error)}"
    return None


def _timm_families() -> dict[str, dict[Use, Callable[[], object]]]:
    """timm's modules, each by what is likely its smallest architecture."""
    names = {module: timm.list_models(module=module) for module in timm.list_modules()}
    return {
        module: {"images": partial(_tiny_timm, min(known, key=_likely_size))}
        for module, known in names.items()
        if known
    }


def _tiny_timm(name: str) -> TimmBackbone:
    """Cut to two blocks where the architecture takes that, else in its own size."""
    try:
        return TimmBackbone(name, num_classes=3, model_args={"depth": 2})
    except UserError:
        return TimmBackbone(name, num_classes=3)


def _likely_size(name: str) -> tuple[int, int]:
    parts = name.split("_")
    return min((_TIMM_SIZES.index(part) for part in parts if part in _TIMM_SIZES), default=len(_TIMM_SIZES)), len(name)


def _transformers_families() -> dict[str, dict[Use, Callable[[], object]]]:
    families: dict[str, dict[Use, Callable[[], object]]] = {}
    mappings: dict[Use, Any] = {
        "texts": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "images": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "language model": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    for use, mapping in mappings.items():
        for family in mapping:
            families.setdefault(family, {})[use] = partial(_tiny, family, use)
    return families


def _tiny(family: str, use: Use) -> TransformersBackbone:
    """Raises UserError where the family cannot be built or read."""
    with as_user_error(f"transformers cannot make a configuration of {family}"):
        sizes = _sizes(CONFIG_MAPPING[family]())
    language = use == "language model"
    if language and "is_decoder" in sizes:
        sizes["is_decoder"] = True
    return TransformersBackbone(
        task="language-modeling" if language else "classification",
        pretrained=False,
        num_classes=None if language else 3,
        config_args={"model_type": family, **sizes},
    )


def _sizes(config: Any) -> dict[str, Any]:
    """Those entries of a configuration that make a model tiny, with those of the configurations inside of it."""
    whole = config.to_dict()
    layers = {value for key, value in whole.items() if _SMALL.get(key) == 2 and "layer" in key}
    sizes: dict[str, Any] = {}
    for key, value in whole.items():
        if hasattr(part := vars(config).get(key), "to_dict"):
            sizes[key] = _sizes(part)
        elif key == "head_dim" and "qk_rope_head_dim" in whole:
            continue  # another name for it
        elif key == "num_key_value_heads" and "qk_rope_head_dim" in whole:
            sizes[key] = _SMALL["num_attention_heads"]
        elif key in _SMALL and (value is None or (isinstance(value, int) and value > _SMALL[key])):
            sizes[key] = _SMALL[key]
        elif isinstance(value, list) and len(value) in layers and "depths" not in whole:
            sizes[key] = [value[0], value[-1]]
        elif key.endswith("token_id") and isinstance(value, int | None):
            sizes[key] = {"pad": 0, "bos": 1, "eos": 2}.get(key.split("_")[0], 3)
        elif key == "is_decoder":
            sizes[key] = value
        elif key == "default_language":
            sizes[key] = whole["languages"][0]
    if whole.get("model_type") == "t5":
        sizes["decoder_start_token_id"] = 0
    return sizes
