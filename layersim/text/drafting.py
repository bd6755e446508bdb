"""Whether transformers can draft from a layer of a model, and a model that is afterwards as it was.

`generate(assistant_early_exit=k)` drafts by lowering `config.num_hidden_layers` to k while the model runs. In
transformers 5.23 that works where the model's forward heeds the number (Llama, Qwen2, Mistral, Gemma, Gemma 2). Other
forwards (GPT-2, GPT-NeoX, OPT) run all blocks on a cache that has room for k of them, fail, and leave the number low.
Models are asked, and not their names, since families are added and rewritten with every release.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import DynamicCache, PreTrainedModel

from layersim.errors import UserError
from layersim.evaluation_mode import evaluating
from layersim.module import LayerwiseModule
from layersim.text.generation import language_model


def generating_model(model: LayerwiseModule | PreTrainedModel) -> PreTrainedModel:
    """The transformers model that writes: the module's own, or the model itself.

    Raises:
        UserError: it is no decoder that generates.
    """
    own = language_model(model).model if isinstance(model, LayerwiseModule) else model
    if isinstance(own, PreTrainedModel) and own.can_generate() and not own.config.is_encoder_decoder:
        return own
    raise UserError(
        f"Expected a LayerwiseModule or a causal language model of transformers, but got {type(own).__name__}. "
        "Load an export with AutoModelForCausalLM.from_pretrained."
    )


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """In here a model may generate, in evaluation mode and without drafts of its own; then it is as it was.

    Also after an error, which in transformers leaves the number of layers lowered.
    """
    config, generation = model.base_model.config, model.generation_config
    layers = getattr(config, "num_hidden_layers", None)
    model.generation_config = copy.deepcopy(generation)
    model.generation_config.assistant_early_exit = None  # which a call's own None would not override
    try:
        with evaluating(model):
            yield
    finally:
        model.generation_config = generation
        if layers is not None:
            config.num_hidden_layers = layers


def check_drafting(model: PreTrainedModel) -> None:
    """Drafts a few tokens from the first layer, and sees that only one block runs.

    Raises:
        UserError: all blocks run, or the draft fails.
    """
    family = model.config.model_type
    advice = "Export a model of another family (llama, qwen2, mistral, gemma or gemma2) for it, or generate without."
    ids = torch.arange(4, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    cache = DynamicCache()  # made without a configuration, it grows by a layer with every block that runs
    with undisturbed(model):
        try:
            model.base_model.config.num_hidden_layers = 1
            with torch.no_grad():
                model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        except Exception as error:  # whatever a forward that was not made for it may raise
            raise UserError(f"A {family} model fails with fewer layers than it has: {error!r}. {advice}") from error
    if (ran := len(cache.layers)) != 1:
        raise UserError(
            f"generate(assistant_early_exit=…) does not work with the family {family!r}: its forward in transformers "
            f"runs {ran} blocks where the configuration asks for one, so a draft cannot leave early. {advice}"
        )
    with undisturbed(model):
        try:
            model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=4, assistant_early_exit=1)
        except Exception as error:
            raise UserError(
                f"generate(assistant_early_exit=1) fails with the family {family!r}: {error!r}. {advice}"
            ) from error
