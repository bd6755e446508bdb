"""Models of transformers."""

import copy
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer

from layersim.backbones import TransformersBackbone
from layersim.backbones.families import at
from layersim.backbones.probe import tiny_batch
from layersim.backbones.tokens import predicting_tokens
from layersim.errors import UserError
from layersim.export.library import Library

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_DERIVED = ("stage_names", "out_features", "out_indices")
"""Entries of a configuration that follow from the number of layers, and that only a feature extractor reads."""

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = ("*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken")
"""Files of a folder by which it has an image processor, or a tokenizer of any kind."""


class TransformersLibrary(Library):
    """A folder for `from_pretrained`, with the tokenizer or image processor where the model came with one."""

    name = "transformers"

    def __init__(self, backbone: TransformersBackbone) -> None:
        self.backbone = backbone
        kind = type(backbone.model).__name__
        self.usage = f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained(".")\n'

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self.backbone.model
        return model

    @property
    def blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = at(self.backbone.model.base_model, self.backbone.layout.blocks, "blocks")
        return blocks

    def untrained(self, kept: Sequence[int], *, tied: bool) -> nn.Module:
        own = self.backbone.model
        config = self._configuration(kept)
        if not tied:
            config.tie_word_embeddings = False
        model: Any = type(own)._from_config(config, dtype=own.dtype)
        if own.can_generate():
            model.generation_config = copy.deepcopy(own.generation_config)
        model = model.to(own.device)
        assert isinstance(model, nn.Module)
        return model

    def sources(self, kept: Sequence[int]) -> list[int]:
        """The fewest groups of layers with equal weights (ALBERT) that give every kept layer its own.

        As many groups as layers always do; all other families have no fewer blocks than layers, and no other choice.
        """
        groups = [_group(layer, self.backbone.num_layers, len(self.blocks)) for layer in kept]
        for count in range(1, len(kept) + 1):
            pairs = {(_group(place, len(kept), count), group) for place, group in enumerate(groups)}
            if len(pairs) == count:
                return [group for _, group in sorted(pairs)]
        raise AssertionError("as many groups as layers do")

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.backbone.input_size:
            return {"pixel_values": batch["image"]}
        accepted = signature(self.backbone.model.forward).parameters
        return {key: batch[key] for key in _INPUTS if key in batch and key in accepted}

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        logits: Tensor = model(**self.inputs(batch)).logits
        return predicting_tokens(batch)(logits) if self.backbone.task == "language-modeling" else logits

    def probe(self) -> dict[str, Tensor]:
        return tiny_batch(self.backbone.model, self.backbone.task, self.backbone.input_size)

    def save(self, model: Any, folder: Path, class_names: Sequence[str] | None) -> None:
        if class_names and self.backbone.task == "classification":
            model.config.id2label = dict(enumerate(class_names))
            model.config.label2id = {name: number for number, name in enumerate(class_names)}
        model.save_pretrained(folder)
        if (name := self.backbone.tokenizer_name) and not self._is_alone(Path(name)):
            companion = AutoImageProcessor if self.backbone.input_size else AutoTokenizer
            what = "image processor" if self.backbone.input_size else "tokenizer"
            try:
                loaded = companion.from_pretrained(name, **self.backbone.hub_options)
            except (OSError, ValueError, ImportError) as error:
                raise UserError(
                    f"The {what} of {name}, which belongs in the export, cannot be opened: "
                    f"{' '.join(str(error).split())[:300]} To export without it, load the model from a local folder "
                    "that has none."
                ) from error
            loaded.save_pretrained(folder)

    def _is_alone(self, source: Path) -> bool:
        """Whether the model came from a local folder without a tokenizer or image processor."""
        companions = _PROCESSORS if self.backbone.input_size else _TOKENIZERS
        return source.is_dir() and not any(file for pattern in companions for file in source.glob(pattern))

    def load(self, folder: Path) -> nn.Module:
        own = self.backbone.model
        model: nn.Module = type(own).from_pretrained(folder, dtype=own.dtype).to(own.device)
        return model

    def _configuration(self, kept: Sequence[int]) -> Any:
        """The model's configuration for the kept layers: their number, and their entries in lists by layer."""
        config = self.backbone.model.config
        whole = getattr(config, "num_hidden_layers", None)
        if whole != self.backbone.num_layers:
            raise UserError(
                f"{self.backbone.name} ran {self.backbone.num_layers} blocks, but its configuration says "
                f"num_hidden_layers {whole}: layersim cannot write a configuration for fewer."
            )
        entries = {key: value for key, value in config.to_dict().items() if key not in _DERIVED}
        for key, listed in entries.items():
            if key.endswith("layer_types") and isinstance(listed, list):
                entries[key] = [listed[layer] for layer in kept]
        if "max_window_layers" in entries:  # Qwen2: layers from this number on see a window alone
            entries["max_window_layers"] = sum(layer < entries["max_window_layers"] for layer in kept)
        if "num_hidden_groups" in entries:
            entries["num_hidden_groups"] = len(self.sources(kept))
        entries[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
        return type(config).from_dict(entries)


def _group(layer: int, layers: int, groups: int) -> int:
    """The group of a layer of ALBERT, in transformers' own floating point."""
    return int(layer / (layers / groups))
