"""What was measured layer by layer as tables for the terminal: of one run, and of several side by side.

Layers count from 1. A cell is empty where nothing was recorded, and says `nan` where what was recorded has no value.
"""

from collections.abc import Mapping

from rich.console import Group

from layersim.report.quantity import Quantity, curves, single_numbers, told
from layersim.report.records import LayerRecord, shared_name
from layersim.report.terminal import Beside, SideBySide, gathered

_NUMBER = 8
"""Characters of a measure's number, beside "accuracy" or "perplexity"."""
APART = "was computed in different ways, its numbers do not compare"


def layer_cells(record: LayerRecord) -> dict[str, list[str]]:
    """What was recorded of each layer, L cells by name: of a similarity, that to the last layer; of counts, shares."""
    return {
        quantity.label: [told(value, quantity.unit, record.layers, record.samples) for value in quantity.values]
        for quantity in curves(record.quantities).values()
    }


def layer_table(record: LayerRecord) -> Group:
    """One run: a row a layer, a column for each thing recorded, in as many tables below each other as the terminal's
    width asks for; and below what holds for all layers together."""
    columns = layer_cells(record)
    summary = single_numbers(record.quantities, record.layers, record.samples)
    rows = {str(layer + 1): [cells[layer] for cells in columns.values()] for layer in range(record.layers)}
    note = "\n".join(f"{name}: {value}" for name, value in summary.items())
    lost = f" ({record.left_out} of the data could not be read)" if record.left_out else ""
    headings = [name.replace(" ", "\n", 1) for name in columns]
    return Group(
        Beside(f"{record.stage}, epoch {record.epoch}, step {record.step}: {record.samples} {record.unit}{lost}"),
        SideBySide("layer", headings, rows, least=1, note=note),
    )


def comparison_table(records: Mapping[str, LayerRecord]) -> SideBySide:
    """Runs side by side: at each layer the curve that they are told apart by (accuracy, of language models perplexity)
    and the first similarity to the last layer; below, every other curve at the last layer, and what holds for all
    layers.

    Args:
        records: by the run's name, one record; where L differs, the shorter runs' cells are empty.
    """
    measure = shared_name(records.values(), "matrix")
    worth = [record.worth or "" for record in records.values()]
    widths = max(map(len, worth)), max(_NUMBER, len(measure))
    long = any(len(name) > sum(widths) for name in records)
    names = [name.replace("/", "/\n") if long else name for name in records]
    layers = max(record.layers for record in records.values())
    rows = {
        str(layer + 1): [
            _pair(_cell(record, record.worth, layer), _cell(record, measure, layer), widths)
            for record in records.values()
        ]
        for layer in range(layers)
    }
    return SideBySide(
        "layer",
        [f"{name}\n{_pair(quantity, measure, widths)}" for name, quantity in zip(names, worth, strict=True)],
        rows | gathered([_below(record) for record in records.values()]),
        least=sum(widths),
        last_of_first=str(layers),
        note=_options_note(records, measure),
    )


def _below(record: LayerRecord) -> dict[str, str]:
    last = {
        f"{quantity.label}, last layer": told(quantity.values[-1], quantity.unit, record.layers, record.samples)
        for name, quantity in curves(record.quantities).items()
        if quantity.better and name != record.worth and name in record.quantities
    }
    numbers = single_numbers(record.quantities, record.layers, record.samples)
    return {"epoch": str(record.epoch), **last, **numbers}


def _pair(first: str, second: str, widths: tuple[int, int]) -> str:
    return f"{first:>{widths[0]}}{second:>{widths[1]}}" if first or second else ""


def _cell(record: LayerRecord, name: str | None, layer: int) -> str:
    """The quantity's value at this layer, of a matrix that to the last; empty where it was not recorded."""
    quantity = record.quantities.get(name or "")
    if quantity is None or layer >= record.layers:
        return ""
    one = quantity.to_last() if quantity.is_matrix else quantity
    return told(one.values[layer], one.unit, record.layers, record.samples)


def _options_note(records: Mapping[str, LayerRecord], name: str) -> str:
    """How a quantity was computed: once where the runs agree, else for each, since its numbers do not compare then."""
    having = {run: record.quantities[name] for run, record in records.items() if name in record.quantities}
    first = next(iter(having.values()), Quantity(values=0))
    if any(one.options != first.options for one in having.values()):
        lines = [f"  {run}: {one.computed or 'not recorded'}" for run, one in having.items()]
        return "\n".join([f"{name} {APART}:", *lines])
    return f"{name}: {first.computed}" if first.options else ""
