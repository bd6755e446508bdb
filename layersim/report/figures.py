"""Pictures of what was measured: pure functions from quantities to a Vega-Lite specification with its data.

What is drawn follows from a quantity's axes, unit and range alone. Layers count from 1. Scales of shares and
similarities are fixed, or in coarse steps, so that pictures of different epochs and runs can be laid side by side.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from layersim.report.drawing.colors import Range, scale_of
from layersim.report.drawing.pictures import Picture, bars, beside, curves, heat_map, not_recorded, ways
from layersim.report.drawing.specifications import upper
from layersim.report.quantity import LAYER, MOST_DRAWN, Quantity
from layersim.report.records import LayerRecord, shared_name


def figures_of(
    quantities: Mapping[str, Quantity], unit: str = "samples", *, span: Range = "fixed"
) -> dict[str, Callable[[], Picture]]:
    """How to draw each quantity that has an axis and few enough values, by the figure's name: `layer_accuracy` of a
    curve whose values are better high or low, else the quantity's own.

    Args:
        quantities: by name.
        unit: what a sample is.
        span: of heat maps' colours.
    """
    found: dict[str, Callable[[], Picture]] = {}
    for name, quantity in quantities.items():
        label, axes = upper(quantity.name_of(name)), quantity.axes
        if not quantity.is_drawn:
            warnings.warn(f"{name} has more than {MOST_DRAWN:,} values: it is recorded, and not drawn.", stacklevel=2)
            continue
        if quantity.is_curve and quantity.unit == unit:
            found[name] = partial(bars, quantity, label)
        elif quantity.is_curve:
            found[name if quantity.better is None else f"layer_{name}"] = partial(
                curves, {label: quantity}, f"{label} by layer"
            )
        elif len(axes) == 2:
            found[name] = partial(matrix, quantity, label, span=span)
        elif len(axes) == 1:
            found[name] = partial(curves, {label: quantity}, label)
        elif len(axes) == 3 and axes[1] == LAYER and np.shape(quantity.values)[2] == 2:
            found[name] = partial(ways, quantity, f"{label}, from the first layer to the last")
    return found


def matrix(quantity: Quantity, name: str, *, span: Range = "fixed") -> Picture:
    """Values of every pair of layers, or of other ticks of two axes."""
    return heat_map(quantity, scale_of(name, quantity, [quantity.values], span), upper(name))


def panels(quantities: Mapping[str, Quantity]) -> Picture:
    """Small pictures, three a row, one for each quantity that has a single axis."""
    return beside(
        [curves({name: one}, upper(one.name_of(name)), width=260, height=190) for name, one in quantities.items()], 3
    )


def comparison(records: Mapping[str, LayerRecord]) -> Picture:
    """Several runs side by side: their first curve that is better high or low, the similarity to the last layer, and
    each run's first matrix.

    Args:
        records: by the run's name, one record; L may differ between runs. A panel says so where a run did not record
            what belongs there.
    """
    worth, shared = shared_name(records.values(), "worth"), shared_name(records.values(), "matrix")
    above = []
    for key, where in ((worth, "by layer"), (shared, "to the last layer")):
        having = {name: one for name, record in records.items() if (one := record.quantities.get(key)) is not None}
        told = next((one.name_of(key) for one in having.values()), "")
        shown = {name: one.to_last() if one.is_matrix else one for name, one in having.items()}
        above.append(curves(shown, f"{upper(told)} {where}", width=390, height=220, series=[*records]))
    matrices = {name: one for name, record in records.items() if (one := record.quantities.get(shared)) is not None}
    if not matrices:
        return beside(above, 2)
    first = next(iter(matrices.values()))
    scale = scale_of(first.name_of(shared), first, [one.values for one in matrices.values()])
    below = []
    beside_which = [name for name in [*records][:3] if name in matrices][-1:]  # whose colours are told beside it
    for name in records:
        one, bar = matrices.get(name), name in beside_which
        below.append(not_recorded(name, 225, 225) if one is None else heat_map(one, scale, name, side=225, bar=bar))
    return {"vconcat": [beside(above, 2), beside(below, 3)], "spacing": 30}
