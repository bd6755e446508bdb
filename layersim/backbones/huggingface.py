"""Hugging Face transformers models as backbones."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.backbones.classifiers import Chain
from layersim.backbones.families import OPTIONS, Task, at, layout_of
from layersim.backbones.lora import Lora, adapt
from layersim.backbones.passage import Passage, watched
from layersim.backbones.pretrained import configuration, image_config, trained, untrained
from layersim.backbones.probe import check_causal, check_logits, check_widths, tiny_batch
from layersim.backbones.tokens import pooled, predicting_tokens
from layersim.errors import UserError
from layersim.outputs import LayerFeatures
from layersim.packaged import model_name

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class TransformersBackbone(Backbone):
    """A transformers model: text or image classifier, or causal language model.

    Known are BERT, RoBERTa, DistilBERT, ALBERT, DeBERTa-v2, ModernBERT, ViT, DINOv2, GPT-2, GPT-NeoX, OPT, Llama,
    Qwen2, Mistral, Gemma and Gemma 2; any other family with blocks of one width works by naming paths. Features are the
    blocks' outputs before the final norm, caught by hooks while the model's own forward runs, so that dropout is as
    active in training as in the model itself. On construction a tiny input is passed through, to make sure that the
    shared head at the last layer gives the model's own logits.

    Args:
        name_or_path: a name on the hub, a local folder, or `package:PACKAGE/FOLDER` for one inside an installed
            package; None to build from `config_args` alone.
        task: `classification` of texts or images; `language-modeling`: prediction of each next token.
        pretrained: load weights; otherwise they are random.
        num_classes: C of a classifier; the configuration's own where None. A checkpoint without classifier gets a new
            one, with a warning.
        revision: branch, tag or commit on the hub.
        dtype: of the weights: float32 where None, `auto` for the checkpoint's own.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2` …; transformers' choice where None.
        trust_remote_code: run code that comes with the model.
        config_args: overrides of the configuration, such as `num_hidden_layers`; with `name_or_path` None also
            `model_type`, the family.
        grad_checkpointing: recompute blocks in the backward pass, to save memory.
        lora: train low-rank adapters in the blocks in place of their weights, and the head; needs the extra `lora`.
        blocks: where a family that is not known keeps its blocks, a path in the base model such as `encoder.layer`.
        final_norm: its norm between the last block and the classifier, a path in the base model.
        classifier: its classifier, a path in the whole model, or several to go through in turn; an activation that the
            model calls as a function is named as in `torch.nn`.
        pooling: the token that its text classifier looks at.

    Raises:
        UserError: a model that cannot be fetched, opened, or read; an option that does not fit it.
    """

    def __init__(
        self,
        name_or_path: str | None = None,
        *,
        task: Task,
        pretrained: bool = True,
        num_classes: int | None = None,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        config_args: dict[str, Any] | None = None,
        grad_checkpointing: bool = False,
        lora: Lora | None = None,
        blocks: str | None = None,
        final_norm: str | None = None,
        classifier: str | list[str] | None = None,
        pooling: Literal["first", "last", "mean"] | None = None,
    ) -> None:
        super().__init__()
        if pretrained and name_or_path is None:
            raise UserError("Expected name_or_path, whose weights to load. Set it, or pretrained: false.")
        if name_or_path:
            name_or_path = model_name(name_or_path)
        hub = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
        self.hub_options: dict[str, Any] = hub  # what else to fetch of the model, such as its tokenizer, by
        config = configuration(name_or_path, config_args or {}, num_classes, task, hub)
        options: dict[str, Any] = {"dtype": dtype or "float32", "trust_remote_code": trust_remote_code}
        if attn_implementation:
            options["attn_implementation"] = attn_implementation
        fresh: set[str] = set()
        if pretrained and name_or_path:
            options["revision"] = hub["revision"]
            self.model, fresh = trained(name_or_path, config, task, options)
        else:
            self.model = untrained(config, task, options)
        config = self.model.config
        self.name = name_or_path or config.model_type
        self.tokenizer_name = name_or_path  # where data modules find the model's own tokenizer
        self.task = task
        self.reads_tokens = task == "language-modeling"
        steps = (classifier,) if isinstance(classifier, str) else classifier and tuple(classifier)
        self.layout = layout_of(
            self.model, task, blocks=blocks, final_norm=final_norm, classifier=steps, pooling=pooling
        )
        self._resolve(config)
        self._warn_of_fresh(fresh)
        if self._images:
            self.data_config = image_config(name_or_path, config, hub, "image_size" in (config_args or {}))
            self.input_size = self.data_config["input_size"]
        self.num_classes = config.vocab_size if task == "language-modeling" else config.num_labels
        if lora:
            adapt(self.model, self.blocks, [self.final_norm, self.classifier], lora)
        self._check_logits()
        if grad_checkpointing:
            self._checkpoint_blocks()

    def _resolve(self, config: Any) -> None:
        """Finds the layout's parts in the model."""
        base, layout = self.model.base_model, self.layout
        language = self.task == "language-modeling"
        cap = getattr(config, "final_logit_softcapping", None) if language else None
        self._chain = Chain(self.model, layout.language_head if language else layout.classifier, cap)
        if not isinstance(blocks := self.blocks, nn.ModuleList):
            raise UserError(
                f"Expected a list of blocks at {layout.blocks!r}, but found {type(blocks).__name__}. {OPTIONS}"
            )
        if layout.final_norm:
            at(base, layout.final_norm, "final_norm")
        for name, parameter in base.named_parameters():
            if name in layout.unused:
                parameter.requires_grad_(False)
        if getattr(config, "layerdrop", 0):
            raise UserError(
                "The model drops whole blocks in training (layerdrop), and a dropped block has no features. "
                "Set the backbone's config_args: {layerdrop: 0.0}."
            )
        self._images = self.model.main_input_name == "pixel_values"
        accepted = signature(base.forward).parameters
        self._inputs = [key for key in _INPUTS if key in accepted]
        self._constants = {"use_cache": False} if "use_cache" in accepted else {}
        mean = not language and layout.pooling in ("mean", "class and mean")
        self.norm_before_pooling = mean and self._norm is not None
        self.max_positions = self._max_positions(config)
        self.vocabulary_size: int | None = None if self._images else config.get_text_config().vocab_size
        reads_last = layout.pooling == "last" and not language and not self._images
        if reads_last and getattr(config, "pad_token_id", None) is None:
            self._take_padding_from_eos(config)

    @property
    def _norm(self) -> Any:
        path = self.layout.final_norm
        return at(self.model.base_model, path, "final_norm") if path else None

    @property
    def final_norm(self) -> nn.Module:
        norm = self._norm
        return nn.Sequential() if norm is None or self.norm_before_pooling else norm

    @property
    def classifier(self) -> nn.Module:
        return self._chain.module()

    def forward(self, batch: Mapping[str, Any], layers: Sequence[int] | None = None) -> LayerFeatures:
        """Features of `batch["image"]` (N, channels, height, width), or of `input_ids` and `attention_mask` (N, T).

        `token_type_ids` and `position_ids` are handed on where the model takes them. A classifier's targets are
        `batch["label"]` (N,). A language model's labels (samples, T) are aligned with `input_ids`, −100 where ignored,
        and shifted here: see `predicting_tokens`, which also tells how tokens are numbered.

        Raises:
            UserError: images of another size or texts longer than the model takes; no attention mask; no target.
        """
        inputs = self._model_inputs(batch)
        wanted = range(self.num_layers) if layers is None else layers
        if self.task == "language-modeling":
            tokens = predicting_tokens(batch)
            return LayerFeatures(torch.stack(self._read(inputs, tokens, wanted)), tokens.targets, tokens.position)
        values = self._read(inputs, lambda block: self._pool(block, inputs.get("attention_mask")), wanted)
        return LayerFeatures(torch.stack(values), batch.get("label"), batch.get("position"))

    def passage(self, batch: Mapping[str, Any]) -> Passage:
        inputs = self._model_inputs(batch)
        return Passage(
            run=lambda: self.model.base_model(**inputs),
            blocks=self.blocks,
            pool=self._pool,
            samples=inputs[self.model.main_input_name],
            mask=inputs.get("attention_mask"),
            refiner=self._refiner,
        )

    @property
    def blocks(self) -> Any:
        """The model's list of blocks, whatever number of times each is called."""
        return at(self.model.base_model, self.layout.blocks, "blocks")

    @property
    def _refiner(self) -> Any:
        path = self.layout.refined_by
        return at(self.model.base_model, path, "blocks") if path else None

    def _pool(self, block: Tensor, mask: Tensor | None) -> Tensor:
        return pooled(self._norm(block) if self.norm_before_pooling else block, mask, self.layout.pooling)

    def _read(
        self, inputs: dict[str, Any], read: Callable[[Tensor], Tensor], layers: Collection[int] | None
    ) -> list[Tensor]:
        """What `read` makes of the block outputs at `layers` (all where None), while the model's own forward runs.

        A block that the model calls L times (ALBERT) counts as L layers. Gradient checkpointing recomputes blocks when
        these hooks are gone, so nothing is read twice.
        """
        features: list[Tensor | None] = []

        def keep(tokens: Tensor, refines: bool) -> None:
            if refines:
                features.pop()
            features.append(read(tokens) if layers is None or len(features) in layers else None)

        with watched(self.blocks, self._refiner, keep):
            self.model.base_model(**inputs)
        if layers is not None and len(features) != self.num_layers:
            raise UserError(
                f"{self.name} ran {len(features)} of its {self.num_layers} blocks: it drops blocks in training, and a "
                "dropped block has no features. Turn that off in the backbone's config_args."
            )
        return [tokens for tokens in features if tokens is not None]

    def _model_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._images:
            images: Tensor = batch["image"]
            if tuple(images.shape[1:]) != self.input_size:
                raise UserError(
                    f"The model takes images of {self.input_size} (channels, height, width), but the data gives "
                    f"{tuple(images.shape[1:])}. Resize in the data's transforms, or set the image_size in config_args."
                )
            return {"pixel_values": images}
        if "attention_mask" not in batch:
            raise UserError("The batch has no attention_mask, so padding could not be told from text.")
        length = batch["input_ids"].shape[1]
        if self.max_positions is not None and length > self.max_positions:
            raise UserError(
                f"The model takes up to {self.max_positions} tokens, but the data gives {length}. Truncate in the "
                "data, or raise max_position_embeddings in config_args if the model computes its positions (RoPE)."
            )
        return {key: batch[key] for key in self._inputs if key in batch} | self._constants

    @torch.no_grad()
    def _check_logits(self) -> None:
        """A tiny input through the model's own forward and through ours: the contract, held before anything is trained.

        The model's own forward also tells which parts of the classifier pick a token, and a first reading how many
        layers there are.
        """
        self.eval()
        batch = tiny_batch(self.model, self.task, self.input_size)
        inputs = self._model_inputs(batch)
        try:
            with self._chain.watched():
                expected = self.model(**inputs).logits
            blocks = self._read(inputs, lambda block: block[:1, :1], None)
            self.num_layers = len(blocks)
            check_widths(self.name, blocks)
            found = self.classifier(self.final_norm(self(batch).values[-1]))
        except (RuntimeError, IndexError, TypeError, AttributeError) as error:
            raise UserError(f"layersim cannot read {self.name}: {error}. {OPTIONS}") from error
        if self.task == "language-modeling":
            check_causal(self.name, expected)
            expected = expected[batch["attention_mask"] > 0]
        check_logits(self.name, found, expected)
        self.train()  # weights from a checkpoint come in evaluation mode, and Lightning keeps the mode it finds

    def _max_positions(self, config: Any) -> int | None:
        """Tokens that the model has positions for, None where it sets no bound."""
        longest: int | None = getattr(config, "max_position_embeddings", None)
        positions = getattr(getattr(self.model.base_model, "embeddings", None), "position_embeddings", None)
        padding: int | None = getattr(positions, "padding_idx", None)
        if longest is None or padding is None:
            return longest
        return longest - padding - 1  # RoBERTa and its kin count positions from there

    def _take_padding_from_eos(self, config: Any) -> None:
        eos = getattr(config, "eos_token_id", None)
        eos = eos[0] if isinstance(eos, list) else eos
        if eos is None:
            return
        config.pad_token_id = eos
        warnings.warn(
            f"{self.name} names no padding token; its end-of-text token {eos} is taken. layersim reads the last token "
            "that attention_mask keeps, so a text that ends in it keeps its end; transformers' own forward skips it.",
            stacklevel=2,
        )

    def _warn_of_fresh(self, fresh: set[str]) -> None:
        """One line on a classifier that the checkpoint did not have; an error on anything else that it lacks."""
        head = {id(parameter) for parameter in self.classifier.parameters()}
        new = {name for name, parameter in self.model.named_parameters() if id(parameter) in head} & fresh
        if rest := sorted(fresh - new):
            raise UserError(
                f"The checkpoint {self.name} lacks weights that the model needs: {', '.join(rest[:3])}"
                f"{' …' if len(rest) > 3 else ''}. Change name_or_path, or config_args if they made the model larger."
            )
        if new:
            warnings.warn(
                f"{self.name} has no trained {', '.join(sorted(new))}: they start at random, and readings of them mean "
                "nothing before training.",
                stacklevel=2,
            )

    def _checkpoint_blocks(self) -> None:
        try:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"{error} Leave the backbone's grad_checkpointing out.") from error
