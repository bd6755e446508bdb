"""Tokens that leave early: what is written is what a computation without caches, or one written out, would write."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from layersim.backbones import TransformersBackbone
from layersim.errors import UserError
from layersim.exits import Confidence, Entropy, Margin, Patience, Policy, Similarity, TokenExit, Written, exit_layer
from layersim.exits.policies import View, next_streak
from layersim.heads import Head, SeparateHeads, SharedHead
from tests.backbones import tiny_transformers
from tests.backbones.tiny_transformers import CAUSAL, L

N, P, T = 4, 6, 8
SHARP = 15
UNREAD = {"OPT, projected, norms behind"}  # its projection stands between blocks and head: another width is kept


def sharp(family: str) -> TransformersBackbone:
    """A model of random weights whose layers are sure of some tokens and not of others."""
    backbone = tiny_transformers.build(CAUSAL[family], "language-modeling")
    with torch.no_grad():
        for parameter in backbone.final_norm.parameters():
            parameter.mul_(SHARP)
    return backbone.eval()


def prompts() -> tuple[Tensor, Tensor]:
    """Those of a batch, padded in front."""
    ids = torch.randint(3, 50, (N, P), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(N):
        mask[row, :row] = 0
    return ids, mask


def scores(policy: Policy, head: Head, features: Tensor) -> tuple[Tensor, Tensor]:
    """A policy's (L, N) of features (L, N, D), and the logits (L, N, C), every layer being read."""
    logits = head.logits(features, range(len(features)))
    found, previous, predictions, streak = [], None, None, None
    for each, own in zip(logits, features, strict=True):
        streak = next_streak(each.argmax(dim=-1), predictions, streak)
        found.append(policy.score(View(each, own, previous, streak)))
        previous, predictions = own, each.argmax(dim=-1)
    return torch.stack(found), logits


@torch.no_grad()
def without_cache(
    backbone: TransformersBackbone, head: Head, policy: Policy, threshold: float, ids: Tensor
) -> tuple[list[int], list[int]]:
    """Tokens and exit layers of one text, each token being read from the whole text so far."""
    tokens, layers = [], []
    for step in range(T):
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        features = backbone(batch).values[:, -1:]
        told, logits = scores(policy, head, features)
        layer = int(exit_layer(told, threshold if step else None))
        tokens.append(int(logits[layer, 0].argmax()))
        layers.append(layer)
        ids = torch.cat([ids, torch.tensor([[tokens[-1]]])], dim=1)
    return tokens, layers


@pytest.mark.parametrize("family", [family for family in CAUSAL if family not in UNREAD])
def test_with_no_threshold_the_tokens_are_those_of_transformers(family: str) -> None:
    backbone = sharp(family)
    ids, mask = prompts()

    written = TokenExit(backbone, SharedHead(backbone), Confidence(), None).generate(ids, mask, T)

    options = {"do_sample": False, "max_new_tokens": T, "min_new_tokens": T, "pad_token_id": 0}
    assert written.tokens.tolist() == backbone.model.generate(ids, attention_mask=mask, **options)[:, P:].tolist()
    assert (written.exit_layers == backbone.num_layers - 1).all()


@pytest.mark.parametrize(
    ("policy", "threshold"),
    [(Confidence(), 0.5), (Margin(), 0.3), (Entropy(), 0.65), (Patience(), 2.0), (Similarity(), 0.92)],
    ids=lambda each: getattr(each, "name", ""),
)
def test_exact_keys_give_what_reading_the_whole_text_at_each_token_gives(policy: Policy, threshold: float) -> None:
    backbone = sharp("Llama")
    head = SharedHead(backbone)
    ids, _ = prompts()

    written = TokenExit(backbone, head, policy, threshold, kv="exact").generate(ids, None, T)

    expected = [without_cache(backbone, head, policy, threshold, row.unsqueeze(0)) for row in ids]
    assert written.tokens.tolist() == [tokens for tokens, _ in expected]
    assert written.exit_layers.tolist() == [layers for _, layers in expected]
    assert 0 < (written.exit_layers[:, 1:] < L - 1).double().mean() < 1, "some leave, some stay"


@torch.no_grad()
def copied_by_hand(backbone: Any, head: Head, threshold: float, ids: Tensor) -> tuple[list[int], list[int]]:
    """CALM for a Llama, written out: behind its exit a token goes on to each layer's keys and values as it is."""
    model = backbone.model.model
    keys: list[list[Tensor]] = [[] for _ in model.layers]
    values: list[list[Tensor]] = [[] for _ in model.layers]
    tokens: list[int] = []
    layers: list[int] = []
    text = ids[0].tolist()
    for place in range(P + T - 1):
        hidden = model.embed_tokens(torch.tensor([[text[place]]]))
        cos, sin = model.rotary_emb(hidden, torch.tensor([[place]]))
        left, logits = None, None
        for number, layer in enumerate(model.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                project(normed).view(1, 1, -1, attention.head_dim).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            keys[number].append(key)
            values[number].append(value)
            if left is not None:
                continue
            shared = query.shape[1] // key.shape[1]
            past = torch.cat(keys[number], dim=2).repeat_interleave(shared, dim=1)
            weights = (query @ past.transpose(2, 3) * attention.scaling).softmax(dim=-1)
            mixed = weights @ torch.cat(values[number], dim=2).repeat_interleave(shared, dim=1)
            hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(1, 1, -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            logits = head.logits(hidden[:, -1].unsqueeze(0), [number])[0, 0]
            if number == len(model.layers) - 1 or (place >= P and logits.softmax(dim=0).amax() >= threshold):
                left = number
        if place >= P - 1:
            assert left is not None
            assert logits is not None
            tokens.append(int(logits.argmax()))
            layers.append(left)
            text.append(tokens[-1])
    return tokens, layers


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7])
def test_copied_keys_give_what_calm_gives_written_out(threshold: float) -> None:
    backbone = sharp("Llama")
    head = SharedHead(backbone)
    ids, _ = prompts()

    written = TokenExit(backbone, head, Confidence(), threshold, kv="copied").generate(ids, None, T)

    expected = [copied_by_hand(backbone, head, threshold, row.unsqueeze(0)) for row in ids]
    assert written.tokens.tolist() == [tokens for tokens, _ in expected]
    assert written.exit_layers.tolist() == [layers for _, layers in expected]
    exact = TokenExit(backbone, head, Confidence(), threshold).generate(ids, None, T)
    assert (exact.tokens != written.tokens).any(), "the two ways differ"


@pytest.mark.parametrize("keys", ["copied", "exact"])
@pytest.mark.parametrize("family", [family for family in CAUSAL if family not in UNREAD])
def test_a_text_of_a_batch_is_written_as_alone(family: str, keys: Any) -> None:
    backbone = sharp(family)
    exits = TokenExit(backbone, SharedHead(backbone), Confidence(), 0.5, kv=keys)
    ids, mask = prompts()

    together = exits.generate(ids, mask, T)
    alone = [exits.generate(ids[row : row + 1, row:], None, T) for row in range(N)]

    assert together.tokens.tolist() == [each.tokens[0].tolist() for each in alone]
    assert together.exit_layers.tolist() == [each.exit_layers[0].tolist() for each in alone]


def test_tokens_leave_only_where_they_may() -> None:
    backbone = sharp("GPT-2")
    head = SeparateHeads(backbone)
    ids, mask = prompts()

    for at in ([1], {1}, np.array([1]), torch.tensor([1])):
        written = TokenExit(backbone, head, Confidence(), 0.03, at, kv="exact").generate(ids, mask, T)
        assert {*written.exit_layers[:, 1:].flatten().tolist()} == {1}

    assert written.mean_exit_layer() == pytest.approx((L + (T - 1) * 2) / T)


def test_a_text_ends_at_a_stop_token_and_the_others_go_on() -> None:
    backbone = sharp("Llama")
    exits = TokenExit(backbone, SharedHead(backbone), Confidence(), 0.5)
    ids, mask = prompts()
    free = exits.generate(ids, mask, T)
    stop = int(free.tokens[1, 2])

    written = exits.generate(ids, mask, T, stop=[stop])

    for row, own in zip(written.tokens.tolist(), free.tokens.tolist(), strict=True):
        end = own.index(stop) + 1 if stop in own else T
        assert row == own[:end] + [stop] * (T - end)
    ended = (written.exit_layers < 0).sum(dim=1)
    assert ended[1] == T - 1 - free.tokens[1].tolist().index(stop) > 0
    assert written.mean_exit_layer() == pytest.approx(
        float(written.exit_layers[written.exit_layers >= 0].double().mean()) + 1
    )


def test_prompts_and_ends_come_as_people_have_them() -> None:
    exits, (ids, mask) = TokenExit(backbone := sharp("Llama"), SharedHead(backbone), Confidence(), 0.5), prompts()
    whole = exits.generate(ids, mask, T)
    assert torch.equal(exits.generate(ids.tolist(), mask.tolist(), T).tokens, whole.tokens)
    assert torch.equal(exits.generate(ids.int(), mask > 0, T).tokens, whole.tokens)
    assert torch.equal(exits.generate(ids, mask.float(), T, stop=None).tokens, whole.tokens)
    forced = exits.generate(ids, mask, T, forced=whole.tokens.tolist())
    assert forced.tokens.tolist() == whole.tokens.tolist()
    end = int(whole.tokens[0, 1])
    expected = exits.generate(ids, mask, T, stop=[end])
    assert (expected.exit_layers[0, 2:] == -1).all()
    alike: list[Any] = [end, {end}, torch.tensor([end]), torch.tensor(end), np.int64(end), np.array([end]), (end, end)]
    for stop in alike:
        assert torch.equal(exits.generate(ids, mask, T, stop=stop).exit_layers, expected.exit_layers)


def test_a_stop_that_no_token_can_be_is_refused() -> None:
    exits, (ids, mask) = TokenExit(backbone := sharp("Llama"), SharedHead(backbone), Confidence(), 0.5), prompts()
    known = backbone.vocabulary_size
    wrong: list[Any] = [known, -1, {0, known}, torch.tensor([known]), 0.5, True]
    for stop in wrong:
        with pytest.raises(UserError, match=rf"stop: expected tokens of the model, 0 … {known - 1}, but got "):
            exits.generate(ids, mask, T, stop=stop)
    exits.generate(ids, mask, 1, stop=known - 1)
    with pytest.raises(UserError, match="The stop tokens cannot be read"):
        exits.generate(ids, mask, T, stop=object())  # type: ignore[arg-type]


def test_the_loss_of_forced_tokens_is_the_models_own() -> None:
    backbone = sharp("Llama")
    ids, mask = prompts()
    forced = torch.randint(3, 50, (N, T), generator=torch.Generator().manual_seed(2))

    written = TokenExit(backbone, SharedHead(backbone), Confidence(), None).generate(ids, mask, T, forced=forced)

    whole = torch.cat([ids, forced], dim=1)
    positions = (torch.cat([mask, torch.ones_like(forced)], dim=1).cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = backbone.model(
            input_ids=whole, attention_mask=torch.cat([mask, torch.ones_like(forced)], dim=1), position_ids=positions
        ).logits[:, P - 1 : -1]
    expected = cross_entropy(logits.transpose(1, 2), forced, reduction="none")
    torch.testing.assert_close(written.losses, expected, rtol=1e-4, atol=1e-4)
    assert written.tokens.tolist() == forced.tolist()


def test_what_cannot_leave_early_is_refused_by_name() -> None:
    backbone = sharp("Llama")
    head = SharedHead(backbone)
    with pytest.raises(UserError, match=r"exit layers of 0 … 2, but got 3, 7"):
        TokenExit(backbone, head, Confidence(), 0.5, [0, 7, 3])
    with pytest.raises(UserError, match=r"exit layers of 0 … 2, but got 1\.7"):
        TokenExit(backbone, head, Confidence(), 0.5, [0, 1.7])  # type: ignore[list-item]
    with pytest.raises(UserError, match="threshold of"):
        TokenExit(backbone, head, Confidence(), 1.5)
    with pytest.raises(UserError, match=r"Expected a policy, such as .*Confidence\(\), but got 'confidence'"):
        TokenExit(backbone, head, "confidence", 0.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Expected a number or None as threshold, but got '0\.5'"):
        TokenExit(backbone, head, Confidence(), "0.5")  # type: ignore[arg-type]
    exits = TokenExit(backbone, head, Confidence(), 0.5)
    ids, mask = prompts()
    with pytest.raises(UserError, match="padding_side to left"):
        exits.generate(ids, mask.flip(1), T)
    with pytest.raises(UserError, match=r"takes up to 40 tokens, but 56 .*max_new_tokens"):
        exits.generate(ids, mask, 50)
    nothing: list[Any] = [[], [[]], ids[:0], ids[:, :0], ids[0], ids + 50, ids - 50, ids.float()]
    for wrong in nothing:
        with pytest.raises(UserError, match=r"numbers of the model's vocabulary, 0 … 49, one or more"):
            exits.generate(wrong)
    with pytest.raises(UserError, match=r"The tokens cannot be read: .* shorter texts padded"):
        exits.generate([[3, 4], [5]])
    classifier = tiny_transformers.build(tiny_transformers.CLASSIFIERS["BERT"])
    with pytest.raises(UserError, match="Exits of classifiers are EarlyExit's"):
        TokenExit(classifier, SharedHead(classifier), Confidence(), 0.5)


@pytest.mark.filterwarnings("ignore:.*")
def test_a_recurrent_state_cannot_be_extended() -> None:
    options = {"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 16, "vocab_size": 50, "state_size": 4}
    backbone = TransformersBackbone(task="language-modeling", pretrained=False, config_args=options)
    with pytest.raises(UserError, match="not each of its layers keeps keys and values"):
        TokenExit(backbone, SharedHead(backbone), Confidence(), 0.5)


def test_the_mean_counts_layers_from_one() -> None:
    written = Written(torch.zeros(1, 3), torch.tensor([[2, 0, -1]]), None)
    assert written.mean_exit_layer() == 2
