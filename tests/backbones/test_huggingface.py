"""transformers backbones: the shared head at the last layer is the model's own forward, family by family."""

import copy
import re
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersim.backbones import TransformersBackbone
from layersim.errors import UserError
from layersim.export import truncate
from layersim.heads import SharedHead
from layersim.objectives import Aligned
from tests.backbones.tiny_transformers import (
    CAUSAL,
    CLASSIFIERS,
    ENCODERS,
    GPT2,
    IMAGES,
    L,
    batch_for,
    build,
    read,
    stock,
)

CASES = [
    *((name, "classification", "right") for name in CLASSIFIERS),
    *((name, task, padding) for name in CAUSAL for task in ("language-modeling",) for padding in ("right", "left")),
    *((name, "classification", "left") for name in CAUSAL),
]


@pytest.mark.parametrize(("family", "task", "padding"), CASES)
def test_shared_head_at_the_last_layer_gives_the_models_logits(family: str, task: str, padding: str) -> None:
    backbone = build(CLASSIFIERS[family], task)
    batch = batch_for(backbone, padding)
    logits = read(backbone, batch)
    assert logits.shape == (L, 3 if task == "classification" else 13, 7 if task == "classification" else 50)
    torch.testing.assert_close(logits[-1], stock(backbone, batch), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], logits[-1], atol=1e-2), "a shallow layer says something else"


TASKS = [
    *((name, "classification") for name in CLASSIFIERS),
    *((name, "language-modeling") for name in CAUSAL),
]


@pytest.mark.parametrize(
    ("family", "task"),
    [case for case in TASKS if "groups" not in case[0]],  # ALBERT's groups fall otherwise with fewer layers
)
def test_each_layer_is_the_model_cut_off_there(family: str, task: str) -> None:
    """Reading layer l equals running the library's own model with the blocks above l taken out."""
    backbone = build(CLASSIFIERS[family], task)
    batch = batch_for(backbone)
    logits = read(backbone, batch)
    blocks = attrgetter(backbone.layout.blocks)(backbone.model.base_model)
    for depth in (2, 1):
        del blocks[depth:]  # ALBERT has one block, which its configuration says how often to call
        backbone.model.config.num_hidden_layers = depth
        torch.testing.assert_close(logits[depth - 1], stock(backbone, batch), rtol=1e-5, atol=1e-5)


BY_HAND: dict[str, Any] = {
    "first": lambda tokens, lengths: tokens[:, 0],
    "last": lambda tokens, lengths: torch.stack([row[n - 1] for row, n in zip(tokens, lengths, strict=True)]),
}


@pytest.mark.parametrize("family", [name for name in CLASSIFIERS if "mean" not in name and "DINO" not in name])
def test_features_are_block_outputs_before_the_final_norm(family: str) -> None:
    backbone = build(CLASSIFIERS[family])
    seen: list[Tensor] = []
    for block in attrgetter(backbone.layout.blocks)(backbone.model.base_model):
        block.register_forward_hook(lambda _, __, output: seen.append(output if torch.is_tensor(output) else output[0]))
    values = backbone(batch_for(backbone)).values
    assert len(values) == len(seen) == L
    for layer, (features, tokens) in enumerate(zip(values, seen, strict=True)):
        by_hand = BY_HAND[backbone.layout.pooling](tokens, [6, 3, 4])
        if family == "DeBERTa-v2 with a convolution" and layer == 0:
            assert not torch.allclose(features, by_hand), "the convolution belongs to the first block"
        else:
            torch.testing.assert_close(features, by_hand, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "GPT-NeoX", "OPT", "ModernBERT"])
def test_the_librarys_last_hidden_state_is_not_what_we_read(family: str) -> None:
    """The trap that the hooks are there for: `hidden_states[-1]` is behind the final norm."""
    backbone = build(CLASSIFIERS[family])
    batch = {key: value[:1] for key, value in batch_for(backbone).items()}
    states = backbone.model(**batch, output_hidden_states=True).hidden_states
    values = backbone(batch).values
    token = 0 if backbone.layout.pooling == "first" else -1
    torch.testing.assert_close(values[0], states[1][:, token])
    assert not torch.allclose(values[-1], states[-1][:, token], atol=1e-2)
    torch.testing.assert_close(backbone.final_norm(values[-1]), states[-1][:, token])


@pytest.mark.parametrize("family", ["ModernBERT, mean", "DINOv2"])
def test_a_mean_over_tokens_is_taken_behind_the_norm(family: str) -> None:
    """The two do not commute, so the norm belongs to the features; the cut-off models above agree at every layer."""
    backbone = build(CLASSIFIERS[family])
    assert backbone.norm_before_pooling
    assert len(list(backbone.final_norm.parameters())) == 0
    with pytest.raises(UserError, match="final norm stands before its pooling"):
        SharedHead(backbone, norm="none")


def test_the_mean_over_tokens_may_be_read_in_place_of_the_first() -> None:
    options: dict[str, Any] = {"task": "classification", "pretrained": False, "config_args": ENCODERS["BERT"]}
    torch.manual_seed(0)
    own = TransformersBackbone(**options).eval()
    torch.manual_seed(0)
    mean = TransformersBackbone(**options, pool="mean").eval()
    batch = batch_for(own)
    states = own.model(**{key: batch[key] for key in ("input_ids", "attention_mask")}, output_hidden_states=True)
    mask = batch["attention_mask"][..., None].float()
    expected = [(layer * mask).sum(1) / mask.sum(1) for layer in states.hidden_states[1:]]
    torch.testing.assert_close(mean(batch).values, torch.stack(expected))
    assert not torch.allclose(mean(batch).values, own(batch).values, atol=0.1)
    assert SharedHead(mean).logits(mean(batch).values, range(L)).shape == (L, len(mask), own.num_classes)
    with pytest.raises(UserError, match="the backbone's pool reads other tokens"):
        truncate(mean, SharedHead(mean), 2)
    with pytest.raises(UserError, match="Expected a classifier of texts to pool by mean"):
        TransformersBackbone(task="language-modeling", pretrained=False, config_args=CAUSAL["GPT-2"], pool="mean")


def test_the_classifier_of_a_language_model_is_its_one_linear_map() -> None:
    for family in ("GPT-2", "GPT-NeoX", "OPT", "Llama", "Qwen2", "Mistral", "Gemma"):
        backbone = build(CAUSAL[family], "language-modeling")
        assert backbone.classifier is backbone.model.lm_head
        tied = backbone.model.config.tie_word_embeddings
        assert (backbone.classifier.weight is backbone.model.get_input_embeddings().weight) == tied
    softcapped = build(CAUSAL["Gemma 2, softcapped"], "language-modeling")
    logits = read(softcapped, batch_for(softcapped))
    assert logits.abs().max() <= 3.0
    assert logits.abs().max() > 2.5, "the cap is felt"


def test_chosen_layers_alone() -> None:
    backbone = build(CLASSIFIERS["ALBERT"])
    batch = batch_for(backbone) | {"label": torch.tensor([1, 2, 3]), "position": torch.tensor([5, 9, 7])}
    every, chosen = backbone(batch), backbone(batch, [0, 2])
    torch.testing.assert_close(chosen.values, every.values[[0, 2]], rtol=0, atol=0)
    assert chosen.targets is batch["label"]
    assert chosen.position is batch["position"]


def test_a_block_that_did_not_run_is_told() -> None:
    backbone = build(CLASSIFIERS["OPT"])
    backbone.model.model.decoder.layerdrop = 1.0
    backbone(batch_for(backbone))
    with pytest.raises(UserError, match="ran 0 of its 3 blocks"):
        backbone.train()(batch_for(backbone))


def test_hooks_are_gone_after_a_forward_and_after_one_that_failed() -> None:
    backbone = build(CLASSIFIERS["BERT"])
    batch = batch_for(backbone)
    backbone(batch)
    with pytest.raises(IndexError):
        backbone(batch | {"input_ids": batch["input_ids"] + 1000})
    assert not any(module._forward_hooks for module in backbone.modules())


def aligned_gradients(backbone: TransformersBackbone) -> dict[str, Tensor | None]:
    """Gradients of the aligned loss, all dropout off."""
    batch = batch_for(backbone) | {"label": torch.tensor([1, 2, 3])}
    if backbone.task == "language-modeling":
        batch["label"] = batch["input_ids"]
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    head = SharedHead(backbone)
    features = backbone(batch)
    assert features.targets is not None
    head.loss(features.values, features.targets, range(L), Aligned().weights(L, None)).backward()
    return {name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("family", "task"), TASKS)
def test_every_parameter_gets_a_gradient(family: str, task: str) -> None:
    """As plain DDP demands."""
    gradients = aligned_gradients(build(CLASSIFIERS[family], task))
    assert [name for name, gradient in gradients.items() if gradient is None] == []


@pytest.mark.parametrize("family", ["BERT", "DeBERTa-v2 with a convolution", "ALBERT", "ViT", "GPT-2", "Llama"])
@pytest.mark.parametrize("blocks", [True, [1]])
def test_gradient_checkpointing_gives_the_same_gradients(family: str, blocks: bool | list[int]) -> None:
    """Blocks run twice, and are read once."""
    arguments = CLASSIFIERS[family] | ({"attention_probs_dropout_prob": 0.0} if family in ENCODERS else {})
    gradients, runs = [], []
    for chosen in (False, blocks):
        backbone = build(arguments)
        backbone.recompute(chosen)
        ran: list[list[Any]] = []
        for block in backbone.blocks:
            norm = next(module for module in block.modules() if "Norm" in type(module).__name__)
            ran.append([])
            norm.register_forward_pre_hook(lambda *_, ran=ran[-1]: ran.append(1))
        gradients.append(aligned_gradients(backbone))
        runs.append([*map(len, ran)])
    assert runs[1] == [2 * count if blocks is True or not place else count for place, count in enumerate(runs[0])]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_what_recomputes_is_what_was_said_last() -> None:
    backbone = build(CLASSIFIERS["ViT"])
    backbone.train()
    ran: list[int] = []
    backbone.blocks[0].layernorm_before.register_forward_pre_hook(lambda *_: ran.append(1))
    runs = []
    for chosen in (True, True, [2], [1], False):
        backbone.recompute(chosen)
        ran.clear()
        aligned_gradients(backbone)
        runs.append(len(ran))
    assert runs == [2, 2, 1, 2, 1]


@pytest.mark.parametrize("layers", [[0, 7], [-1], [], [1, 0], [1, 1]])
def test_layers_that_are_not_there_or_not_ascending_are_refused(layers: list[int]) -> None:
    backbone = build(CLASSIFIERS["BERT"])
    with pytest.raises(UserError, match=rf"^Expected ascending layers of 0 … 2, but got {re.escape(str(layers))}\.$"):
        backbone(batch_for(backbone), layers)


def test_a_block_that_is_not_there_cannot_run_again() -> None:
    with pytest.raises(UserError, match=r"Expected blocks of 1 … 3 to recompute, but got 0, 4\. Change --model\.activ"):
        build(CLASSIFIERS["BERT"]).recompute([0, 1, 4])


def test_what_only_pretraining_uses_is_frozen() -> None:
    frozen = [name for name, value in build(IMAGES["DINOv2"]).named_parameters() if not value.requires_grad]
    assert frozen == ["model.dinov2.embeddings.mask_token"]


@pytest.mark.parametrize("family", ["BERT", "ModernBERT, mean", "ViT", "DINOv2", "GPT-2", "Llama", "OPT"])
def test_under_bfloat16_autocast_the_logits_are_the_models_own(family: str) -> None:
    backbone = build(CLASSIFIERS[family])
    batch = batch_for(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = read(backbone, batch)[-1], stock(backbone, batch)
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch 2.15's compiler, itself
def test_compiled_it_reads_the_same() -> None:
    backbone = build(CLASSIFIERS["GPT-2"])
    batch = batch_for(backbone)
    expected = backbone(batch).values
    compiled = copy.deepcopy(backbone)
    compiled.compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(batch).values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_new_models_small_logits_do_not_hide_its_cap(dtype: Any) -> None:
    """tanh(x / 30) · 30 is x but for rounding where x is small, as before any training."""
    arguments = {**CAUSAL["Gemma 2, softcapped"], "final_logit_softcapping": 30.0}
    backbone = TransformersBackbone(task="language-modeling", pretrained=False, config_args=arguments, dtype=dtype)
    assert [type(part).__name__ for part in backbone.classifier.children()] == ["Linear", "Softcapped"]
    assert backbone.classifier[1].cap == 30.0  # type: ignore[index]


def test_named_paths_are_taken() -> None:
    """A classifier named step by step reads as the one that was found."""
    paths = {"blocks": "encoder.layer", "classifier": ["bert.pooler", "classifier"], "pooling": "first"}
    named, found = build(CLASSIFIERS["BERT"], **paths), build(CLASSIFIERS["BERT"])
    assert len(named.classifier) == 2  # type: ignore[arg-type]
    torch.testing.assert_close(read(named, batch_for(named)), read(found, batch_for(found)))


def test_images_are_prepared_as_the_family_wants() -> None:
    backbone = build(IMAGES["DINOv2"])
    assert backbone.input_size == (3, 8, 8)
    assert backbone.data_config["interpolation"] == "bicubic"
    assert backbone.data_config["crop_pct"] == 1.0
    assert build(IMAGES["ViT"] | {"num_channels": 1}).data_config["mean"] == (0.5,)
    with pytest.raises(UserError, match=r"\(3, 8, 8\).*gives \(3, 9, 9\).*image_size"):
        backbone({"image": torch.zeros(1, 3, 9, 9)})


@pytest.mark.parametrize(("family", "longest"), [("BERT", 40), ("RoBERTa", 38), ("GPT-2", 40)])
def test_texts_longer_than_the_model_are_refused(family: str, longest: int) -> None:
    backbone = build(CLASSIFIERS[family])
    texts = torch.full((1, longest + 1), 7)
    batch = {"input_ids": texts[:, 1:], "attention_mask": torch.ones_like(texts[:, 1:])}
    assert torch.isfinite(stock(backbone, batch)).all(), "the longest that the library takes"
    assert torch.isfinite(backbone(batch).values).all()
    with pytest.raises(UserError, match=f"up to {longest} tokens, but the data gives {longest + 1}"):
        backbone({"input_ids": texts, "attention_mask": torch.ones_like(texts)})


def test_a_batch_without_attention_mask_is_refused() -> None:
    with pytest.raises(UserError, match="no attention_mask"):
        build(CLASSIFIERS["BERT"])({"input_ids": torch.ones(1, 3, dtype=torch.long)})
    with pytest.raises(UserError, match="no attention_mask, which the model reads; it is input_ids"):
        build(CAUSAL["Llama"], "language-modeling")({"input_ids": torch.ones(1, 3, dtype=torch.long)})


def test_a_batch_without_names_is_refused() -> None:
    for backbone in (build(ENCODERS["BERT"]), build(CAUSAL["GPT-2"], "language-modeling"), build(IMAGES["ViT"])):
        with pytest.raises(UserError, match="Expected a batch as a mapping, as the model takes it, but got a Tensor"):
            backbone(torch.ones(2, 3, dtype=torch.long))


def test_padding_is_taken_from_the_end_of_text_with_a_notice() -> None:
    """A text that truly ends in that token keeps its end, where the library's own forward passes over it."""
    with pytest.warns(UserWarning, match="no padding token; its end-of-text token 2 is taken"):
        backbone = build(GPT2 | {"model_type": "gpt2", "pad_token_id": None, "eos_token_id": 2})
    batch = batch_for(backbone)
    torch.testing.assert_close(read(backbone, batch)[-1], stock(backbone, batch), rtol=1e-5, atol=1e-5)
    batch["input_ids"][0, -1] = 2
    found, skipped = read(backbone, batch)[-1], stock(backbone, batch)
    torch.testing.assert_close(found[1:], skipped[1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], skipped[0], atol=1e-2)
    alone = {key: value[:1] for key, value in batch.items()}
    backbone.model.config.pad_token_id = None  # then the library takes the last token
    torch.testing.assert_close(found[:1], stock(backbone, alone), rtol=1e-5, atol=1e-5)


def test_without_any_such_token_the_mask_is_enough() -> None:
    arguments = GPT2 | {"model_type": "gpt2", "pad_token_id": None, "eos_token_id": None}
    backbone = build(arguments)
    batch = batch_for(backbone)
    alone = {key: value[1:2, :3] for key, value in batch.items()}
    torch.testing.assert_close(read(backbone, batch)[-1][1:2], stock(backbone, alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["BERT", "DINOv2", "Llama"])
def test_what_trains_does_not_depend_on_whether_gradients_are_on(family: str) -> None:
    def trained() -> list[str]:
        return [name for name, value in build(CLASSIFIERS[family]).named_parameters() if value.requires_grad]

    expected = trained()
    with torch.no_grad():
        assert trained() == expected
    assert expected
