"""A small model whose blocks' outputs are known."""

import torch
from torch import Tensor, nn


class Chain(nn.Module):
    """Three blocks of width 4, and nothing else; gives every block's output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x := block(x) for block in self.blocks]


def inputs(samples: int = 5) -> Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(1))
