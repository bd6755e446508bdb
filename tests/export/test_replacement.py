"""A linear map in the place of removed blocks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.export import export_as
from layersim.export.removal import Removal, try_removal
from layersim.export.replacement import replace_linear
from layersim.export.truncation import library_of, truncate
from layersim.heads import SharedHead
from tests.backbones import test_vision, tiny_transformers
from tests.backbones.tiny_transformers import CAUSAL, CLASSIFIERS
from tests.export.exported import batch, separate

FAMILIES: dict[str, Any] = {
    "GPT-2": ("language-modeling", True),
    "GPT-NeoX": ("language-modeling", True),
    "Llama": ("language-modeling", False),
    "Qwen2": ("classification", False),
    "ViT": ("classification", True),
    "DINOv2": ("classification", True),
    "ModernBERT": ("classification", False),
}
"""Whether the block's last map has a bias: GPT-2's weights stand inputs first; DINOv2 scales each channel behind it."""


def drawn(backbone: Backbone, number: int, seed: int = 3) -> list[Any]:
    """Batches of other samples, some tokens of the texts padding."""
    generator = torch.Generator().manual_seed(seed)
    like, batches = batch(backbone), []
    for _ in range(number):
        one = dict(like)
        if "image" in one:
            one["image"] = torch.randn(one["image"].shape, generator=generator)
        else:
            one["input_ids"] = torch.randint(5, 50, one["input_ids"].shape, generator=generator)
        batches.append(one)
    return batches


def built(family: str, task: Any) -> Backbone:
    return tiny_transformers.build((CLASSIFIERS | CAUSAL)[family], task)


def features(backbone: Backbone, given: Any, layer: int) -> Tensor:
    """All tokens that are no padding, (N, D)."""
    with torch.no_grad():
        (tokens,) = backbone.read_blocks(given, lambda tokens: tokens, [layer])
    return tokens[given["attention_mask"] > 0] if "attention_mask" in given else tokens.flatten(0, -2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_is_least_squares_over_the_tokens(family: str) -> None:
    """Features of the folded block are those of NumPy's least squares in float64, from what its last map gave."""
    task, biased = FAMILIES[family]
    backbone = built(family, task)
    batches = drawn(backbone, 20)
    folded, _ = replace_linear(backbone, SharedHead(backbone), Removal(2, 2, 3, "angular", 0.5), batches)
    before, after, new = (
        torch.cat([features(model, one, layer) for one in batches]).double().numpy()
        for model, layer in ((backbone, 0), (backbone, 1), (folded, 0))
    )
    names = ["mlp.c_proj", "mlp.dense_4h_to_h", "mlp.down_proj", "layer_scale2", "output.dense", "mlp.fc2", "mlp.Wo"]
    paths = dict(backbone.blocks[0].named_modules())
    last = next(paths[name] for name in names if name in paths)
    gave: list[Tensor] = []
    with last.register_forward_hook(lambda module, args, output: gave.append(output.detach())):
        for one in batches:
            tokens = features(backbone, one, 0)
            rows = gave[-1].reshape(-1, tokens.shape[-1])
            gave[-1] = rows[one["attention_mask"].flatten() > 0] if len(rows) > len(tokens) else rows
    put_in = torch.cat(gave).double().numpy()
    unknowns = np.hstack([put_in, np.ones((len(put_in), 1))]) if biased else put_in
    expected = before + unknowns @ np.linalg.lstsq(unknowns, after - before, rcond=None)[0]
    np.testing.assert_allclose(new, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    assert np.square(new - after).sum() < 0.8 * np.square(before - after).sum()


@pytest.mark.parametrize("name", ["ViT, class token", "DeiT III"])
def test_a_classifier_that_ends_there_loses_less_on_other_data(name: str) -> None:
    """The token that is read alone counts; with too few tokens for that nothing is folded. DeiT III scales channels."""
    backbone = test_vision.build(*test_vision.FAMILIES[name])
    head, removal = SharedHead(backbone), Removal(3, 3, 3, "angular", 0.5)
    folded, folded_head = replace_linear(backbone, head, removal, drawn(backbone, 40))
    fresh = drawn(backbone, 10, seed=4)
    plain, new = (truncate(*pair, removal.kept) for pair in ((backbone, head), (folded, folded_head)))
    library = library_of(backbone)
    with torch.no_grad():
        whole, cut, stood = (
            torch.cat([library.logits(model, one) for one in fresh]) for model in (backbone.model, plain, new)
        )
    assert (stood - whole).square().mean() < 0.5 * (cut - whole).square().mean()
    with pytest.raises(UserError, match=r"more tokens than the 49 unknowns .* got 24\. Raise --removal_batches"):
        replace_linear(backbone, head, removal, drawn(backbone, 8))


def test_blocks_that_do_nothing_change_nothing_and_the_model_itself_stays(tmp_path: Any) -> None:
    backbone = test_vision.build("vit_tiny_patch16_224", 32, {"depth": 3})
    with torch.no_grad():
        for part in (backbone.model.blocks[1].attn.proj, backbone.model.blocks[1].mlp.fc2):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    removal = Removal(2, 2, 3, "angular", 0.0)
    folded, head = replace_linear(backbone, separate(backbone), removal, drawn(backbone, 40))
    for name, value in folded.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert head.final_norm is folded.final_norm, "one model, as before"
    export_as("stock", folded, head, removal.kept, tmp_path / "cut")
    assert "2 of 3 layers (1, 3); block 1 carries a linear map for blocks 2 … 2" in (
        (tmp_path / "cut/README.md").read_text()
    )


def test_what_it_buys_is_measured_beside_the_removal_alone() -> None:
    backbone = built("GPT-2", "language-modeling")
    texts = drawn(backbone, 20)
    for one in texts:
        one["label"] = one["input_ids"].masked_fill(one["attention_mask"] == 0, -100)
    head, removal = SharedHead(backbone), Removal(2, 2, 3, "angular", 0.5)
    pair = replace_linear(backbone, head, removal, texts)
    trial = try_removal(backbone, head, removal, texts, pair)
    alone = try_removal(backbone, head, removal, texts)
    assert (trial.whole, trial.predicted, trial.measured) == (alone.whole, alone.predicted, alone.measured)
    assert trial.replaced is not None
    assert abs(trial.replaced.loss - trial.whole.loss) < 0.2 * abs(trial.measured.loss - trial.whole.loss)
    assert alone.replaced is None


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("BERT", "BertLayer, block 1, does not add what its last linear map gives"),
        ("Gemma 2, softcapped", "does not add what its last linear map gives"),
        ("ALBERT", "blocks share weights"),
    ],
)
def test_blocks_that_add_nothing_linear_are_refused(family: str, message: str) -> None:
    backbone = built(family, "classification")
    with pytest.raises(UserError, match=message):
        replace_linear(backbone, SharedHead(backbone), Removal(2, 2, 3, "angular", 0.5), drawn(backbone, 20))
