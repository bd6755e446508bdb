"""From whatever a module puts out to one vector a sample. Letters: N samples, T tokens, D width."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from layersim.errors import UserError
from layersim.tapping.layout import BatchSizes, Place, sequence_shape, tensors

Reduction = Literal["cls", "mean", "last"]
Pool = Reduction | Callable[[Any], Tensor]
_TOKENS: dict[Reduction, slice] = {"cls": slice(1), "mean": slice(None), "last": slice(-1, None)}
"""Of which T each takes the mean, which is NaN of none."""


def check_pool(pool: Pool) -> None:
    """Raises UserError where there is no such pool."""
    if not callable(pool) and pool not in get_args(Reduction):
        raise UserError(f'pool: expected one of {", ".join(get_args(Reduction))}, or a function, got "{pool}".')


@torch.no_grad()
def pooled_output(output: Any, pool: Pool, place: Place, sizes: BatchSizes) -> Tensor:
    """(N, D) features, a copy without gradients, of a module's output, in whatever structure: of its first tensor, by a
    pool as `FeatureTap` takes it. Nested and packed tokens have no padding that could count; without any they give NaN.

    Raises:
        UserError: no tensor, no floating-point numbers, a shape that the pool does not fit, or samples that cannot be
            found in it.
    """
    layer = place.name
    tensor = next(tensors(output), None)
    if tensor is None:
        raise UserError(f"{layer} puts out no tensor but {type(output).__name__}: choose other layers.")
    numbers = tensor.data
    if not numbers.is_floating_point():
        raise UserError(f"{layer} puts out {numbers.dtype}, no floating-point numbers: choose other layers.")
    shape = sequence_shape(tensor)
    if not callable(pool):
        features = _pooled(tensor, pool, place, sizes)
    else:
        features = pool(tensor.detach() if isinstance(tensor, Tensor) else tensor)
        expected = sizes.first or {shape[0]}
        given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) not in expected:
            raise UserError(
                f"{layer}: expected the pool to give ({' or '.join(map(str, sorted(expected)))}, D) from {shape}, got "
                f"{given}: change the function that is given as pool."
            )
    return features.clone(memory_format=torch.contiguous_format)  # the model may go on in place; a view keeps it all


def _pooled(tensor: Tensor | PackedSequence, pool: Reduction, place: Place, sizes: BatchSizes) -> Tensor:
    if isinstance(tensor, PackedSequence) or tensor.is_nested:
        if sizes.first and sequence_shape(tensor)[0] not in sizes.first | sizes.second:
            raise UserError(
                f"{place.name} puts out {sequence_shape(tensor)[0]} samples for {sizes}: choose other layers."
            )
        return _of_ragged(tensor, pool, place.name)
    shape = tuple(tensor.shape)
    if len(shape) < 2 or (len(shape) > 3 and pool != "mean"):
        raise UserError(
            f'{place.name} puts out {shape}, which pool="{pool}" does not fit: set pool to "mean" for maps, (N, D, H, '
            "W) or (N, H, W, D), or to a function that returns (N, D)."
        )
    layout = place(shape, sizes)
    tensor = tensor.movedim((layout.index("N"), layout.index("D")), (0, -1))
    return tensor if tensor.ndim == 2 else tensor.flatten(1, -2)[:, _TOKENS[pool]].mean(1)


def _of_ragged(tensor: Tensor | PackedSequence, pool: Reduction, layer: str) -> Tensor:
    """Samples whose lengths differ, one (T, D) each; lengths on the host, or not asked for."""
    if isinstance(tensor, PackedSequence):
        padded, lengths = pad_packed_sequence(PackedSequence(tensor.data, tensor.batch_sizes), batch_first=True)
        samples = [row[:length][_TOKENS[pool]].mean(0) for row, length in zip(padded, lengths.tolist(), strict=True)]
        return torch.stack(samples)[slice(None) if tensor.unsorted_indices is None else tensor.unsorted_indices]
    jagged = tensor.layout == torch.jagged
    if tensor.ndim != 3 or (jagged and isinstance(tensor.shape[2], torch.SymInt)):
        raise UserError(
            f"{layer} puts out a nested tensor of {tensor.ndim} axes that is not (N, T, D): set pool to a function."
        )
    if not jagged or tensor.lengths() is not None:  # type: ignore[attr-defined] # with padding between the samples
        return torch.stack([sample[_TOKENS[pool]].mean(0) for sample in tensor.unbind()])
    values, offsets = tensor.values(), tensor.offsets()  # type: ignore[attr-defined] # unbind() would wait for a GPU
    if pool == "mean":
        wide = torch.promote_types(values.dtype, torch.float32)  # it sums in the type that it is given
        return torch.segment_reduce(values.to(wide), "mean", offsets=offsets).to(values.dtype)
    rows = values[(offsets[:-1] if pool == "cls" else offsets[1:] - 1).clamp(0, len(values) - 1)]
    return rows.masked_fill((offsets.diff() == 0)[:, None], torch.nan)
