"""Hugging Face transformers models as backbones."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from layersim.backbones.base import Backbone, taken
from layersim.backbones.calls import last_output
from layersim.backbones.families import REFINED, Dtype, Layout, Pooling, Task, Unexplained, at, layout_of, part_of
from layersim.backbones.logit_path import OneToken, close
from layersim.backbones.lora import Lora, adapt
from layersim.backbones.pretrained import PROCESSORS, configuration, image_config, shortened, trained, untrained
from layersim.backbones.tiny_input import check_causal, check_logits, parameters_of, tiny_batch
from layersim.backbones.tokens import max_positions, pooled, predicting_tokens, take_padding_from_eos
from layersim.errors import UserError, as_user_error, check_choice
from layersim.evaluation import evaluating
from layersim.installed_packages import model_name

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class TransformersBackbone(Backbone):
    """A transformers model: text or image classifier, or causal language model.

    Where it keeps its blocks, and what stands between them and its logits, is found by watching its own forward on a
    tiny input, so that most families of blocks of one width are read (`layersim families` lists them); for others the
    paths can be named. Features are the blocks' outputs before the final norm, caught by hooks while the model's own
    forward runs, so that dropout is as active in training as in the model itself. On construction the tiny input also
    makes sure that the shared head at the last layer gives the model's own logits.

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
        lora: train low-rank adapters in the blocks in place of their weights, and the head; needs the extra `lora`.
        blocks: where the model keeps its blocks, a path in the base model such as `encoder.layer`; found where None.
        final_norm: its norm between the last block and the classifier, a path in the base model; found where None.
        classifier: its classifier, a path in the whole model, or several to go through in turn; an activation that the
            model calls as a function is named as in `torch.nn`.
        pooling: the token that its text classifier looks at; found where None.
        pool: `mean`: a text's classifier is given the mean over its tokens in place of that token, which is nearly
            constant in the first layers of many encoders. The model's own output is another then, and no checkpoint
            that its library alone can run holds the change.

    Raises:
        UserError: a model that cannot be fetched, opened, or read; an option that does not fit it.
    """

    tiny_batch: Mapping[str, Tensor]
    layout: Layout
    reads_end: bool
    """Whether its own classifier looks at the last place even where that is padding (XLNet); here it never does."""

    def __init__(
        self,
        name_or_path: str | None = None,
        *,
        task: Task,
        pretrained: bool = True,
        num_classes: int | None = None,
        revision: str | None = None,
        dtype: Dtype | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        config_args: dict[str, Any] | None = None,
        lora: Lora | None = None,
        blocks: str | None = None,
        final_norm: str | None = None,
        classifier: str | list[str] | None = None,
        pooling: Pooling | None = None,
        pool: Literal["mean"] | None = None,
    ) -> None:
        super().__init__()
        check_choice("task", task, Task)
        check_choice("dtype", dtype, Dtype | None)
        check_choice("pooling", pooling, Pooling | None)
        check_choice("pool", pool, Literal["mean"] | None)
        if not isinstance(lora, Lora | None):
            raise UserError(
                f"Expected the backbone's lora as a layersim.backbones.Lora, such as Lora(r=4), got {lora!r}."
            )
        if pretrained and name_or_path is None:
            raise UserError("Expected name_or_path, whose weights to load. Set it, or pretrained: false.")
        name_or_path = name_or_path and model_name(str(name_or_path))
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
            self.model = untrained(config, task, {key: each for key, each in options.items() if each != "auto"})
        self.name = name_or_path or self.model.config.model_type
        self.tokenizer_name = name_or_path  # where data modules find the model's own tokenizer
        steps = (classifier,) if isinstance(classifier, str) else classifier and tuple(classifier)
        paths = {"blocks": blocks, "final_norm": final_norm, "classifier": steps, "pooling": pooling}
        expected = self._take(task, hub, "image_size" in (config_args or {}), **paths)
        self._make_ours(expected)
        self._warn_of_fresh(fresh)
        if lora is not None:
            adapt(self.model, self.blocks, [self.final_norm, self.classifier], lora)
        self._check_logits(expected.detach())
        if pool is not None:
            if task != "classification" or self._images:
                raise UserError(f"Expected a classifier of texts to pool by {pool}. Leave the backbone's pool out.")
            self.layout = replace(self.layout, pooling=pool)

    @classmethod
    def around(cls, model: Any) -> Self:
        """Reads a transformers model that is there already, and stays what it is: its task is its class's.

        Raises:
            UserError: a model that cannot be read.
        """
        backbone = cls.__new__(cls)
        nn.Module.__init__(backbone)
        backbone.model, backbone.name, backbone.tokenizer_name = model, type(model).__name__, None
        causal = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        with evaluating(model), torch.no_grad():
            expected = backbone._take("language-modeling" if causal else "classification", {}, True)
            backbone._check_logits(expected)
        return backbone

    def _take(self, task: Task, hub: dict[str, Any], size_typed: bool, **named: Any) -> Tensor:
        """Finds how the model is read; gives its own logits of a tiny batch."""
        config = self.model.config
        self.task = task
        self.reads_tokens = task == "language-modeling"
        if getattr(config, "layerdrop", 0):
            raise UserError(
                "The model drops whole blocks in training (layerdrop), and a dropped block has no features. "
                "Set the backbone's config_args: {layerdrop: 0.0}."
            )
        self._images = self.model.main_input_name == "pixel_values"
        if self._images:
            what = f"The image processor of {self.tokenizer_name} cannot be used"
            with as_user_error(what, f"Mend or remove its {PROCESSORS[0]}."):
                self.data_config = image_config(self.tokenizer_name, config, hub, size_typed)
            self.input_size = self.data_config["input_size"]
        accepted = _keywords(self.model.base_model)
        if "kwargs" in accepted:  # handed on to where the whole model hands them (BART's decoder)
            accepted |= _keywords(self.model)
        self._inputs = [key for key in _INPUTS if key in accepted]
        self._constants = {"use_cache": False} if "use_cache" in accepted else {}
        self.max_positions = max_positions(self.model)
        text = None if self._images else config.get_text_config()
        self.vocabulary_size: int | None = getattr(text, "vocab_size", None)
        expected = self._lay_out(**named)
        self.num_classes = expected.shape[-1]
        return expected

    def _lay_out(self, **named: Any) -> Tensor:
        """Finds the layout's parts in the model, and a tiny batch to compare models by; gives its own logits of it."""
        self.eval()
        for left in (False, True):
            self.tiny_batch = tiny_batch(self.model, self.task, self.input_size, left=left)
            mask = self.tiny_batch.get("attention_mask")
            try:
                self.layout, last, logits = layout_of(self.model, self._run_tiny, mask=mask, task=self.task, **named)
                self.reads_end = left
                break
            except Unexplained:
                if left or self._images or self.task == "language-modeling":
                    raise
        self.num_layers = self.layout.num_layers
        self.norm_before_pooling = self.layout.norm_first and self.layout.final_norm is not None
        inputs = self._model_inputs(self.tiny_batch)
        alone = last_output(self.blocks, lambda: self.model.base_model(**inputs))
        self._whole = alone is None or not close(self._placed(alone), last)
        return logits

    def _make_ours(self, logits: Tensor) -> None:
        """Freezes what the logits do not depend on, and names the padding where the configuration does not."""
        used = parameters_of(logits) | set(self.blocks.parameters())
        for parameter in set(self.model.base_model.parameters()) - used:
            parameter.requires_grad_(False)  # pretraining alone uses them, and DDP waits for every gradient
        config = self.model.config
        reads_last = self.layout.pooling == "last" and self.task == "classification"
        if reads_last and getattr(config, "pad_token_id", None) is None:
            take_padding_from_eos(self.name, config)

    def _run_tiny(self) -> Tensor:
        what = f"{self.name} fails on a tiny input"
        # whoever builds it may want no gradients, by which what the logits depend on is found
        with torch.enable_grad(), as_user_error(what, "Change name_or_path or config_args.", why=shortened):
            return self.model(**self.inputs(self.tiny_batch)).logits

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
        """The layout's steps in turn; of one alone the module itself, so that a loss can use its one weight."""
        parts = [
            OneToken(part) if step in self.layout.picks else part
            for step in self.layout.classifier
            if (part := part_of(self.model, step)) is not None
        ]
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    def counted(self, batch: Mapping[str, Any]) -> tuple[Callable[[Tensor], Tensor], Tensor | None, Tensor | None]:
        """Of `batch["image"]` (N, channels, height, width), or of `input_ids` and `attention_mask` (N, T).

        `token_type_ids` and `position_ids` are handed on where the model takes them. A classifier's targets are
        `batch["label"]` (N,). A language model's labels (samples, T) are aligned with `input_ids`, −100 where ignored,
        and shifted here: see `predicting_tokens`, which also tells how tokens are numbered.

        Raises:
            UserError: no target.
        """
        if self.task == "classification":
            return super().counted(batch)
        tokens = predicting_tokens(batch)
        return lambda block: tokens(self._placed(block)), tokens.targets, tokens.position

    @property
    def blocks(self) -> Any:
        """The model's list of blocks, whatever number of times each is called."""
        return at(self.model.base_model, self.layout.blocks, "blocks")

    @property
    def refiner(self) -> Any:
        path = REFINED.get(self.model.config.model_type)
        return at(self.model.base_model, path, "blocks") if path else None

    def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self._placed(tokens)
        tokens = self._norm(tokens) if self.norm_before_pooling else tokens
        return pooled(tokens, mask, self.layout.pooling, self.layout.prefix)

    def _placed(self, block: Tensor) -> Tensor:
        """A block's output with its samples first, (N, T, D)."""
        return block.transpose(0, 1) if self.layout.sequence_first else block

    def run(self, batch: Mapping[str, Any]) -> object:
        """The base model's forward, or the whole model's where that gives its base model more (T5, Longformer)."""
        if not self._whole:
            return self.model.base_model(**self._model_inputs(batch))
        with as_user_error(f"{self.name} cannot take the batch", "Change the data.", why=shortened):
            return super().run(batch)

    def extend(self, batch: Mapping[str, Any], cache: Any) -> object:
        """The base model's forward on new tokens (N, T), whose keys and values join those that `cache`, a `Cache` of
        transformers, has of the S before them; the batch's attention mask is that of all (N, S + T)."""
        return self.model.base_model(**self._model_inputs(batch) | {"past_key_values": cache, "use_cache": True})

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        whole = _keywords(self.model)  # which may set a constant on its own (T5Gemma)
        given = self._model_inputs(batch).items()
        return {key: value for key, value in given if key not in self._constants or key in whole}

    def _model_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._images:
            return {"pixel_values": self._images_of(batch)}
        length = taken(batch, "input_ids").shape[1]
        taken(batch, "attention_mask")  # without which padding could not be told from text
        if self.max_positions is not None and length > self.max_positions:
            raise UserError(
                f"The model takes up to {self.max_positions} tokens, but the data gives {length}. Truncate in the "
                "data, or raise max_position_embeddings in config_args if the model computes its positions (RoPE)."
            )
        return {key: batch[key] for key in self._inputs if key in batch} | self._constants

    @torch.no_grad()
    def _check_logits(self, expected: Tensor) -> None:
        """The contract, held before anything is trained: our head gives the model's own logits of a tiny batch."""
        if self.task == "language-modeling":
            check_causal(self.name, expected)
            expected = expected[self.tiny_batch["attention_mask"] > 0]
        found = self.classifier(self.final_norm(self(self.tiny_batch).values[-1]))
        check_logits(self.name, found, expected)
        self.train()  # weights from a checkpoint come in evaluation mode, and Lightning keeps the mode it finds

    def _warn_of_fresh(self, fresh: set[str]) -> None:
        """One line on a classifier that the checkpoint did not have; an error on anything else that it lacks."""
        head = {id(parameter) for parameter in self.classifier.parameters()}
        new = {name for name, parameter in self.model.named_parameters() if id(parameter) in head} & fresh
        if rest := sorted(fresh - new):
            raise UserError(
                f"The checkpoint {self.name} lacks weights that the model needs: {', '.join(rest[:3])}"
                f"{' …' if len(rest) > 3 else ''}. Change name_or_path, or config_args if they made the model larger."
            )
        self.fresh_classifier = bool(new)
        if new:
            warnings.warn(
                f"{self.name} has no trained {', '.join(sorted(new))}: they start at random, and readings of them mean "
                "nothing before training.",
                stacklevel=2,
            )


def _keywords(module: nn.Module) -> set[str]:
    return set(signature(module.forward).parameters)
