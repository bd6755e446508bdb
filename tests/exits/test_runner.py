"""Early exit on batches: what leaving gives is what computing every layer and applying the policy afterwards gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from layersim.backbones import TimmBackbone, TransformersBackbone
from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.exits import Alarm
from layersim.exits.policies import (
    Confidence,
    Entropy,
    Margin,
    Patience,
    Policy,
    Similarity,
    View,
    exit_layer,
    next_streak,
)
from layersim.exits.runner import EarlyExit, Exited
from layersim.heads import Head, SeparateHeads, SharedHead
from tests.backbones import test_vision, tiny_transformers
from tests.backbones.tiny_transformers import CAUSAL, CLASSIFIERS, DEBERTA, ENCODERS, L

TIMM = [f"timm {name}" for name in test_vision.FAMILIES]
FAMILIES = [*TIMM, *CLASSIFIERS]
N = 9
NEAR = 1e-4
"""Rounding differs between batch sizes, so no score of a test may stand this near to the threshold."""


def backbone_of(family: str) -> TimmBackbone | TransformersBackbone:
    if family.startswith("timm "):
        return test_vision.build(*test_vision.FAMILIES[family.removeprefix("timm ")])
    return tiny_transformers.build(CLASSIFIERS[family])


def batch_of(backbone: Backbone, size: int = N, ragged: bool = True) -> dict[str, Tensor]:
    """Images, or texts of 2 to 6 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(3)
    if backbone.input_size:
        return {"image": torch.randn(size, *backbone.input_size, generator=generator)}
    lengths = 2 + (torch.arange(size) * 3) % 5 if ragged else torch.full((size,), 6)
    mask = (torch.arange(6) < lengths.unsqueeze(1)).long()
    texts = torch.randint(5, 50, (size, 6), generator=generator)
    return {"input_ids": texts * mask, "attention_mask": mask}


def afterwards(
    backbone: Backbone, head: Head, policy: Policy, batch: dict[str, Tensor], temperatures: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(L, N) scores and (L, N, C) logits with every layer computed, by the definitions."""
    scores, all_logits = [], []
    before = streak = previous = None
    with torch.no_grad():
        for layer, features in enumerate(backbone(batch).values):
            logits = head.logits(features.unsqueeze(0), [layer])[0].float()
            logits = logits if temperatures is None else logits / temperatures[layer]
            predictions = logits.argmax(dim=-1)
            streak = next_streak(predictions, before, streak)
            scores.append(policy.score(View(logits, features, previous, streak)))
            all_logits.append(logits)
            before, previous = predictions, features
    return torch.stack(scores), torch.stack(all_logits)


def spreading(scores: Tensor) -> float:
    """The threshold, well away from every score, at which exits spread over most layers, and then most evenly."""
    levels = scores[torch.isfinite(scores)].unique()
    middles = [(a + b) / 2 for a, b in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True) if b - a > 2 * NEAR]

    def evenness(threshold: float) -> tuple[int, int]:
        counts = exit_layer(scores, threshold).bincount(minlength=len(scores))
        return int((counts > 0).sum()), int(counts.min())

    return max(middles, key=evenness)


def check(exited: Exited, scores: Tensor, logits: Tensor, threshold: float | None) -> None:
    layers = exit_layer(scores, threshold)
    left = logits[layers, torch.arange(len(layers))]
    assert exited.exit_layers.tolist() == layers.tolist()
    assert exited.predictions.tolist() == left.argmax(dim=-1).tolist()
    torch.testing.assert_close(exited.logits, left, rtol=1e-5, atol=1e-5)


def levelling(backbone: Backbone, head: Head, batch: dict[str, Tensor]) -> Tensor:
    """(L,) temperatures at which all layers are about as confident, so that samples can leave at each of them."""
    _, logits = afterwards(backbone, head, Confidence(), batch)
    grid = torch.logspace(-2, 1, 400)
    medians = torch.stack([(logits / t).softmax(dim=-1).amax(dim=-1).median(dim=1).values for t in grid])
    return grid[(medians - 0.6).abs().argmin(dim=0)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_leaves_as_if_all_layers_had_been_computed(family: str) -> None:
    backbone = backbone_of(family)
    head, batch = SharedHead(backbone), batch_of(backbone)
    temperatures = levelling(backbone, head, batch)
    for policy in (Confidence(), Similarity()):
        scores, logits = afterwards(backbone, head, policy, batch, temperatures)
        threshold = spreading(scores)
        early_exit = EarlyExit(backbone, head, policy, threshold, temperatures)
        check(early_exit(batch), scores, logits, threshold)
        layers = exit_layer(scores, threshold).unique().tolist()
        assert layers == [0, 1, 2] or (isinstance(policy, Similarity) and layers == [1, 2])


@pytest.mark.parametrize("family", ["timm ViT, class token", "BERT", "DeBERTa-v2 with a convolution", "ALBERT"])
def test_either_head_and_each_policy(family: str) -> None:
    backbone = backbone_of(family)
    batch = batch_of(backbone, 40)
    separate = SeparateHeads(backbone).eval()
    for parameter in separate.classifiers.parameters():  # those below the last start with weights of 0.02
        torch.nn.init.normal_(parameter, std=0.2)
    for head in (SharedHead(backbone), separate):
        temperatures = levelling(backbone, head, batch)
        for policy in (Confidence(), Margin(), Entropy(), Patience()):
            scores, logits = afterwards(backbone, head, policy, batch, temperatures)
            threshold = 2.0 if isinstance(policy, Patience) else spreading(scores)
            layers = set(exit_layer(scores, threshold).tolist())
            if isinstance(policy, Confidence):
                assert layers == {0, 1, 2}
            check(EarlyExit(backbone, head, policy, threshold, temperatures)(batch), scores, logits, threshold)


def rows_run(backbone: Backbone, run: Callable[[], object]) -> list[int]:
    """How many samples each call of a block got."""
    rows: list[int] = []
    blocks = backbone.blocks
    hooks = [block.register_forward_hook(lambda _, args, __: rows.append(len(args[0]))) for block in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return rows


@pytest.mark.parametrize(
    "family", ["timm ViT, class token", "BERT", "ALBERT", "DeBERTa-v2 with a convolution", "GPT-2"]
)
def test_later_blocks_run_on_those_who_remain(family: str) -> None:
    backbone = backbone_of(family)
    head, batch = SharedHead(backbone), batch_of(backbone)
    scores, _ = afterwards(backbone, head, Confidence(), batch)
    threshold = spreading(scores)
    early_exit = EarlyExit(backbone, head, Confidence(), threshold)
    early_exit(batch)  # finds which arguments have rows; that runs blocks too
    layers = exit_layer(scores, threshold)
    assert rows_run(backbone, lambda: early_exit(batch)) == [
        remain for layer in range(L) if (remain := int((layers >= layer).sum()))
    ]
    lowest, highest = 1 / 7, 1.0
    at_once = EarlyExit(backbone, head, Confidence(), lowest)
    assert rows_run(backbone, lambda: at_once(batch)) == [N]
    assert at_once(batch).exit_layers.tolist() == [0] * N
    for unreachable in (highest, None):
        never = EarlyExit(backbone, head, Confidence(), unreachable)
        assert rows_run(backbone, lambda never=never: never(batch)) == [N] * L
        assert never(batch).exit_layers.tolist() == [L - 1] * N


@pytest.mark.parametrize("family", ["timm EVA-02", "BERT", "GPT-2", "ModernBERT, mean"])
def test_a_batch_of_one(family: str) -> None:
    backbone = backbone_of(family)
    head, batch = SharedHead(backbone), batch_of(backbone, 1)
    scores, logits = afterwards(backbone, head, Confidence(), batch)
    for threshold in (1 / 7, spreading(scores), 1.0):
        check(EarlyExit(backbone, head, Confidence(), threshold)(batch), scores, logits, threshold)


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("DeBERTa-v2", 16),  # the table of relative positions has 16 rows
        ("BERT", 6),  # texts of 6 tokens: masks are (6, 1, 6, 6)
        ("Llama", 6),  # rotary angles are (1, 6, 12)
        ("OPT", 2),
        ("timm EVA-02", 4),  # rotary angles are (4, 32)
        ("timm DINOv3", 4),
        ("timm BEiT", 5),  # 5 tokens
    ],
)
def test_a_batch_as_large_as_a_table(family: str, size: int) -> None:
    backbone = backbone_of(family)
    head, batch = SharedHead(backbone), batch_of(backbone, size)
    scores, logits = afterwards(backbone, head, Confidence(), batch)
    threshold = spreading(scores)
    check(EarlyExit(backbone, head, Confidence(), threshold)(batch), scores, logits, threshold)


@pytest.mark.parametrize("family", ENCODERS)
def test_one_runner_for_padded_and_full_batches_of_any_size(family: str) -> None:
    """Many models leave a mask out where nothing is padding, so the same block gets other arguments."""
    backbone = backbone_of(family)
    head = SharedHead(backbone)
    early_exit = EarlyExit(backbone, head, Similarity(), 0.0)
    for size, ragged in ((5, False), (8, True), (3, False), (2, True), (3, True)):
        batch = batch_of(backbone, size, ragged)
        scores, logits = afterwards(backbone, head, Similarity(), batch)
        early_exit.threshold = spreading(scores)
        check(early_exit(batch), scores, logits, early_exit.threshold)


def test_inputs_that_have_rows_in_one_batch_and_none_in_another() -> None:
    """Llama's positions are (1, T) of its own, or (N, T) where the data gives them."""
    backbone = backbone_of("Llama")
    head = SharedHead(backbone)
    early_exit = EarlyExit(backbone, head, Confidence(), 0.5)
    plain = batch_of(backbone)
    placed = plain | {"position_ids": torch.arange(6).repeat(N, 1) + torch.arange(N).unsqueeze(1)}
    for batch in (plain, placed, plain):
        scores, logits = afterwards(backbone, head, Confidence(), batch)
        early_exit.threshold = spreading(scores)
        check(early_exit(batch), scores, logits, early_exit.threshold)


def test_a_mask_that_first_appears_later() -> None:
    """Mistral's window masks nothing in full batches of short texts, and something in those of longer ones."""
    backbone = tiny_transformers.build(CAUSAL["Mistral"] | {"sliding_window": 8})
    head = SharedHead(backbone)
    early_exit = EarlyExit(backbone, head, Confidence(), 0.5)
    masks: list[object] = []
    backbone.model.model.layers[0].register_forward_pre_hook(
        lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    for tokens in (4, 20):
        texts = torch.randint(5, 50, (N, tokens), generator=torch.Generator().manual_seed(tokens))
        batch = {"input_ids": texts, "attention_mask": torch.ones_like(texts)}
        scores, logits = afterwards(backbone, head, Confidence(), batch)
        early_exit.threshold = spreading(scores)
        check(early_exit(batch), scores, logits, early_exit.threshold)
    assert masks[0] is None
    assert masks[-1] is not None


def test_modes_and_hooks_are_as_before() -> None:
    """Dropout is off on the way; afterwards each part is in its own mode, also where the model failed."""
    backbone = test_vision.build("vit_tiny_patch16_224", 32, {"drop_rate": 0.5, "proj_drop_rate": 0.5})
    head, batch = SharedHead(backbone), batch_of(backbone)
    scores, logits = afterwards(backbone, head.eval(), Confidence(), batch)
    threshold = spreading(scores)
    early_exit = EarlyExit(backbone, head, Confidence(), threshold)
    backbone.train()
    head.train()
    frozen = backbone.model.blocks[0].eval()
    modes = [module.training for module in (*backbone.modules(), *head.modules())]
    check(early_exit(batch), scores, logits, threshold)
    assert [module.training for module in (*backbone.modules(), *head.modules())] == modes
    assert not frozen.training

    head.classifier = torch.nn.Linear(3, 7)  # of another width
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        early_exit(batch)
    assert backbone.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_labels_and_positions_may_come_along() -> None:
    backbone = backbone_of("BERT")
    head, batch = SharedHead(backbone), batch_of(backbone)
    scores, logits = afterwards(backbone, head, Confidence(), batch)
    threshold = spreading(scores)
    more: dict[str, Any] = {"label": torch.zeros(N, dtype=torch.long), "position": torch.arange(N), "name": ["a"] * N}
    check(EarlyExit(backbone, head, Confidence(), threshold)(batch | more), scores, logits, threshold)


class Mixing(torch.nn.Module):
    """A block that looks at the whole batch."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> Tensor:
        return self.block(tokens) + tokens.mean(dim=0)


class Crossed(torch.nn.Module):
    """A block that is given something of every pair of samples."""

    def forward(self, tokens: Tensor, pairs: Tensor) -> Tensor:
        return tokens + pairs.sum()


@pytest.mark.parametrize("spoil", ["mixing", "crossed"])
def test_a_model_whose_samples_hang_together_is_refused(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of("timm ViT, class token")
    assert isinstance(backbone, TimmBackbone)
    batch = batch_of(backbone)
    scores, _ = afterwards(backbone, SharedHead(backbone), Confidence(), batch)
    early_exit = EarlyExit(backbone, SharedHead(backbone), Confidence(), spreading(scores))
    if spoil == "mixing":
        backbone.model.blocks[1] = Mixing(backbone.model.blocks[1])
        message = "cannot take samples out.*the others' features change"
    else:
        crossed = Crossed()
        first = backbone.model.blocks[0]
        backbone.model.blocks = torch.nn.ModuleList([first, crossed, crossed])
        monkeypatch.setattr(
            backbone.model,
            "forward_features",
            lambda images: crossed(
                first(images[:, 0, :5].repeat(1, 1, 2)[..., :48]), torch.ones(len(images), len(images))
            ),
        )
        message = r"a tensor that is \(2, 2\) for two samples and \(3, 3\) for three"
    with pytest.raises(UserError, match=message):
        early_exit(batch)


def test_a_language_model_is_refused() -> None:
    backbone = tiny_transformers.build(CAUSAL["GPT-2"], "language-modeling")
    with pytest.raises(UserError, match=r"samples can leave a batch early.*task to classification"):
        EarlyExit(backbone, SharedHead(backbone), Confidence(), 0.5)


def test_what_cannot_be_a_threshold_or_temperature_is_refused() -> None:
    backbone = tiny_transformers.build(ENCODERS["DeBERTa-v2"] | DEBERTA)
    head = SharedHead(backbone)
    with pytest.raises(UserError, match=r"threshold of .* for the policy confidence"):
        EarlyExit(backbone, head, Confidence(), 1.5)
    for temperatures in (torch.ones(2), torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(UserError, match="a positive temperature for each of the 3 layers"):
            EarlyExit(backbone, head, Confidence(), 0.5, temperatures)


@pytest.mark.parametrize("family", ["timm ViT, class token", "BERT"])
def test_batches_of_arrays_lists_and_other_precisions_are_read_as_tensors(family: str) -> None:
    backbone = backbone_of(family)
    early_exit, batch = EarlyExit(backbone, SharedHead(backbone), Confidence(), None), batch_of(backbone)
    expected = early_exit(batch).logits
    wide = {key: value.double() if key == "image" else value.int() for key, value in batch.items()}
    for given in ({key: value.numpy() for key, value in batch.items()}, wide, {k: v.tolist() for k, v in wide.items()}):
        assert torch.equal(early_exit(given).logits, expected)
    with pytest.raises(UserError, match=r"Expected .* one or more,.* but got torch\.\w+ of shape \(0, "):
        early_exit({key: value[:0] for key, value in batch.items()})
    with pytest.raises(UserError, match=r"The batch's \w+ cannot be read"):
        early_exit({key: [[1.0], [1.0, 2.0]] for key in batch})


def test_pixels_and_tokens_that_no_model_reads_are_refused() -> None:
    vision, text = backbone_of("timm ViT, class token"), backbone_of("BERT")
    images = batch_of(vision)["image"]
    with pytest.raises(UserError, match=r"images as floats, .* but got torch.uint8 of shape \(9, .* EarlyExit.load"):
        EarlyExit(vision, SharedHead(vision), Confidence(), None)({"image": (images.abs() * 50).to(torch.uint8)})
    read, batch = EarlyExit(text, SharedHead(text), Confidence(), None), batch_of(text)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for wrong, shown in ((ids + 50, mask), (ids - 50, mask), (ids.float(), mask), (ids[0], mask[0]), (ids, mask[:3])):
        with pytest.raises(UserError, match=r"numbers of the model's vocabulary, 0 … 49, .* but got torch\."):
            read({"input_ids": wrong, "attention_mask": shown})


def test_names_and_temperatures_come_as_people_have_them() -> None:
    backbone = backbone_of("timm ViT, class token")
    head, batch, names = SharedHead(backbone), batch_of(backbone), [f"class {number}" for number in range(7)]
    temperatures = [0.5, 2.0, 4.0]
    expected = EarlyExit(backbone, head, Confidence(), 0.3, torch.tensor(temperatures))(batch)
    for given in (names, np.array(names), dict(enumerate(names))):
        told: Any = given
        found = EarlyExit(backbone, head, Confidence(), 0.3, temperatures, class_names=told)(batch)
        assert torch.equal(found.logits, expected.logits)
        assert found.class_names == [names[number] for number in expected.predictions.tolist()]
    with pytest.raises(UserError, match="Expected names of 7 classes, but got 6"):
        EarlyExit(backbone, head, Confidence(), 0.3, class_names=names[:6])
    with pytest.raises(UserError, match=r"positive temperature for each of the 3 layers, but got \[0.5, 2.0\]"):
        EarlyExit(backbone, head, Confidence(), 0.3, temperatures[:2])


class Told(Alarm):
    """Keeps what it was told."""

    def observe(self, doubt: Tensor, depth: Tensor) -> None:
        self.told = doubt, depth
        super().observe(doubt, depth)
