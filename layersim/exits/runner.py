"""Early exit on whole batches: samples that a policy is sure of leave, and later layers run on the others alone.

Letters: L layers, N samples of the batch, n of them that remain, D width, C classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersim.backbones.base import Backbone
from layersim.backbones.shrinking_forward import ShrinkingForward
from layersim.errors import UserError
from layersim.evaluation import alone
from layersim.exits.alarm import Alarm
from layersim.exits.given import as_batch, as_names, as_temperatures
from layersim.exits.policies import Policy, Seen, check_policy, exit_layer
from layersim.exits.reference import doubts
from layersim.exits.table import at_exits, drops, exit_table
from layersim.heads import Head
from layersim.labels import as_classes
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
    class_names: list[str] | None = None
    """N names of the predicted classes, where they are known."""

    @property
    def confidences(self) -> Tensor:
        """(N,) the probability of each prediction."""
        return self.logits.softmax(dim=-1).amax(dim=-1)

    def of(self, place: int) -> "Exited":
        """Of one sample alone, as a batch of one."""
        rows = slice(place, place + 1)
        names = None if self.class_names is None else self.class_names[rows]
        return Exited(self.predictions[rows], self.exit_layers[rows], self.logits[rows], names)


class EarlyExit:
    """A backbone and head that spend on each sample as many layers as a policy asks for.

    Gives what computing all layers and applying the policy afterwards (`exit_layer`) gives. A matrix product may round
    a row otherwise among fewer rows, so scores can differ in their last digits from those of a full batch: a sample
    whose score lies that close to the threshold, or whose best two classes are that close, can be decided otherwise,
    as it can in a full batch of another size. Call it in the precision that the threshold was calibrated in, as under
    the same `torch.autocast`: scores in another one are not those that a promise was made of.

    Runs in inference mode and with backbone and head in evaluation mode; those of their modules that were in training
    mode are put back into it afterwards. A backbone compiled with `torch.compile` runs uncompiled. One call of a model
    at a time: of several threads all but one wait.

    Args:
        backbone: of a classifier.
        head: reads its layers.
        policy: how sure a layer is of a sample.
        threshold: of the policy's score, at which a sample leaves; None: only the last layer lets go.
        temperatures: (L,) divide the layers' logits; all 1 where None.
        watch: is told what every sample looked like; once it has sounded, only the last layer lets go, until its reset.
        inputs: what makes a batch of texts or images as people have them; None: only batches are taken.
        class_names: C of them, where they are known.
        autocast: what to compute in, under `torch.autocast`; None: as the caller does.

    Raises:
        UserError: a threshold outside the policy's range; temperatures that are not L positive numbers; names that are
            not C; a language model; when called, a model whose batch cannot shrink (see `ShrinkingForward`), or inputs
            that it cannot read.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        policy: Policy,
        threshold: float | None,
        temperatures: Tensor | Sequence[float] | None = None,
        *,
        watch: Alarm | None = None,
        inputs: Callable[[Any], Mapping[str, Tensor]] | None = None,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        check_policy(policy, threshold, backbone.num_classes, backbone.num_layers)
        self.backbone = backbone
        self.head = head
        self.policy = policy
        self.threshold = threshold
        self.temperatures = None if temperatures is None else as_temperatures(temperatures, backbone.num_layers)
        self.watch = watch
        self.inputs = inputs
        self.class_names = as_names(class_names, backbone.num_classes)
        self.autocast = autocast
        self._shrinking = ShrinkingForward(backbone)

    @classmethod
    def load(cls, path: str | Path, *, exits: str | Path | None = None, device: str = "auto") -> "EarlyExit":
        """A model as it is served, with all that it was trained and calibrated with: threshold, temperatures, policy,
        precision; its tokenizer or the transforms of its images; the classes' names.

        Args:
            path: a run's directory, of `layersim exits` or of a training; a checkpoint; or a folder that
                `layersim export` wrote as a stock checkpoint.
            exits: the `exits.json` of `layersim exits`, or its run's directory; where None, that in `path`. Where there
                is none, every sample goes through all layers, and a line says so.
            device: where the model runs; `auto`: an accelerator where there is one.

        Raises:
            UserError: nothing that can be opened; exits of a model with other weights, of another tokenizer, or in a
                precision that is not known here.
        """
        from layersim.runs.serving import load_early_exit  # which stands above this room, and knows files and data

        return load_early_exit(path, exits=exits, device=device)

    def __call__(self, given: Any) -> Exited:
        """Predictions for a text or an image, for a list of them, or for a batch (a mapping) as `Backbone.forward`
        takes it, of tensors, arrays or lists, whose labels, where it has any, are not looked at."""
        batch, leaving = self._batch(given), _Leaving(self)
        with self._reading():
            self._shrinking(batch, leaving)
            return leaving.exited()

    def audit(self, batch: Any, labels: Tensor | Sequence[int | str] | None = None) -> Tensor:
        """Tells the alarm what leaving costs these samples, and gives it: (N,) losses of the alarm's risk.

        All layers are computed, since every risk compares with the full model; the threshold counts, not the alarm.

        Args:
            batch: as the call takes it.
            labels: (N,) classes, or their names where these are known; `disagreement` needs none.

        Raises:
            UserError: there is no alarm that watches labels, or not one label, 0 … C − 1, for each sample.
        """
        if self.watch is None or self.watch.target is None:
            raise UserError("Expected an alarm that watches labels, EarlyExit(…, watch=Alarm(target=…)), but got none.")
        with self._reading():
            values = self.backbone(self._batch(batch)).values
            if labels is None and self.watch.risk == "disagreement":
                labels = torch.zeros(values.shape[1], dtype=torch.long)
            targets = as_classes(labels, values.shape[1], self.backbone.num_classes, self.class_names)
            table = exit_table(self.head, LayerFeatures(values, targets), self.policy, self.temperatures)
            losses = at_exits(drops(table, self.watch.risk), exit_layer(table.scores, self.threshold))
            self.watch.report(losses)
        return losses.clone()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """In here one thread alone reads the model, in the precision that it is served in."""
        device = next(self.backbone.parameters()).device.type
        entered = nullcontext() if self.autocast is None else torch.autocast(device, self.autocast)
        with alone(self.backbone, self.head), entered:
            yield

    def _batch(self, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            if self.inputs is None:
                raise UserError(
                    f"Expected a batch (a mapping), but got {type(given).__name__}. Only EarlyExit.load knows how "
                    "texts and images become one, and only of data modules that say so (SplitDataModule.inputs)."
                )
            given = self.inputs(given)
        return as_batch(self.backbone, given)


class _Leaving:
    """One batch's visits to the layers: decides who stays, and keeps what those who leave were told."""

    def __init__(self, early_exit: EarlyExit) -> None:
        self.by = early_exit
        self.last = early_exit.backbone.num_layers - 1
        sounded = early_exit.watch is not None and early_exit.watch.sounded_at is not None
        self.threshold, self.watch = (None, None) if sounded else (early_exit.threshold, early_exit.watch)
        self.doubts: list[Tensor] = []
        self.seen = Seen()
        self.left: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __call__(self, layer: int, rows: Tensor, features: Tensor) -> Tensor:
        logits = widened(self.by.head.logits(features.unsqueeze(0), [layer]).squeeze(0))
        if self.by.temperatures is not None:
            logits = logits / self.by.temperatures[layer].to(logits)
        predictions = logits.argmax(dim=-1)
        view = self.seen.view(logits, features, self.by.policy.reads)
        leaves = torch.full_like(rows, layer == self.last, dtype=torch.bool)
        if self.watch is not None or (self.threshold is not None and layer < self.last):
            score = self.by.policy.score(view)
            if self.threshold is not None:
                leaves |= score >= self.threshold
            if self.watch is not None:
                doubt = doubts(self.by.policy, score, logits.shape[-1], self.last + 1)
                self.doubts += [doubt, layer + doubt[leaves]] if layer == 0 else [layer + doubt[leaves]]
        self.left.append((rows[leaves], predictions[leaves], torch.full_like(rows[leaves], layer), logits[leaves]))
        stays = ~leaves
        self.seen.keep(stays)
        return stays

    def exited(self) -> Exited:
        rows, predictions, layers, logits = (torch.cat(parts) for parts in zip(*self.left, strict=True))
        order = rows.argsort()
        if self.watch is not None:
            self.watch.observe(self.doubts[0], torch.cat(self.doubts[1:])[order])
        predictions, names = predictions[order], self.by.class_names
        named = None if names is None else [names[each] for each in predictions.tolist()]
        return Exited(predictions, layers[order], logits[order], named)
