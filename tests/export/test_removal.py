"""Layer removal by similarity: which blocks, and what it costs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersim.errors import UserError
from layersim.export.removal import Removal, feature_changes, propose_removal, try_removal
from layersim.export.truncation import truncate
from layersim.heads import SharedHead
from tests.backbones import test_vision, tiny_transformers
from tests.backbones.tiny_transformers import CAUSAL
from tests.export.exported import batch, separate


def turned(*degrees: float) -> Tensor:
    """(L, L) angular distances of features in a plane, at these directions."""
    angles = torch.tensor(degrees, dtype=torch.float64)
    return (angles.unsqueeze(0) - angles.unsqueeze(1)).abs() / 180


def test_the_blocks_that_turn_features_least_go() -> None:
    """Directions after blocks 1 … 6; block 3 turns by 1 degree, blocks 4 and 5 together by 5."""
    changes = turned(0, 40, 41, 61, 46, 90)
    assert propose_removal(changes, 1) == Removal(3, 3, 6, "angular", changes[1, 2].item())
    two = propose_removal(changes, 2)
    assert (two.first, two.last) == (4, 5)
    assert two.change == pytest.approx(5 / 180)
    assert two.kept == [0, 1, 2, 5]
    assert propose_removal(changes, 5).kept == [0], "the first block always stays"


def test_of_equals_the_deepest_goes() -> None:
    assert propose_removal(turned(0, 30, 60, 90), 1).first == 4


@pytest.mark.parametrize("blocks", [0, 4])
def test_as_many_blocks_as_there_are_cannot_go(blocks: int) -> None:
    with pytest.raises(UserError, match=rf"remove 1 … 3 of 4 blocks, but got {blocks}"):
        propose_removal(turned(0, 30, 60, 90), blocks)


def test_undefined_changes_are_refused() -> None:
    changes = turned(0, 30, 60)
    changes[1] = changes[:, 1] = math.nan
    with pytest.raises(UserError, match="no direction at some layer"):
        propose_removal(changes, 1)
    assert propose_removal(changes, 2).first == 2, "the layer that has none is not looked at"


def test_changes_are_the_published_formulas_over_all_samples() -> None:
    """arccos(cos) / π and 1 − cos in float64, whatever the batches."""
    backbone = test_vision.build(*test_vision.FAMILIES["ViT, class token"])
    images = torch.randn(5, *backbone.input_size)
    with torch.no_grad():
        units = nn.functional.normalize(backbone({"image": images}).values.double(), dim=-1)
    cosines = torch.einsum("lnd,mnd->nlm", units, units).clamp(-1, 1)
    batches: Any = [{"image": images[:3]}, {"image": images[3:]}]
    off = ~torch.eye(3, dtype=torch.bool)
    angular = feature_changes(backbone, batches)
    torch.testing.assert_close(angular[off], (cosines.acos() / math.pi).mean(0)[off], rtol=0, atol=1e-6)
    influence = feature_changes(backbone, batches, "influence")
    torch.testing.assert_close(influence[off], (1 - cosines).mean(0)[off], rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="criterion: expected one of angular, influence, got 'cka'"):
        feature_changes(backbone, batches, "cka")  # type: ignore[arg-type]


def test_a_block_that_does_nothing_is_found_and_costs_nothing() -> None:
    """Block 2 adds nothing, so it goes, and prediction, measurement and whole model are one; another block costs."""
    backbone = test_vision.build("vit_tiny_patch16_224", 32, {"depth": 4})
    with torch.no_grad():
        for part in (backbone.model.blocks[1].attn.proj, backbone.model.blocks[1].mlp.fc2):
            part.weight.zero_()
            part.bias.zero_()
    data: Any = [batch(backbone) | {"label": torch.tensor([1, 5, 2])}]
    removal = propose_removal(feature_changes(backbone, data), 1)
    assert (removal.first, removal.last, removal.kept) == (2, 2, [0, 2, 3])
    assert removal.change == pytest.approx(0, abs=1e-6)
    trial = try_removal(backbone, SharedHead(backbone), removal, data)
    assert trial.samples == 3
    for score in (trial.predicted, trial.measured):
        assert score.loss == pytest.approx(trial.whole.loss, rel=1e-5)
        assert score.accuracy == trial.whole.accuracy
    other = try_removal(backbone, SharedHead(backbone), Removal(3, 3, 4, "angular", 1.0), data)
    assert abs(other.measured.loss - other.whole.loss) > 0.01
    assert abs(other.predicted.loss - other.measured.loss) > 1e-4, "a guess where blocks above see another input"


@pytest.mark.parametrize("wrong", [-100, -1, 7])
def test_labels_that_are_no_class_are_refused(wrong: int) -> None:
    backbone = test_vision.build(*test_vision.FAMILIES["DeiT"])
    assert backbone.num_classes == 7
    data = batch(backbone) | {"label": torch.tensor([1, wrong, 2])}
    with pytest.raises(UserError, match=rf"a label in 0 … 6 for each of 3 samples, but got torch.int64 .*{wrong}"):
        try_removal(backbone, SharedHead(backbone), Removal(2, 2, 3, "angular", 0.5), [data])


@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_removing_the_end_is_predicted_exactly(heads: str) -> None:
    """It is the readout where the model then ends."""
    backbone = test_vision.build(*test_vision.FAMILIES["DeiT"])
    head = separate(backbone) if heads == "separate" else SharedHead(backbone)
    labels = torch.tensor([1, 5, 2])
    trial = try_removal(backbone, head, Removal(2, 3, 3, "angular", 0.5), [batch(backbone) | {"label": labels}])
    with torch.no_grad():
        readout = head(backbone(batch(backbone), [0]).values, labels, [0])
    assert trial.predicted.loss == pytest.approx(readout.losses.item(), rel=1e-5)
    assert trial.measured.loss == pytest.approx(trial.predicted.loss, rel=1e-5)
    assert trial.measured.accuracy == (readout.predictions[0] == labels).double().mean().item()


def test_a_language_model_is_measured_on_the_tokens_that_predict() -> None:
    """The stock model's own loss, on batches whose tokens differ in number."""
    backbone = tiny_transformers.build(CAUSAL["Llama"], "language-modeling")
    texts = batch(backbone)
    labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
    whole: Any = texts | {"label": labels}
    batches: Any = [{key: rows[:1] for key, rows in whole.items()}, {key: rows[1:] for key, rows in whole.items()}]
    trial = try_removal(backbone, SharedHead(backbone), Removal(2, 2, 3, "angular", 0.5), batches)
    model = truncate(backbone, SharedHead(backbone), [0, 2])
    with torch.no_grad():
        expected = model(**texts, labels=labels).loss
        full = backbone.model(**texts, labels=labels).loss
    assert trial.samples == 5 + 2 + 3
    assert trial.measured.loss == pytest.approx(expected.item(), rel=1e-5)
    assert trial.whole.loss == pytest.approx(full.item(), rel=1e-5)


def test_measuring_needs_labels_and_leaves_modes_alone() -> None:
    """Of each part: a new head says that it is in training, while the parts it shares with its backbone are not."""
    backbone = test_vision.build(*test_vision.FAMILIES["ViT with dropout before its classifier"])
    head = SharedHead(backbone)
    backbone.model.blocks[1].train()
    before = [part.training for part in (*head.modules(), *backbone.modules())]
    assert before[0]
    assert not backbone.model.head_drop.training
    removal = Removal(2, 2, 3, "angular", 0.5)
    with pytest.raises(UserError, match=r"Expected a label .* but got none"):
        try_removal(backbone, head, removal, [batch(backbone)])
    with pytest.raises(UserError, match="got none"):
        try_removal(backbone, head, removal, [])
    assert [part.training for part in (*head.modules(), *backbone.modules())] == before
