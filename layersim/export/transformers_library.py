"""Models of transformers."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from layersim.backbones.pretrained import PROCESSORS, shortened
from layersim.backbones.tokens import predicting_tokens
from layersim.errors import UserError, as_user_error
from layersim.export.library import Library
from layersim.export.serving import Serving

_DERIVED = ("stage_names", "out_features", "out_indices")
"""Entries of a configuration that follow from the number of layers, and that only a feature extractor reads."""

_NOT_BY_LAYER = ("architectures", "pos_att_type")
"""Lists that may by chance be as long as there are layers."""
_WHOLE = "Export all layers, or choose another model."
_TOKENIZERS = ("*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken")
"""Files of a folder by which it has an image processor, or a tokenizer of any kind."""


class TransformersLibrary(Library):
    """A folder for `from_pretrained`, with the tokenizer or image processor where the model came with one."""

    name = "transformers"

    @property
    def usage(self) -> str:
        kind = type(self.model).__name__
        return f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained(".")\n'

    def untrained(self, kept: Sequence[int], *, tied: bool) -> nn.Module:
        own = self.backbone.model
        config = self._configuration(kept)
        if not tied:
            config.tie_word_embeddings = False
        with as_user_error(f"transformers cannot build {self.backbone.name} with {len(kept)} layers", _WHOLE):
            model: Any = type(own)._from_config(config, dtype=own.dtype)
        if own.can_generate():
            model.generation_config = copy.deepcopy(own.generation_config)
        return model.to(own.device)

    def sources(self, kept: Sequence[int]) -> list[int]:
        """The fewest groups of layers with equal weights (ALBERT) that give every kept layer its own.

        As many groups as layers always do; all other families have no fewer blocks than layers, and no other choice.
        """
        groups = [_group(layer, self.backbone.num_layers, len(self.backbone.blocks)) for layer in kept]
        for count in range(1, len(kept) + 1):
            pairs = {(_group(place, len(kept), count), group) for place, group in enumerate(groups)}
            if len(pairs) == count:
                return [group for _, group in sorted(pairs)]
        raise AssertionError("as many groups as layers do")

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        logits = self.output(model, batch)
        return predicting_tokens(batch)(logits) if self.backbone.task == "language-modeling" else logits

    def save(self, model: Any, folder: Path, serving: Serving) -> None:
        if (names := serving.class_names) and self.backbone.task == "classification":
            model.config.id2label = dict(enumerate(names))
            model.config.label2id = {name: number for number, name in enumerate(names)}
        with as_user_error("transformers cannot write the model"):
            model.save_pretrained(folder)
        if (name := self.backbone.tokenizer_name) and not self._is_alone(Path(name)):
            companion = transformers.AutoImageProcessor if self.backbone.input_size else transformers.AutoTokenizer
            what = "image processor" if self.backbone.input_size else "tokenizer"
            with as_user_error(
                f"The {what} of {name}, which belongs in the export, cannot be opened",
                "To export without it, load the model from a local folder that has none.",
                why=shortened,
            ):
                opened = companion.from_pretrained(name, **self.backbone.hub_options)
                for key, value in serving.preprocessing.items():
                    if key in ("mean", "std"):
                        setattr(opened, f"image_{key}", value)
                opened.save_pretrained(folder)

    def _is_alone(self, source: Path) -> bool:
        """Whether the model came from a local folder without a tokenizer or image processor."""
        companions = PROCESSORS if self.backbone.input_size else _TOKENIZERS
        return source.is_dir() and not any(file for pattern in companions for file in source.glob(pattern))

    def load(self, folder: Path, like: nn.Module) -> nn.Module:
        own = self.backbone.model
        with as_user_error("transformers cannot open the export again", "Nothing was exported."):
            return type(own).from_pretrained(folder, dtype=own.dtype).to(own.device)

    def _configuration(self, kept: Sequence[int]) -> Any:
        """The model's configuration for the kept layers, in the part of it that counts them."""
        config = self.backbone.model.config
        entries = {key: value for key, value in config.to_dict().items() if key not in _DERIVED}
        inner = config.vision_config if self.backbone.input_size and "vision_config" in entries else config
        inner = inner if self.backbone.input_size else config.get_text_config()
        part = next((key for key, value in vars(config).items() if value is inner), None)
        counter = inner.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        if "decoder" in self.backbone.layout.blocks and inner.to_dict().get("decoder_layers"):
            counter = "decoder_layers"
        whole = getattr(inner, counter, None)
        if whole != self.backbone.num_layers:
            raise UserError(
                f"{self.backbone.name} ran {self.backbone.num_layers} blocks, but its configuration says "
                f"{counter} {whole}: layersim cannot write a configuration for fewer. {_WHOLE}"
            )
        own = cut_entries(entries[part] if part else entries, kept, self.backbone.num_layers)
        if "num_hidden_groups" in own:
            own["num_hidden_groups"] = len(self.sources(kept))
        own[counter] = len(kept)
        with as_user_error(f"transformers has no {self.backbone.name} with {len(kept)} layers", _WHOLE, why=shortened):
            return type(config).from_dict({**entries, part: own} if part else own)


def cut_entries(entries: Mapping[str, Any], kept: Sequence[int], layers: int) -> dict[str, Any]:
    """A configuration's entries for the kept of L `layers`: in lists by layer theirs, layers' numbers counted anew.

    What a family computes from a layer's number otherwise is not seen here, but in the logits of the model.
    """
    places = {layer: place for place, layer in enumerate(kept)}
    cut = dict(entries)
    for key, value in entries.items():
        if key in ("max_window_layers", "first_k_dense_replace") and value:  # the first so many layers differ
            cut[key] = sum(layer < value for layer in kept)
        elif isinstance(value, dict) and value and all(str(number).isdigit() for number in value) and "layer" in key:
            width = len(next(iter(value)))
            cut[key] = {f"{places[int(n)]:0{width}}": own for n, own in value.items() if int(n) in places}
        elif not isinstance(value, list | tuple) or key in _NOT_BY_LAYER:
            continue
        elif value and all(type(number) is int for number in value) and list(value) == sorted(set(value)):
            if "layer" in key or "idx" in key:
                cut[key] = [places[layer] for layer in value if layer in places]
        elif len(value) == layers:
            cut[key] = [value[layer] for layer in kept]
    if "attention_types" in cut:  # GPT-Neo's short form of its attention_layers
        cut["attention_types"] = [[cut["attention_layers"], 1]]
    return cut


def _group(layer: int, layers: int, groups: int) -> int:
    """The group of a layer of ALBERT, in transformers' own floating point."""
    return int(layer / (layers / groups))
