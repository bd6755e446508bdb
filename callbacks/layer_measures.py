"""Measures the layers of any PyTorch model, in any loop. Letters: L layers, N samples."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import Metric

from callbacks.epoch_similarity import EpochSimilarity
from callbacks.exit_curve_monitor import ExitCurveMonitor
from callbacks.figures import Figures
from callbacks.layer_accuracy_monitor import LayerAccuracyMonitor
from callbacks.layer_calibration_monitor import LayerCalibrationMonitor
from callbacks.layer_f1_monitor import LayerF1Monitor
from callbacks.layer_geometry_monitor import LayerGeometryMonitor
from callbacks.layer_readers import call, reader_of
from callbacks.loggers import Moment, dispensable
from callbacks.monitor import LayerMonitor, join_all
from callbacks.progression_monitor import ProgressionMonitor
from callbacks.run_recorder import published
from callbacks.saturation_monitor import SaturationMonitor
from callbacks.similarity_heatmaps import SimilarityHeatmaps, default_measures
from callbacks.tapped_module import LABELS, Named
from layersim.errors import UserError
from layersim.evaluation import evaluating, everywhere, process, processes
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.precision import refuse_mps
from layersim.report.page import PAGE_FILE, write_page
from layersim.report.quantity import Quantity
from layersim.report.records import RECORDS_FILE, LayerRecord, Stage, append_record
from layersim.similarity.measure import NAMES, Measure, measure_named
from layersim.tapping.output_pooling import Pool
from layersim.tapping.submodules import named_submodules

MONITORS: dict[str, type[LayerMonitor[Any]]] = {
    "accuracy": LayerAccuracyMonitor,
    "similarity": SimilarityHeatmaps,
    "saturation": SaturationMonitor,
    "exits": ExitCurveMonitor,
    "progression": ProgressionMonitor,
    "geometry": LayerGeometryMonitor,
    "calibration": LayerCalibrationMonitor,
    "f1": LayerF1Monitor,
}
"""What is measured beside similarities, by name."""
USUAL = ("accuracy", "similarity", "saturation", "exits")
"""What `layersim fit` measures unless told otherwise."""

_KNOWN = (*MONITORS, *NAMES)

Measures = str | LayerMonitor[Any] | Sequence[str | LayerMonitor[Any]] | Mapping[str, Metric] | None


class LayerMeasures:
    """Measures the layers of a model over the batches that it is shown, as Lightning's callbacks here do.

        measures = LayerMeasures(model, "blocks.*", ["cka", "geometry"])
        for images, labels in loader:
            measures.update((images, labels))
        print(measures.compute()["cka"].values)

    Memory does not grow with the data: sums, and the samples that a measure keeps, at most as many as it says. On
    several processes `compute` and `write` are called by all of them, and tell of the samples of all; give positions
    where the order of the samples or a cap on them counts.

    Args:
        model: any module. Without `layers`: a LayerwiseModule or a Backbone of layersim, or a model of transformers for
            classification or causal language modelling, whose layers, final norm and classifier are found.
        layers: submodules, as `FeatureTap` takes them (`"blocks.*"`).
        measures: names: of similarities (`cosine`, `cka`, …, see `layersim similarity`), or `accuracy`, `similarity`,
            `saturation`, `exits`, `progression`, `geometry`, `calibration`, `f1`; or the Lightning callbacks of these,
            with options of their own; or metrics by the names that they get, as `SimilarityHeatmaps` takes them. Where
            None: the accuracy, similarity, saturation and exits, or where no classifier is named similarity alone.
        pool: with `layers`, how a module's output becomes (N, D), as `FeatureTap` takes it.
        layout: which axis of their outputs is what, as `FeatureTap` takes it.
        norm: the name of the norm before the classifier.
        head: the name of the classifier, for what reads it at every layer.
        label: where in a batch the (N,) integer classes are; found under "label", "labels" or "target", or second of
            two, where None.

    Raises:
        UserError: a name that the model or layersim does not have, with near ones; a measure that reads the classifier
            where none is named; a model whose layers are not found.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] | None = None,
        measures: Measures = None,
        *,
        pool: Pool = "cls",
        layout: str | None = None,
        norm: str | None = None,
        head: str | None = None,
        label: str | int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(f"model: expected a torch.nn.Module, got {type(model).__name__}.")
        named = None
        if layers is not None:
            named = Named(layers=layers, pool=pool, layout=layout, norm=norm, head=head, label=label)
        elif norm or head or layout or label is not None or pool != "cls":
            raise UserError("norm, head, label, pool and layout belong to layers: name these too.")
        self.model = model
        self.reader = reader_of(named_submodules(model)[""], named)
        self.monitors = monitors_of(measures, reads_head=self.reader.reads_head)
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured."""
        self._layers = self._samples = 0
        self._keys: set[Any] | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether something is measured that reads the classifier."""
        return any(monitor.reads_head for monitor in self.monitors)

    def update(self, batch: Any, position: Tensor | None = None) -> None:
        """Runs the model on a batch and takes in what it tells: in evaluation mode, without gradients, on the model's
        device, leaving modes and the state of random generators as they were.

        Args:
            batch: a mapping, a tuple with the model's inputs first, or a tensor.
            position: (N,) integers, each sample's place among the data; where None, a mapping's "position", or else as
                they come.

        Raises:
            UserError: as `watching`; a batch that does not fit the model's forward.
        """
        device = self._device()
        batch = _with_position(move_data_to_device(batch, device), position)
        forked = [device] if device.type == "cuda" else []
        with evaluating(self.model), torch.no_grad(), torch.random.fork_rng(forked), self.watching(batch, position):
            call(self.model, batch)

    @contextmanager
    def watching(self, batch: Any = None, position: Tensor | None = None) -> Iterator[None]:
        """Takes in what one call of the model in here tells, which the loop makes, in whatever mode and precision:
        `with measures.watching(batch): loss = model(**batch).loss`. Gradients are left alone.

        Args:
            batch: what the model runs on, for its labels; of transformers' models in any case, for the padding.
            position: as of `update`.

        Raises:
            UserError: nothing ran, layers that differ in their width or number, labels that are missing; a batch with
                other keys than those before.
        """
        batch = _with_position(batch, position)
        self.same_keys(batch)
        self.reader.open(batch)
        try:
            yield
        except BaseException:
            self.reader.close()
            raise
        with torch.no_grad():
            output = self.reader.read(batch)
            assert output is not None
            if position is not None and not isinstance(batch, Mapping):
                output.features.position = position
            self.take(output)

    def same_keys(self, batch: Any) -> None:
        """Refuses a batch that has not the keys that the first one had, as a measure of some samples would tell of
        all."""
        keys = {*batch} if isinstance(batch, Mapping) else set()
        if self._keys not in (None, keys):
            here, before = (", ".join(sorted(map(str, each))) or "none" for each in (keys, self._keys or ()))
            raise UserError(
                f"Expected batches of the same keys, {before}, but got {here}. Give each batch all of them."
            )
        self._keys = keys

    def take(self, output: LayerOutput) -> None:
        """What a step told, to the measures."""
        values = output.features.values
        if self.needs_labels and output.features.targets is None:
            raise UserError(
                "Expected labels in each batch, for what reads the classifier, but found none. Give them under "
                f"{', '.join(LABELS)}, or choose measures of the features alone: similarity, geometry."
            )
        if not self._layers:
            self._begin(len(values), values.device)
        if len(values) != self._layers:
            raise UserError(f"Expected {self._layers} layers in each forward pass, as in the first, got {len(values)}.")
        self._samples += values.shape[1]
        for monitor in self.monitors:
            monitor.take_in(output)

    def compute(self) -> dict[str, Quantity]:
        """What was measured since the last reset, by name, of all processes; more batches may follow.

        Raises:
            UserError: nothing was; two measures have one name; too few samples for one of them.
        """
        counts = everywhere([(self._layers, self._samples, self.reader.options())])
        layers, told = max(counts, key=lambda each: each[0])[::2]
        if not layers:
            raise UserError("Nothing was measured yet: call update(batch) first, or run the model in watching().")
        if not self._layers:
            self._begin(layers, self._device())  # a process without any batch
        states = [(monitor._metrics, monitor._sample) for monitor in self.monitors]
        if processes() > 1:
            states = copy.deepcopy(states)  # what is joined cannot be added to
            join_all([metrics for metrics, _ in states], [sample for _, sample in states])
        for monitor, (metrics, _) in zip(self.monitors, states, strict=True):
            monitor.quantities = monitor.measured(metrics, told)
        self.num_layers, self.num_samples = layers, sum(samples for _, samples, _ in counts)
        return published(self.monitors)

    def write(self, directory: str | Path, *, epoch: int = 0, step: int = 0, stage: Stage = "validate") -> LayerRecord:
        """Adds what `compute` gives to the directory's record, `layers.jsonl`, draws it, and writes `report.html`.

        Args:
            directory: of the run; made where it is not there.
            epoch: of the training, counted from 0 as Lightning does.
            step: optimizer steps taken.
            stage: `validate`, or `test`.

        Raises:
            UserError: as `compute`.
            OSError: the record cannot be written.
        """
        folder, figures = Path(directory), Figures()
        moment = Moment(str(folder), epoch, step, within_epochs=step > 0)
        record = self.write_record(moment, stage, figures)
        if process() == 0:
            figures.finish(moment)
            with dispensable("The page", folder):
                write_page([folder], folder / PAGE_FILE, stage=stage)
        return record

    def write_record(self, moment: Moment, stage: Stage, figures: Figures) -> LayerRecord:
        """The same, while the loop goes on: figures are drawn meanwhile, and the page is not written yet."""
        quantities = self.compute()
        record = LayerRecord(
            epoch=moment.current_epoch,
            step=moment.global_step,
            stage=stage,
            layers=self.num_layers,
            samples=self.num_samples,
            unit="tokens" if self.monitors[0].unit == "tokens" else "samples",
            quantities=quantities,
        )
        if process() == 0:
            append_record(Path(moment.default_root_dir) / RECORDS_FILE, record)
            prefix = "val" if stage == "validate" else stage
            for monitor in self.monitors:
                for name, draw in monitor.figures(monitor.quantities).items():
                    figures.add(moment, f"{prefix}/{name}", draw())
        return record

    def _device(self) -> torch.device:
        return next((each.device for each in self.model.parameters()), torch.device("cpu"))

    def _begin(self, layers: int, device: torch.device) -> None:
        refuse_mps(device)
        self._layers = layers
        for monitor in self.monitors:
            monitor.begin(cast(LayerwiseModule, self.reader.model(layers)), device, self.monitors[0])


def _with_position(batch: Any, position: Tensor | None) -> Any:
    """A mapping tells its samples' positions itself, from which a language model's tokens have theirs."""
    return {**batch, "position": position} if isinstance(batch, Mapping) and position is not None else batch


def monitors_of(measures: Measures, *, reads_head: bool) -> list[LayerMonitor[Any]]:
    """The monitors of these measures.

    Raises:
        UserError: a name that there is not, with near ones; one that reads the classifier where there is none.
    """
    if isinstance(measures, Mapping):
        return [SimilarityHeatmaps(dict(measures))]
    if measures is None:
        measures = USUAL if reads_head else ("similarity",)
    if isinstance(measures, str | LayerMonitor):
        measures = [measures]
    if not isinstance(measures, Sequence):
        raise UserError(f"measures: expected names in a list, got {type(measures).__name__}: of {', '.join(_KNOWN)}.")
    asked = list(dict.fromkeys(measures))
    if not asked:
        raise UserError(f"measures: expected at least one of {', '.join(_KNOWN)}.")
    usual = default_measures(grouped=False)
    similarities: dict[str, Measure | Metric] = {
        name: usual.get(name) or measure_named(name)() for name in asked if name in NAMES
    }
    made = [_monitor(measure) for measure in asked if measure not in NAMES]
    made += [SimilarityHeatmaps(similarities)] if similarities else []
    for monitor in made:
        if monitor.reads_head and not reads_head:
            raise UserError(f"{type(monitor).__name__} reads the classifier at every layer. Name it: head=…")
    return made


def _monitor(measure: object) -> LayerMonitor[Any]:
    if isinstance(measure, EpochSimilarity) or (isinstance(measure, LayerMonitor) and measure.named is not None):
        own = "follows a Lightning Trainer's epochs" if measure.named is None else "has parts of its own named"
        raise UserError(f"{type(measure).__name__} {own}: expected a monitor without, or a name: {', '.join(_KNOWN)}.")
    if isinstance(measure, LayerMonitor):
        return copy.copy(measure)
    if measure in MONITORS:
        return MONITORS[str(measure)]()
    near = get_close_matches(str(measure).lower(), _KNOWN)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"There is no measure {measure!r}.{hint} Choose from {', '.join(_KNOWN)}.")
