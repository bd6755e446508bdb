"""Which tokens of a language model's batch count, and what they predict."""

import pytest
import torch
from torch import Tensor

from layersim.backbones.tokens import POSITIONS, pooled, predicting_tokens
from layersim.errors import UserError
from layersim.heads import SharedHead
from tests.backbones.tiny_transformers import CAUSAL, L, batch_for, build

RIGHT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
LEFT = RIGHT.flip(1)
WORDS = torch.tensor([[10, 11, 12, 13], [20, 21, 0, 0]])


def test_each_token_predicts_the_next_and_padding_predicts_nothing() -> None:
    tokens = predicting_tokens({"attention_mask": RIGHT, "label": WORDS, "position": torch.tensor([3, 8])})
    assert tokens.targets is not None
    assert tokens.position is not None
    assert tokens.targets.tolist() == [11, 12, 13, 21]
    assert tokens.rows.tolist() == [0, 0, 0, 1]
    assert tokens.columns.tolist() == [0, 1, 2, 0]
    assert tokens.position.tolist() == [3 * POSITIONS, 3 * POSITIONS + 1, 3 * POSITIONS + 2, 8 * POSITIONS]
    assert tokens.position.dtype == torch.int64
    assert tokens.position.device.type == "cpu"


def test_a_token_keeps_its_index_on_whichever_side_and_however_far_a_text_is_padded() -> None:
    index = torch.tensor([3, 8])
    words = torch.tensor([[10, 11, 12, 13], [0, 0, 20, 21]])
    left = predicting_tokens({"attention_mask": LEFT, "label": words, "position": index})
    right = predicting_tokens({"attention_mask": RIGHT, "label": WORDS, "position": index})
    assert left.columns.tolist() == [0, 1, 2, 2]
    assert left.targets.tolist() == right.targets.tolist()  # type: ignore[union-attr]
    assert left.position.tolist() == right.position.tolist()  # type: ignore[union-attr]


def test_masked_labels_are_no_targets() -> None:
    """A prompt of two tokens: its last token already predicts the answer's first."""
    label = WORDS.clone()
    label[0, :2] = -100
    label[1] = -100
    tokens = predicting_tokens({"attention_mask": RIGHT, "label": label})
    assert tokens.targets.tolist() == [12, 13]  # type: ignore[union-attr]
    assert tokens.columns.tolist() == [1, 2]
    assert tokens.position is None


def test_without_labels_every_token_counts_and_none_has_a_target() -> None:
    tokens = predicting_tokens({"attention_mask": LEFT})
    assert tokens.targets is None
    assert list(zip(tokens.rows.tolist(), tokens.columns.tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3),
    ]  # fmt: skip


def test_a_batch_with_nothing_to_predict_is_refused() -> None:
    with pytest.raises(UserError, match=r"no token predicts a target.*-100"):
        predicting_tokens({"attention_mask": RIGHT, "label": torch.full((2, 4), -100)})


@pytest.mark.parametrize("family", CAUSAL)
def test_the_last_layers_loss_is_the_librarys_own(family: str) -> None:
    """transformers shifts the labels itself; with padding labelled −100 both count the same tokens."""
    backbone = build(CAUSAL[family], "language-modeling")
    batch = batch_for(backbone)
    batch["label"] = batch["input_ids"].where(batch["attention_mask"] > 0, torch.tensor(-100))
    batch["label"][0, :3] = -100
    own = backbone.model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["label"]).loss
    features = backbone(batch)
    assert features.targets is not None
    assert features.values.shape == (L, 3 + 2 + 3, 24)
    losses = SharedHead(backbone)(features.values, features.targets, range(L)).losses
    torch.testing.assert_close(losses[-1], own, rtol=1e-5, atol=1e-5)


def test_what_padding_holds_reaches_nothing() -> None:
    backbone = build(CAUSAL["Llama"], "language-modeling")
    batch = batch_for(backbone)
    batch["label"] = batch["input_ids"]
    other = batch["input_ids"].where(batch["attention_mask"] > 0, torch.tensor(7))
    found, expected = backbone(batch | {"input_ids": other, "label": other}), backbone(batch)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    assert torch.equal(found.targets, expected.targets)  # type: ignore[arg-type]


TOKENS = torch.arange(24.0).view(2, 4, 3)


@pytest.mark.parametrize(
    ("rule", "mask", "expected"),
    [
        ("first", RIGHT, [[0, 1, 2], [12, 13, 14]]),
        ("last", RIGHT, [[9, 10, 11], [15, 16, 17]]),
        ("last", LEFT, [[9, 10, 11], [21, 22, 23]]),
        ("mean", RIGHT, [[4.5, 5.5, 6.5], [13.5, 14.5, 15.5]]),
        ("mean", None, [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]),
        ("class and mean", None, [[0, 1, 2, 6, 7, 8], [12, 13, 14, 18, 19, 20]]),
    ],
)
def test_poolings(rule: str, mask: Tensor | None, expected: list[list[float]]) -> None:
    torch.testing.assert_close(pooled(TOKENS, mask, rule), torch.tensor(expected).float())  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "count", "value"), [(torch.float16, 300, 300.0), (torch.bfloat16, 257, 3.0)])
def test_a_mean_in_half_precision_is_summed_in_single(dtype: torch.dtype, count: int, value: float) -> None:
    """float16 holds no 90 000, bfloat16 no 257."""
    tokens = torch.full((1, count, 2), value, dtype=dtype)
    for mask in (None, torch.ones(1, count).long()):
        assert torch.equal(pooled(tokens, mask, "mean"), tokens[:, 0])
