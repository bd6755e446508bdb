"""Where each family of transformers models keeps its blocks, final norm and classifier.

The paths were read in transformers 5.23. A family that is not here works by naming the same paths.
"""

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

from torch import nn

from layersim.backbones.tokens import Rule
from layersim.errors import UserError

Task = Literal["classification", "language-modeling"]

OPTIONS = "Name the paths with the backbone's blocks, final_norm, classifier and pooling."


@dataclass(frozen=True)
class Layout:
    """Paths in a model: `blocks`, `final_norm`, `refined_by` and `unused` from its base model, classifiers from itself.

    A classifier is a chain: each step is a path, or the name of a `torch.nn` activation that the model calls as a
    function. A path that leads to None, as OPT's projection does where widths agree, is left out.
    """

    blocks: str
    final_norm: str | None = None
    pooling: Rule = "first"
    classifier: tuple[str, ...] = ()
    """From features to the classes of a text or image; empty where the family has none."""
    language_head: tuple[str, ...] = ()
    """From features to the vocabulary; empty where the family is no causal language model."""
    refined_by: str | None = None
    """A module between two blocks that changes what the block before it put out: part of that block."""
    unused: tuple[str, ...] = ()
    """Parameters that only pretraining uses: frozen, since DDP waits for the gradient of every other."""


_LLAMA = Layout("layers", "norm", "last", ("score",), ("lm_head",))

FAMILIES: dict[str, Layout] = {
    "bert": Layout("encoder.layer", classifier=("bert.pooler", "dropout", "classifier")),
    "roberta": Layout("encoder.layer", classifier=("classifier",)),
    "distilbert": Layout("transformer.layer", classifier=("pre_classifier", "ReLU", "dropout", "classifier")),
    "albert": Layout(
        "encoder.albert_layer_groups",
        classifier=("albert.pooler", "albert.pooler_activation", "dropout", "classifier"),
    ),
    "deberta-v2": Layout("encoder.layer", classifier=("pooler", "dropout", "classifier"), refined_by="encoder.conv"),
    "modernbert": Layout("layers", "final_norm", classifier=("head", "drop", "classifier")),
    "vit": Layout("layers", "layernorm", classifier=("classifier",)),
    "dinov2": Layout(
        "encoder.layer", "layernorm", "class and mean", ("classifier",), unused=("embeddings.mask_token",)
    ),
    "gpt2": Layout("h", "ln_f", "last", ("score",), ("lm_head",)),
    "gpt_neox": Layout("layers", "final_layer_norm", "last", ("score",), ("lm_head",)),
    "opt": Layout(
        "decoder.layers",
        "decoder.final_layer_norm",
        "last",
        ("model.decoder.project_out", "score"),
        ("model.decoder.project_out", "lm_head"),
    ),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
}


def layout_of(model: Any, task: Task, **named: Any) -> Layout:
    """The layout of a model's family, with whatever paths the user named in place of its own.

    Args:
        model: a transformers model with a head.
        named: `blocks`, `final_norm`, `pooling`, `classifier` (a tuple of steps); None where not named.

    Raises:
        UserError: a family that is not in the table and no `blocks`; an encoder's language model.
    """
    family = model.config.model_type
    known = FAMILIES.get(family)
    given = {key: value for key, value in named.items() if value is not None}
    chain = "classifier" if task == "classification" else "language_head"
    if "classifier" in given:
        given[chain] = given.pop("classifier")
    if known is None:
        if "blocks" not in given:
            raise UserError(
                f"layersim does not know where a model of the family {family!r} keeps its blocks; it knows "
                f"{', '.join(FAMILIES)}. {OPTIONS} Here blocks could be: {', '.join(_lists(model)) or 'nothing'}."
            )
        return Layout(**{chain: _usual_classifier(model, task), **given})
    if pooling := getattr(model.config, "classifier_pooling", None):
        known = replace(known, pooling="mean" if pooling == "mean" else "first")
    layout = replace(known, **given)
    if not getattr(layout, chain):
        raise UserError(
            f"A model of the family {family!r} sees the tokens after the one to predict: it is no causal language "
            "model. Set the backbone's task to classification, or choose a causal family (gpt2, llama, opt, …)."
        )
    return layout


def at(model: Any, path: str, option: str) -> Any:
    """What stands at a path.

    Raises:
        UserError: nothing does.
    """
    try:
        return attrgetter(path)(model)
    except AttributeError as error:
        children = ", ".join(name for name, _ in model.named_children())
        raise UserError(
            f"{type(model).__name__} has nothing at {path!r}; its parts are {children}. Change the backbone's {option}."
        ) from error


def _lists(model: Any) -> list[str]:
    return [name for name, module in model.base_model.named_modules() if isinstance(module, nn.ModuleList)]


def _usual_classifier(model: Any, task: Task) -> tuple[str, ...]:
    if task == "language-modeling":
        head = model.get_output_embeddings()
        return tuple(name for name, module in model.named_modules() if head is not None and module is head)
    return tuple(name for name in ("classifier", "score") if hasattr(model, name))[:1]
