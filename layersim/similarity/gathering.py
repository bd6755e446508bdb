"""Gathering a metric's state from processes of which some have nothing."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


def gather_uneven(state: Tensor, group: Any = None) -> list[Tensor]:
    """Every process's `state`, equal but for their number of rows; a process without any takes part with zero rows.

    torchmetrics gathers tensors of one dtype and number of dimensions only, and a process that never saw a batch knows
    neither: without this its peers would hang or fail. NCCL takes no host memory, so such states travel by the GPU.
    """
    known: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(known, (tuple(state.shape), state.dtype), group=group)
    shape, dtype = max(known, key=lambda shape_and_dtype: math.prod(shape_and_dtype[0]))
    home = state.device
    if state.numel() == 0:
        state = torch.zeros((0, *shape[1:]), dtype=dtype, device=home)
    if "nccl" in str(dist.get_backend(group)):
        state = state.to(torch.device("cuda", torch.cuda.current_device()))
    return [part.to(home) for part in gather_all_tensors(state, group)]
