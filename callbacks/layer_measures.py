"""Measures the layers of any PyTorch model, in any loop. Letters: L layers, N samples."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from callbacks.figures import Figures
from callbacks.layer_readers import call, reader_of
from callbacks.loggers import Moment, dispensable
from callbacks.measures_by_name import Measures, monitors_of
from callbacks.monitor import join_all
from callbacks.run_recorder import published
from callbacks.tapped_module import LABELS, as_tensor, named_parts
from layersim.errors import UserError
from layersim.evaluation import evaluating, everywhere, process, processes
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.precision import refuse_mps
from layersim.report.page import PAGE_FILE, write_page
from layersim.report.quantity import Quantity
from layersim.report.records import RECORDS_FILE, LayerRecord, Stage, append_record, read_records
from layersim.runs.directory import reserve
from layersim.similarity.positions import as_positions
from layersim.tapping.output_pooling import Pool
from layersim.tapping.submodules import named_submodules
from layersim.writing import written_whole


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
        named = named_parts(layers, pool=pool, layout=layout, norm=norm, head=head, label=label)
        self.model = model
        self.reader = reader_of(named_submodules(model)[""], named)
        self._named = named
        self.monitors = monitors_of(measures, reads_head=self.reader.reads_head)
        self._homes: dict[Path, Path] = {}
        self._lines = 0
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured."""
        self._layers = self._samples = 0
        self._keys = set[Any]()

    @property
    def needs_labels(self) -> bool:
        """Whether something is measured that reads the classifier."""
        return any(monitor.reads_head for monitor in self.monitors)

    def update(self, batch: Any, position: Tensor | None = None) -> None:
        """Runs the model on a batch and takes in what it tells: in evaluation mode, without gradients, on the model's
        device, leaving modes and the state of random generators as they were.

        Args:
            batch: a mapping; a tuple with the model's inputs first, of which those that have a default are given to it
                where the place of the label behind them is told; or a tensor.
            position: (N,) integers, each sample's place among the data; where None, a mapping's "position", or else as
                they come.

        Raises:
            UserError: as `watching`; a batch that does not fit the model's forward.
        """
        device = self._device()
        if isinstance(batch, Mapping):
            batch = {key: as_tensor(value) if key in LABELS else value for key, value in batch.items()}
        batch = move_data_to_device(batch, device)
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with evaluating(self.model), torch.no_grad(), forked, self.watching(batch, position) as own:
            call(self.model, own if self._named is None else batch, self._named)

    @contextmanager
    def watching(self, batch: Any = None, position: Tensor | None = None) -> Iterator[Any]:
        """Takes in what one call of the model in here tells, which the loop makes, in whatever mode and precision:
        `with measures.watching(batch): loss = model(**batch).loss`. Gradients are left alone.

        Args:
            batch: what the model runs on, for its labels; of transformers' models in any case, for the padding.
            position: as of `update`.

        Yields:
            The batch; a mapping with the position, from which a language model's tokens have theirs.

        Raises:
            UserError: nothing ran, layers that differ in their width or number, labels that are missing; a batch with
                other keys than those before.
        """
        position = None if position is None else torch.as_tensor(position)
        if isinstance(batch, Mapping) and position is not None:
            batch = {**batch, "position": position}
        self.same_keys(batch)
        self.reader.open(batch)
        try:
            yield batch
        except BaseException:
            self.reader.close()
            raise
        with torch.no_grad():
            output = self.reader.read(batch)
            assert output is not None
            if position is not None and (output.features.position is None or not isinstance(batch, Mapping)):
                output.features.position = as_positions(position, output.features.values.shape[1])
            self.take(output)

    def same_keys(self, batch: Any) -> None:
        """Refuses a batch that has not the keys that the first one had, as a measure of some samples would tell of
        all."""
        keys = {*batch} if isinstance(batch, Mapping) else set()
        if self._samples and keys != self._keys:
            here, before = (", ".join(sorted(map(str, each))) or "none" for each in (keys, self._keys))
            raise UserError(
                f"Expected batches of the same keys, {before}, but got {here}. Give each batch all of them."
            )
        self._keys = keys

    def take(self, output: LayerOutput) -> None:
        """What a step told, to the measures."""
        values = output.features.values
        if self.needs_labels and output.features.targets is None:
            raise UserError(
                "Expected labels in each batch, for what reads the classifier, but found no classes. Give them under "
                f"{', '.join(LABELS)}, or choose measures of the features alone: similarity, geometry."
            )
        if not self._layers:
            self._begin(len(values), values.device)
        if len(values) != self._layers:
            raise UserError(f"Expected {self._layers} layers in each forward pass, as in the first, got {len(values)}.")
        with torch.inference_mode(False), torch.no_grad():  # whose tensors may not be changed outside of it
            for monitor in self.monitors:
                monitor.take_in(output)
        self._samples += values.shape[1]

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
            monitor.quantities = monitor.measured(metrics, told, monitor.num_layers)
        self.num_layers, self.num_samples = layers, sum(samples for _, samples, _ in counts)
        return published(self.monitors)

    def write(
        self, directory: str | Path, *, epoch: int | None = None, step: int = 0, stage: Stage = "validate"
    ) -> LayerRecord:
        """Adds what `compute` gives to the directory's record, `layers.jsonl`, draws it, and writes `report.html`.

        Where an earlier program has left a record, this one's is kept in a new directory below, which a line tells.

        Args:
            directory: of the run; made where it is not there.
            epoch: of the training, counted from 0 as Lightning does; where None, how many lines were written before.
            step: optimizer steps taken.
            stage: `validate`, or `test`.

        Raises:
            UserError: as `compute`.
            OSError: the record cannot be written.
        """
        folder = self.home(Path(directory)) if process() == 0 else Path(directory)
        moment = Moment(str(folder), self._lines if epoch is None else epoch, step, within_epochs=step > 0)
        figures = Figures()
        record = self.write_record(moment, stage, figures)
        if process() == 0:
            figures.finish(moment)
            with dispensable("The page", folder):
                write_page([folder], folder / PAGE_FILE, stage=stage)
        return record

    def home(self, root: Path, resumed_at: int = 0) -> Path:
        """Where what is written into a directory is kept: another run's record is left alone, but for a training that
        goes on from a step, which takes the lines up to there as its own."""
        root = root.absolute()
        path = root / RECORDS_FILE
        if root not in self._homes and path.exists() and not resumed_at:
            self._homes[root] = reserve(root.parent, root.name)
            rank_zero_info(f"{root} holds an earlier run, so that this one is kept in {self._homes[root]}.")
        elif root not in self._homes:
            root.mkdir(parents=True, exist_ok=True)
            self._homes[root] = root
            if path.exists():
                kept = [record.to_line() for record in read_records(path) if record.step <= resumed_at]
                with written_whole(path) as part:
                    part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        return self._homes[root]

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
        self._lines += 1
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
        with torch.inference_mode(False):
            for monitor in self.monitors:
                monitor.begin(cast(LayerwiseModule, self.reader.model(layers)), device, self.monitors[0])
        self._layers = layers
