"""Features of a sample of the data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from layersim.backbones import Backbone, TransformersBackbone
from layersim.data import LanguageModeling
from layersim.data.blocks import BlockSplit
from layersim.runs.models import TOKENS_EACH, read_features
from tests.backbones.tiny_transformers import CAUSAL

BLOCK, BLOCKS = 32, 400


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """How many blocks of tokens each batch has that the model runs."""
    rows: list[int] = []

    def count(_: Any, args: tuple[Mapping[str, Any], ...], __: Any) -> None:
        rows.append(len(args[0]["input_ids"]))

    with backbone.register_forward_hook(count):
        yield rows


@pytest.mark.parametrize(("kept", "run"), [(40, 40 * TOKENS_EACH // BLOCK), (10**6, BLOCKS)])
def test_a_language_model_runs_no_more_blocks_than_its_tokens_are_drawn_from(
    kept: int, run: int, tmp_path: Path
) -> None:
    """The same tokens whatever the batches, from more than one text in eight; all where there are no more."""
    (tmp_path / "train.txt").write_text("\n".join(f"{place:<{BLOCK - 2}}" for place in range(BLOCKS)))
    backbone = TransformersBackbone(
        task="language-modeling", pretrained=False, config_args={**CAUSAL["GPT-2"], "vocab_size": 260}
    )
    found = []
    for size in (1, 64):
        data = LanguageModeling(
            path=str(tmp_path / "train.txt"),
            tokenizer="bytes",
            block_size=BLOCK,
            val_fraction=0.1,
            eval_batch_size=size,
        )
        with counted(backbone) as rows:
            found.append(read_features(backbone, data, split="train", max_samples=kept))
        chosen = data.splits["train"]
        assert isinstance(chosen, BlockSplit)
        blocks = len(chosen)
        assert min(run, blocks) <= sum(rows) <= min(run + 1, blocks), "the last one is shorter"
    one, other = found
    assert one.position is not None
    assert other.position is not None
    assert torch.equal(one.position, other.position)
    torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-5)
    assert len(one.position) == min(kept, len(chosen.tokens) - blocks), "tokens that are predicted"
    assert len((one.position // BLOCK).unique()) >= min(run, blocks) // 2
