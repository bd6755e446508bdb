"""The weighted cross-entropy of many layers through one linear classifier, at vocabulary scale.

Twelve layers × tokens × 50 000 classes are never stored, and neither are twelve gradients of the classifier. The
weights of the layers are known beforehand, so one pass over layers and chunks of rows computes losses *and* gradients
while a chunk's logits are alive; the classifier's gradient is summed in one place. Backward only scales what is there.
Where they are not, backward makes a second pass.

Letters: K layers read, N samples (tokens), D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layersim.errors import UserError

CHUNK_LOGITS = 2**24
"""Logits alive at a time: 128 MiB in float32, with their probabilities."""


def layered_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    layer_weights: Sequence[float] | Tensor | None,
    *,
    label_smoothing: float = 0.0,
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Σ λk CEk, where CEk is the mean cross-entropy of `hidden[k] @ weight.T + bias`; and the CEk themselves, in nats.

    Values and gradients are those of `torch.nn.functional.cross_entropy` at every layer: products run in the
    autocast dtype where autocast is on, else in that of the operands, which must then agree; the softmax and the sums
    of gradients in float32 (float64 for operands of float64). The aligned loss: arXiv 2406.14479.

    The sum's gradient is computed for those of `hidden`, `weight` and `bias` that require it, in this call, unless
    gradients are off: call it only for a loss that will be minimised, once a step. A backward through the losses
    themselves, or a second one through a retained graph, is right but computes all anew.

    Args:
        hidden: (K, N, D) features behind the final norm.
        weight: (V, D) the classifier's, tied to an embedding or not.
        bias: (V,) or None.
        targets: (N,) integer classes 0 … V − 1.
        layer_weights: the K numbers λ, of which a zero costs its loss alone; or a (K,) tensor, which gets its gradient,
            the losses; or None for a sum that is not needed.
        label_smoothing: ε ≥ 0: targets are (1 − ε) one-hot + ε / V.
        chunk_logits: rows × V computed at a time. On a CPU 256 to 512 rows were fastest, 128 and 1024 a twentieth
            slower.

    Returns:
        () the weighted sum, and (K,) losses, both differentiable, in float32 or float64.

    Raises:
        UserError: in backward, where a gradient of the gradient is asked for.
    """
    device = hidden.device.type
    mixed = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
    learned = layer_weights if isinstance(layer_weights, Tensor) else None
    task = _Task(
        [1.0] * len(hidden) if layer_weights is None else layer_weights,
        layer_weights is not None,
        label_smoothing,
        rows=max(1, chunk_logits // len(weight)),
        autocast=torch.get_autocast_dtype(device) if mixed else None,
        differentiable=torch.is_grad_enabled(),
    )
    total, losses = _LayeredCrossEntropy.apply(hidden, weight, bias, targets, learned, task)
    return total, losses


def weighted_sum(losses: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Σ λk CEk, (), of (K,) losses, in their dtype."""
    return torch.dot(losses, torch.as_tensor(weights, dtype=losses.dtype, device=losses.device))


class _Task(NamedTuple):
    """What is not a tensor."""

    factors: Sequence[float] | Tensor
    """(K,) of the losses in what is differentiated."""
    in_one_pass: bool
    """Whether they are known already in forward."""
    label_smoothing: float
    rows: int
    autocast: torch.dtype | None
    differentiable: bool


class _LayeredCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        learned: Tensor | None,
        task: _Task,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.wanted = [needed and task.differentiable for needed in ctx.needs_input_grad[:3]]
        ctx.task = task
        now = ctx.wanted if task.in_one_pass else [False] * 3
        losses, gradients = _losses_and_gradients(hidden, weight, bias, targets, task, now)
        ctx.gradients = gradients if task.in_one_pass else None
        ctx.save_for_backward(hidden, weight, bias, targets, losses)
        return weighted_sum(losses, task.factors), losses

    @staticmethod
    def backward(ctx: Any, of_total: Tensor | None, of_losses: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UserError(
                "The chunked cross-entropy has no second derivative, but a graph of its gradient is asked for. "
                "Set create_graph to False, or write the loss with torch.nn.functional.cross_entropy."
            )
        if of_total is None and of_losses is None:
            return (None,) * 6
        # Gradients are scaled in place and given away, so that none exists twice. Whether the scale is one is not
        # asked: that would wait for the device.
        hidden, weight, bias, targets, losses = ctx.saved_tensors
        gradients, ctx.gradients, task, scale = ctx.gradients, None, ctx.task, 1.0 if of_total is None else of_total
        if of_losses is not None:
            known = torch.as_tensor(task.factors, dtype=losses.dtype, device=losses.device)
            factors = of_losses if of_total is None else of_losses + of_total * known
            gradients, task, scale = None, task._replace(factors=factors), 1.0
        if gradients is None:  # factors that forward did not know, or a second backward through a retained graph
            _, gradients = _losses_and_gradients(hidden, weight, bias, targets, task, ctx.wanted)
        scaled = [
            None if gradient is None else gradient.mul_(scale / len(targets)).to(operand.dtype)
            for gradient, operand in zip(gradients, (hidden, weight, bias), strict=True)
        ]
        return *scaled, None, of_total * losses if ctx.needs_input_grad[4] else None, None


def _losses_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, task: _Task, wanted: Sequence[bool]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """(K,) losses; and the gradients wanted of hidden, weight and bias, times the number of targets.

    That number is divided by last, with the outer gradient, lest half precision underflow before a loss scale arrives.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    gradients = tuple(
        torch.zeros(operand.shape, dtype=wide, device=operand.device) if operand is not None and want else None
        for operand, want in zip((hidden, weight, bias), wanted, strict=True)
    )
    hidden_gradient, weight_gradient, bias_gradient = gradients
    if task.autocast is not None:
        hidden, weight = hidden.to(task.autocast), weight.to(task.autocast)
        bias = None if bias is None else bias.to(task.autocast)
    labels = targets.unsqueeze(1)
    losses = torch.zeros(hidden.shape[:2], dtype=wide, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for layer, chunk, log_p in _log_probabilities(hidden, weight, bias, task.rows):
            label = labels[chunk]
            losses[layer, chunk] = _smoothed(log_p, label, task.label_smoothing)
            factor = task.factors[layer]
            # whether a tensor is zero is not asked, as that would wait for the device
            if not any(wanted) or (not isinstance(factor, Tensor) and factor == 0):
                continue
            errors = _errors(log_p, label, task.label_smoothing)
            if bias_gradient is not None:
                bias_gradient.addmv_(errors.T, errors.new_ones(len(errors)) * factor)
            errors = errors.to(hidden.dtype)
            if hidden_gradient is not None:
                torch.mul((errors @ weight).to(wide), factor, out=hidden_gradient[layer, chunk])
            if weight_gradient is not None:
                _add_product(weight_gradient, errors, hidden[layer, chunk], factor)
    return losses.sum(dim=1) / len(targets), gradients


def _log_probabilities(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: int
) -> Iterator[tuple[int, slice, Tensor]]:
    """Layer, slice of samples, and their (n, V) log-probabilities with n ≤ `rows`, in memory that the next reuse."""
    layers, samples, _ = hidden.shape
    rows = ceil(samples / ceil(samples / rows))  # chunks as equal as can be
    logits = hidden.new_empty(min(rows, samples), len(weight))
    log_p = torch.empty_like(logits, dtype=torch.promote_types(hidden.dtype, torch.float32))
    for layer in range(layers):
        for start in range(0, samples, rows):
            chunk = slice(start, start + rows)
            inputs = hidden[layer, chunk]
            n = len(inputs)
            if bias is None:
                torch.mm(inputs, weight.T, out=logits[:n])
            else:
                torch.addmm(bias, inputs, weight.T, out=logits[:n])
            yield layer, chunk, torch.log_softmax(logits[:n], dim=1, dtype=log_p.dtype, out=log_p[:n])


def _smoothed(log_p: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """(n,) cross-entropies with (1 − ε) one-hot + ε / V."""
    losses = -log_p.gather(1, label).squeeze(1)
    return losses if smoothing == 0 else losses.lerp(-log_p.mean(dim=1), smoothing)


def _errors(log_p: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """(n, V) probabilities less (1 − ε) one-hot + ε / V, in the memory of `log_p`."""
    errors = log_p.exp_()
    if smoothing != 0:
        errors -= smoothing / errors.shape[1]
    return errors.scatter_add_(1, label, errors.new_full((), smoothing - 1).expand_as(label))


def _add_product(total: Tensor, errors: Tensor, inputs: Tensor, factor: float | Tensor) -> None:
    """Adds factor × errorsᵀ inputs to the (V, D) total, without a second tensor of its size."""
    if errors.dtype == total.dtype:
        if isinstance(factor, Tensor):
            inputs, factor = inputs * factor, 1.0
        total.addmm_(errors.T, inputs, alpha=factor)
        return
    slabs = 4096  # classes at a time: products in half precision, their sum in float32
    for part, columns in zip(torch.split(total, slabs), torch.split(errors, slabs, dim=1), strict=True):
        product = columns.T @ inputs
        if isinstance(factor, Tensor):
            part.addcmul_(product, factor)
        else:
            part.add_(product, alpha=factor)
