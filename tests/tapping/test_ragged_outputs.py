"""Nested tensors: samples of their own tokens alone."""

from typing import Any

import pytest
import torch
from torch import nn

from layersim import UserError
from tests.tapping.test_layout import POOLS, WIDTH, each_pool, encoder, same, tapped


@each_pool
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_samples_of_their_real_tokens(pool: Any) -> None:
    """An encoder in evaluation with a padding mask makes them; its own output is padded again."""
    model, lengths = encoder(batch_first=True), [3, 6, 2, 5]
    x = torch.randn(4, 6, WIDTH)
    mask = torch.arange(6) >= torch.tensor(lengths)[:, None]
    seen: list[bool] = []
    model.layers[0].register_forward_hook(lambda _, __, output: seen.append(output.is_nested))
    ours = tapped(model, "layers.*", call=lambda: model(x, src_key_padding_mask=mask), pool=pool)["layers.1"]
    alone = [model(x[row : row + 1, :length]) for row, length in enumerate(lengths)]
    expected = torch.cat([POOLS[pool](sample) for sample in alone])
    if seen[0]:  # a torch that keeps the fast path beside hooks
        same(ours, expected)
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([sample[0] for sample in alone], layout=layout)
        same(tapped(nn.Sequential(nn.Identity()), "0", nested, pool=pool)["0"], expected)


@each_pool
def test_jagged_tensors_are_summed_in_float32_and_their_gaps_and_empty_samples_are_no_tokens(pool: Any) -> None:
    model, lengths = nn.Sequential(nn.Identity()), [5000, 2, 0, 3]
    x = (torch.randn(4, 5000, 4) + 3).bfloat16()
    cut = [row[:length] for row, length in zip(x, lengths, strict=True)]
    expected = torch.stack(
        [POOLS[pool](row[None].float())[0] if len(row) else torch.full((4,), torch.nan) for row in cut]
    )
    whole = torch.nested.nested_tensor(cut, layout=torch.jagged)
    gaps = torch.nested.narrow(x, 1, 0, torch.tensor(lengths), layout=torch.jagged)
    assert gaps.lengths() is not None, "the control: it keeps what is not among the samples"
    for nested in (whole, gaps):
        found = tapped(model, "0", nested, pool=pool)["0"]
        torch.testing.assert_close(found, expected.bfloat16(), rtol=0.01, atol=0.01, equal_nan=True)
    with pytest.raises(UserError, match=r"0 puts out a nested tensor of 3 axes that is not \(N, T, D\): set pool"):
        tapped(model, "0", whole.transpose(1, 2), pool=pool)
