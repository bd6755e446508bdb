"""Similarity of each layer to itself at earlier epochs. Letters: L layers, N samples, D width."""

import math
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from callbacks.monitor import LayerMonitor
from layersim.errors import UserError
from layersim.metrics import KeptSamples
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.drawing.pictures import Picture
from layersim.report.figures import figures_of, matrix
from layersim.report.quantity import LAYER, Quantity
from layersim.report.records import Stage
from layersim.similarity import LinearCKA
from layersim.similarity.measure import Measure, as_measures

_LEAST = 4  # samples that debiased linear CKA needs


class EpochSimilarity(LayerMonitor[KeptSamples]):
    """Keeps the features of a fixed sample of the validation data at chosen epochs, and at each later epoch of the
    training measures how alike each layer is to itself at those; draws this, and the drift from the first of them.

    Logs the mean over the layers for each kept epoch, `val/cka_to_epoch_0`; the record has every layer. Kept features
    stay on the host, 4 L N D bytes in float32 for each kept epoch (12 layers, 1024 samples of width 384: 19 MB), and in
    every checkpoint too, so that a resumed training goes on as if it had not stopped. Validation and test outside of a
    training are passed over.

    Args:
        epochs: those to keep, counted from 0 as the trainer does.
        every: keep the first epoch that is validated, and then each that lies so many after the last kept one. Where
            neither is given, the first one alone is kept.
        measures: metrics of `layersim.similarity`, or torchmetrics' own of two tensors, each by the name it gets in
            logs and records; debiased linear CKA where None.
        max_samples: N at most, chosen by the hash of their position; of a language model these are tokens.
        **named: the parts of a module that is not ours; see LayerMonitor.

    Raises:
        UserError: an epoch below 0, `every` below 1, nothing to keep or to measure, or `max_samples` below 4.
    """

    reads_head = False

    def __init__(
        self,
        epochs: list[int] | None = None,
        every: int | None = None,
        measures: dict[str, Measure | Metric] | None = None,  # a recipe's short name is looked up in this order
        max_samples: int = 1024,
        **named: Any,
    ) -> None:
        super().__init__(**named)
        whole = all(type(number) is int for number in [*(epochs or []), 1 if every is None else every])
        if not whole or min(epochs or [0]) < 0 or (epochs is not None and not epochs if every is None else every < 1):
            raise UserError(f"Expected some epochs from 0, or every from 1, but got {epochs} and {every}.")
        self.epochs = epochs
        self.every = every
        self.measures = as_measures({"cka": LinearCKA(estimator="debiased")} if measures is None else measures)
        KeptSamples(max_samples=max_samples, least=_LEAST)  # refuses too few before any model is built
        self.max_samples = max_samples
        self.strips: dict[str, dict[int, dict[int, list[float]]]] = {name: {} for name in self.measures}
        """Of each measure, by the kept epoch and then the later one: L similarities."""
        self._kept: dict[int, Tensor] = {}
        self._index = torch.empty(0, dtype=torch.int64)
        self._epoch = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.global_step:  # another training; a resumed one's state comes later
            self._kept, self.strips = {}, {name: {} for name in self.measures}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "index": self._index, "strips": self.strips}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept, self._index = dict(state_dict["kept"]), state_dict["index"]
        self.strips = {name: state_dict["strips"].get(name, {}) for name in self.measures}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        period = trainer.check_val_every_n_epoch or 1
        if missed := [epoch for epoch in self.epochs or [] if (epoch + 1) % period]:
            raise UserError(
                f"EpochSimilarity shall keep the epochs {missed}, counted from 0, but with check_val_every_n_epoch "
                f"{period} the epochs {period - 1}, {2 * period - 1}, … alone are validated. Change either."
            )

        if late := [epoch for epoch in self.epochs or [] if 0 < (trainer.max_epochs or 0) <= epoch]:
            rank_zero_warn(f"EpochSimilarity shall keep the epochs {late}, counted from 0, which this training lacks.")

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        self._epoch = trainer.current_epoch

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().finish(trainer, pl_module, stage)
        else:
            self._metrics, self.quantities = {}, {}

    def make_metrics(self, module: LayerwiseModule) -> dict[str, KeptSamples]:
        return {"features": KeptSamples(max_samples=self.max_samples, least=_LEAST)}

    def rehearse(self, module: LayerwiseModule, samples: int) -> set[str]:
        twin = deepcopy(self)  # an epoch that is measured may be kept, beside none of the training's own
        twin.every, twin._epoch, twin._kept = 1, 0, {}
        super(EpochSimilarity, twin).rehearse(module, samples)
        twin._epoch = 1
        names = super(EpochSimilarity, twin).rehearse(module, samples)
        return {f"{name.removesuffix('0')}*" for name in names}

    def update(self, metrics: dict[str, KeptSamples], output: LayerOutput) -> None:
        if output.features.position is None:
            raise UserError(
                "EpochSimilarity tells samples apart by their position, but the validation data give none. Add "
                '"position" to the batch, as layersim\'s own data do.'
            )
        metrics["features"].update(output.features)

    def measure(self, metrics: dict[str, KeptSamples]) -> dict[str, Quantity]:
        now, _, index = metrics["features"].compute()
        if self._kept and not torch.equal(index, self._index):
            raise UserError(
                f"EpochSimilarity kept {len(self._index)} samples at epoch {min(self._kept)}, but the validation data "
                f"of epoch {self._epoch} do not hold the same ones. Resume with the same --data."
            )
        earlier = [epoch for epoch in self._kept if epoch < self._epoch]
        for name, metric in self.measures.items():
            for epoch in earlier:
                then = self._kept[epoch].to(now.device)
                self.strips[name].setdefault(epoch, {})[self._epoch] = similarity_to_then(now, then, metric, epoch)
        if self._wanted():
            self._kept[self._epoch], self._index = now.cpu().contiguous(), index
        return {f"{name}_to_epoch": self._quantity(name, earlier) for name in self.measures if earlier}

    def _quantity(self, name: str, earlier: list[int]) -> Quantity:
        metric = self.measures[name]
        own = {option: value for option, value in metric.options.items() if value is not None}
        return Quantity(
            values=[self.strips[name][epoch][self._epoch] for epoch in earlier],
            axes=("epoch", LAYER),
            label=f"{metric.label} to epoch",
            range=metric.value_range,
            better="lower" if metric.lower_is_alike else "higher",
            options={"max_samples": self.max_samples} | own,
            ticks={"epoch": earlier},
        )

    def figures(self, quantities: Mapping[str, Quantity]) -> dict[str, Callable[[], Picture]]:
        """Beside the similarity to each kept epoch, how the layers drifted from the first one kept until now."""
        drawn = figures_of(quantities, self.unit)
        for name, strips in self.strips.items():
            if (now := quantities.get(f"{name}_to_epoch")) is not None:
                first = min(strips)
                since = replace(now, values=[*strips[first].values()], ticks={"epoch": [*strips[first]]})
                title = f"{now.label} {first}"
                drawn[f"{name}_since_epoch_{first}"] = partial(matrix, since, title)
        return drawn

    def _wanted(self) -> bool:
        """Whether this epoch is one to keep; validated twice in an epoch, it is kept as it was last."""
        if self._epoch in self._kept or self._epoch in (self.epochs or []):
            return True
        if self.every is None:
            return self.epochs is None and not self._kept
        last = max((epoch for epoch in self._kept if epoch not in (self.epochs or [])), default=None)
        return last is None or self._epoch - last >= self.every


def similarity_to_then(now: Tensor, then: Tensor, measure: Measure, epoch: int) -> list[float]:
    """L similarities of each layer of (L, N, D) features to the same layer at an earlier epoch, (L, N, D') of the same
    samples, which all processes hold. Layers that cannot be measured have NaN, and one UserWarning names them."""
    metric = deepcopy(measure).to(now.device)
    metric.distributed_available_fn = lambda: False
    values = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "similarity is NaN for every layer", UserWarning)
        for layer, before in zip(now.unsqueeze(1), then.unsqueeze(1), strict=True):
            metric.reset()
            metric.update(layer, torch.arange(layer.shape[1]), other=before)
            values.append(metric.compute().item())
    if undefined := [str(number) for number, value in enumerate(values, start=1) if math.isnan(value)]:
        warnings.warn(
            f"similarity to epoch {epoch} is NaN for layer {', '.join(undefined)} (counted from 1): its features, now "
            "or then, are constant or not finite",
            UserWarning,
            stacklevel=2,
        )
    return values
