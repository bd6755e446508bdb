"""What travels from the backbone to the callbacks. Letters: L layers, N samples, D width.

Not frozen, since Lightning moves what `predict_step` returns to the host field by field.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class LayerFeatures:
    """What the blocks put out at the token that counts, before the final norm.

    For a classifier N is the batch; for a language model N is the batch's valid target tokens, so that padding has
    vanished before anything is read or measured.
    """

    values: Tensor
    """(L, N, D) features, first layer first."""
    targets: Tensor | None = None
    """(N,) integer classes, or None where there are none to learn."""
    position: Tensor | None = None
    """(N,) place of each sample among the data that is read, on the host: 0, 1, … whatever the number of processes."""


@dataclass
class Readout:
    """What the head says at every layer."""

    losses: Tensor
    """(L,) cross-entropy in nats, mean over the samples; empty where there are no targets."""
    predictions: Tensor
    """(L, N) most likely class."""
    confidences: Tensor
    """(L, N) its probability, the maximum of the softmax."""
    target_log_odds: Tensor
    """(L, N) ln p / (1 − p) of the true class's probability p, which in float32 is 1 long before the odds stop rising;
    empty where there are no targets."""
    briers: Tensor
    """(L, N) Brier score Σc (pc − 1[c = target])², in 0 … 2; empty where there are no targets."""


@dataclass
class LayerOutput:
    """One evaluation step's result, as the callbacks receive it."""

    features: LayerFeatures
    readout: Readout
    loss: Tensor | None = None
    """() the objective's value, or None where there are no targets."""
