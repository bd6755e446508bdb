"""Early exit on whole batches: samples that a policy is sure of leave, and later layers run on the others alone.

Letters: L layers, N samples of the batch, n of them that remain, D width, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layersim.backbones.base import Backbone
from layersim.backbones.shrinking_forward import ShrinkingForward
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.exits.alarm import Alarm
from layersim.exits.policies import Policy, View, exit_layer, next_streak
from layersim.exits.reference import doubts
from layersim.exits.table import at_exits, drops, exit_table
from layersim.heads import Head
from layersim.outputs import LayerFeatures
from layersim.precision import widened


@dataclass(frozen=True)
class Exited:
    """Where the samples of a batch left, in the batch's order, and what they were told there."""

    predictions: Tensor
    """(N,) most likely class."""
    exit_layers: Tensor
    """(N,) layers 0 … L − 1."""
    logits: Tensor
    """(N, C) in float32 or wider, after the layer's temperature."""


class EarlyExit:
    """A backbone and head that spend on each sample as many layers as a policy asks for.

    Gives what computing all layers and applying the policy afterwards (`exit_layer`) gives. A matrix product may round
    a row otherwise among fewer rows, so scores can differ in their last digits from those of a full batch: a sample
    whose score lies that close to the threshold, or whose best two classes are that close, can be decided otherwise,
    as it can in a full batch of another size. Call it in the precision that the threshold was calibrated in, as under
    the same `torch.autocast`: scores in another one are not those that a promise was made of.

    Runs in inference mode and with backbone and head in evaluation mode; those of their modules that were in training
    mode are put back into it afterwards. A backbone compiled with `torch.compile` runs uncompiled.

    Args:
        backbone: of a classifier.
        head: reads its layers.
        policy: how sure a layer is of a sample.
        threshold: of the policy's score, at which a sample leaves; None: only the last layer lets go.
        temperatures: (L,) divide the layers' logits; all 1 where None.
        watch: is told what every sample looked like; once it has sounded, only the last layer lets go, until its reset.

    Raises:
        UserError: a threshold outside the policy's range; temperatures that are not L positive numbers; a language
            model; when called, a model whose batch cannot shrink (see `ShrinkingForward`).
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        policy: Policy,
        threshold: float | None,
        temperatures: Tensor | None = None,
        watch: Alarm | None = None,
    ) -> None:
        if threshold is not None:
            policy.check(threshold, backbone.num_classes, backbone.num_layers)
        if temperatures is not None and (temperatures.shape != (backbone.num_layers,) or not (temperatures > 0).all()):
            raise UserError(
                f"Expected a positive temperature for each of the {backbone.num_layers} layers, but got {temperatures}."
            )
        self.backbone = backbone
        self.head = head
        self.policy = policy
        self.threshold = threshold
        self.temperatures = temperatures
        self.watch = watch
        self._shrinking = ShrinkingForward(backbone)

    def __call__(self, batch: Mapping[str, Any]) -> Exited:
        """Predictions for a batch as `Backbone.forward` takes it; labels, where it has any, are not looked at."""
        leaving = _Leaving(self)
        with evaluating(self.backbone, self.head), torch.inference_mode():
            self._shrinking(batch, leaving)
            return leaving.exited()

    def audit(self, batch: Mapping[str, Any], labels: Tensor | None = None) -> Tensor:
        """Tells the alarm what leaving costs these samples, and gives it: (N,) losses of the alarm's risk.

        All layers are computed, since every risk compares with the full model; the threshold counts, not the alarm.

        Args:
            labels: (N,) classes; `disagreement` needs none.

        Raises:
            UserError: there is no alarm that watches labels, or not one label, 0 … C − 1, for each sample.
        """
        if self.watch is None or self.watch.target is None:
            raise UserError("Expected an alarm that watches labels, EarlyExit(…, watch=Alarm(target=…)), but got none.")
        with evaluating(self.backbone, self.head), torch.inference_mode():
            values = self.backbone(batch).values
            if labels is None and self.watch.risk == "disagreement":
                labels = torch.zeros(values.shape[1], dtype=torch.long)
            classes = self.backbone.num_classes
            whole = labels is not None and labels.shape == values.shape[1:2] and not labels.is_floating_point()
            if labels is None or not (whole and ((labels >= 0) & (labels < classes)).all()):
                raise UserError(
                    f"Expected a label in 0 … {classes - 1} for each of {values.shape[1]} samples, but got "
                    f"{'none' if labels is None else labels}."
                )
            features = LayerFeatures(values, labels.to(values.device))
            table = exit_table(self.head, features, self.policy, self.temperatures)
        losses = at_exits(drops(table, self.watch.risk), exit_layer(table.scores, self.threshold))
        self.watch.report(losses)
        return losses


class _Leaving:
    """One batch's visits to the layers: decides who stays, and keeps what those who leave were told."""

    def __init__(self, early_exit: EarlyExit) -> None:
        self.by = early_exit
        self.last = early_exit.backbone.num_layers - 1
        watch = early_exit.watch
        self.threshold = None if watch is not None and watch.sounded_at is not None else early_exit.threshold
        self.watch = watch if self.threshold is not None else None
        self.doubts: list[Tensor] = []
        self.features: Tensor | None = None
        self.predictions: Tensor | None = None
        self.streak: Tensor | None = None
        self.left: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __call__(self, layer: int, rows: Tensor, features: Tensor) -> Tensor:
        logits = widened(self.by.head.logits(features.unsqueeze(0), [layer]).squeeze(0))
        if self.by.temperatures is not None:
            logits = logits / self.by.temperatures[layer].to(logits)
        predictions = logits.argmax(dim=-1)
        streak = next_streak(predictions, self.predictions, self.streak)
        leaves = torch.full_like(rows, layer == self.last, dtype=torch.bool)
        if self.threshold is not None and (layer < self.last or self.watch is not None):
            score = self.by.policy.score(View(logits, features, self.features, streak))
            leaves |= self.by.policy.leaves(score, self.threshold)
            if self.watch is not None:
                doubt = doubts(self.by.policy, score, logits.shape[-1], self.last + 1)
                self.doubts += [doubt, layer + doubt[leaves]] if layer == 0 else [layer + doubt[leaves]]
        self.left.append((rows[leaves], predictions[leaves], torch.full_like(rows[leaves], layer), logits[leaves]))
        stays = ~leaves
        self.features, self.predictions, self.streak = features[stays], predictions[stays], streak[stays]
        return stays

    def exited(self) -> Exited:
        rows, predictions, layers, logits = (torch.cat(parts) for parts in zip(*self.left, strict=True))
        order = rows.argsort()
        if self.watch is not None:
            self.watch.observe(self.doubts[0], torch.cat(self.doubts[1:])[order])
        return Exited(predictions[order], layers[order], logits[order])
