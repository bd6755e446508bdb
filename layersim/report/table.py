"""What was measured layer by layer as tables for the terminal: of one run, and of several side by side.

Layers count from 1. A cell is empty where nothing was recorded, and says `nan` where what was recorded has no value.
"""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from layersim.report.numbers import three
from layersim.report.records import LayerRecord
from layersim.report.terminal import Beside, SideBySide, gathered

SATURATED = "saturated here"

_NUMBER = 8
"""Characters of a measure's number, beside "accuracy" or "perplexity"."""


def layer_columns(record: LayerRecord) -> dict[str, list[float]]:
    """What was recorded of each layer, L numbers by name: of a language model perplexity, then accuracy, loss in nats,
    each measure's similarity to the last layer, and the share of samples that saturate here."""
    columns = {}
    if record.perplexity is not None:
        columns["perplexity"] = record.perplexity
    if record.accuracy is not None:
        columns["accuracy"] = record.accuracy
    if record.loss is not None:
        columns["loss"] = record.loss
    if record.f1 is not None:
        columns["F1"] = record.f1
    for measure, matrix in record.similarity.items():
        columns[f"{measure} to last"] = [row[-1] for row in matrix]
    if record.saturation is not None:
        columns[SATURATED] = [count / record.samples for count in record.saturation]
    return columns


def layer_table(record: LayerRecord) -> Table:
    """One run: a row a layer, a column for each thing recorded, and below what holds for all layers together."""
    columns = {"layer": [str(layer) for layer in range(1, record.layers + 1)]}
    for name, values in layer_columns(record).items():
        cells = [f"{value:.1%}" if name == SATURATED else three(value) for value in values]
        columns[name.replace(" ", "\n", 1)] = cells
    told = _summary(record)
    if record.effective_depth is not None:
        told["effective depth"] = record.effective_depth.told(record.layers)
    table = Table(
        title=Beside(f"{record.stage}, epoch {record.epoch}, step {record.step}: {record.samples} {record.unit}"),
        caption=Beside("\n".join(f"{name}: {value}" for name, value in told.items())),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in columns:
        table.add_column(Text(name), justify="right", vertical="bottom")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def comparison_table(records: Mapping[str, LayerRecord], *, measure: str = "cosine") -> SideBySide:
    """Runs side by side: accuracy (of language models perplexity) and similarity to the last layer at each layer, then
    what holds for all layers.

    Args:
        records: by the run's name, one record; where L differs, the shorter runs' cells are empty.
        measure: of the similarity.
    """
    worth = ["accuracy" if record.perplexity is None else "perplexity" for record in records.values()]
    widths = max(map(len, worth)), _NUMBER
    long = any(len(name) > sum(widths) for name in records)
    names = [name.replace("/", "/\n") if long else name for name in records]
    layers = max(record.layers for record in records.values())
    rows = {
        str(layer + 1): [
            _pair(_worth(record, layer), _to_last(record, layer, measure), widths) for record in records.values()
        ]
        for layer in range(layers)
    }
    return SideBySide(
        "layer",
        [f"{name}\n{_pair(quantity, measure, widths)}" for name, quantity in zip(names, worth, strict=True)],
        rows | gathered([{"epoch": str(record.epoch)} | _summary(record) for record in records.values()]),
        least=sum(widths),
        last_of_first=str(layers),
        note=_options_note(records, measure),
    )


def _pair(first: str, second: str, widths: tuple[int, int]) -> str:
    return f"{first:>{widths[0]}}{second:>{widths[1]}}" if first or second else ""


def _worth(record: LayerRecord, layer: int) -> str:
    values = record.perplexity or record.accuracy
    return "" if values is None or layer >= record.layers else three(values[layer])


def _to_last(record: LayerRecord, layer: int, measure: str) -> str:
    matrix = record.similarity.get(measure)
    return "" if matrix is None or layer >= record.layers else f"{matrix[layer][-1]:.3f}"


def _summary(record: LayerRecord) -> dict[str, str]:
    """What holds for all layers together, by its name; only what was recorded."""
    summary = {}
    if record.saturated_early is not None:
        summary["saturated early"] = f"{record.saturated_early:.1%}"
    if record.mean_saturation_layer is not None:
        summary["mean saturation layer"] = f"{record.mean_saturation_layer:.2f}"
    if record.effective_depth is not None:
        depth = record.effective_depth
        summary["effective depth"] = f"{depth.layer} at ε {depth.within}"
        if depth.absolute:
            summary["absolute depth"] = depth.absolute
    return summary


def _options_note(records: Mapping[str, LayerRecord], measure: str) -> str:
    """How the measure was computed: once where the runs agree, else for each, since its numbers do not compare then."""
    notes = {
        name: _written(record.options.get(measure, {}))
        for name, record in records.items()
        if measure in record.similarity
    }
    if len(set(notes.values())) > 1:
        lines = [f"  {name}: {note or 'not recorded'}" for name, note in notes.items()]
        return "\n".join([f"{measure} was computed in different ways, its numbers do not compare:", *lines])
    return "".join(f"{measure}: {note}" for note in set(notes.values()) if note)


def _written(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items()))
