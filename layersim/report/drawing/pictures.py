"""Still pictures: a specification with its rows, its look and its size, and how it becomes a PNG file."""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layersim.report.drawing import specifications
from layersim.report.drawing.colors import Scale
from layersim.report.drawing.painter import vega
from layersim.report.drawing.specifications import COUNTED, Spec, cells, lines, still, upper
from layersim.report.json_values import without_nan
from layersim.report.quantity import BY_CHANCE, LAYER, RATIO, Quantity
from layersim.writing import written_whole

Picture = dict[str, Any]
"""A Vega-Lite specification with its data: what `save_picture` writes, and any tool of Vega's reads."""

INK = "#333333"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers tell apart, less its yellow, which is lost on white."""
WIDTH, HEIGHT, SIDE = 450, 256, 368
"""Pixels of a curve's axes and of a heat map's side; a PNG has one and a half times as many."""
_TEXT = {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"}
_LOOK: dict[str, Any] = {
    "background": "white",
    "padding": 10,
    "font": "Liberation Sans, DejaVu Sans, sans-serif",
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "frame": "group",
        "fontSize": 14,
        "fontWeight": "normal",
        "color": INK,
        "offset": 10,
        "subtitleColor": INK,
    },
    "axis": _TEXT | {"gridColor": "#e3e3e3", "domainColor": INK, "tickColor": INK},
    "axisBand": {"grid": False, "ticks": False, "domain": False},
    "axisX": {"grid": False},
    "legend": _TEXT | {"orient": "bottom", "title": None, "labelLimit": 0, "symbolLimit": 0, "symbolStrokeWidth": 0},
    "range": {"category": list(COLORS)},
    "scale": {"invalid": {"color": {"value": "#cccccc"}}},
    "line": {"color": COLORS[0]},
    "point": {"color": COLORS[0], "size": 36},
    "bar": {"color": COLORS[0]},
    "rule": {"color": INK, "strokeDash": [4, 3]},
    "style": {"band": {"color": COLORS[0], "opacity": 0.2}, "sum": {"color": COLORS[1]}},
}


def rows(quantity: Quantity, series: str = "") -> list[dict[str, Any]]:
    """A row a value, as specifications read them; of counts their shares of all (none of 0), of ways in a plane both
    coordinates. It is named by the curve's `series`; of several axes by its place along all but the last."""
    values = np.asarray(quantity.values, dtype=np.float64)
    plane = len(quantity.axes) == 3
    shape = values.shape[:2] if plane else values.shape
    values = values / (values.sum() or math.nan) if quantity.unit in COUNTED else values
    ends = quantity.interval or {}
    low, high = (
        np.clip(np.asarray(ends[end], float), *quantity.ends) if end in ends else None for end in ("low", "high")
    )
    p = None if quantity.null is None else np.asarray(quantity.null["p_family"], dtype=np.float64)
    ticks = [[*quantity.ticks.get(axis, range(1, length + 1))] for axis, length in zip(quantity.axes, shape)]  # noqa: B905
    if len(shape) == 1:
        ticks = [[*quantity.ticks.get(quantity.along, ticks[0])]]
    found = []
    for number, place in enumerate(np.ndindex(shape)):
        x, value = values[place] if plane else (ticks[-1][place[-1]], values[place])
        named = [str(tick[at]) for tick, at in zip(ticks, place[:-1])]  # noqa: B905
        row = {"id": number, "x": without_nan(x), "y": series or ", ".join(named), "value": without_nan(value)}
        row |= {end: without_nan(each[place]) for end, each in (("low", low), ("high", high)) if each is not None}
        row |= {} if p is None else {"chance": bool(p[place] > BY_CHANCE)}
        found.append(row | {"short": _short(float(value))})
    return found


def curves(
    shown: Mapping[str, Quantity],
    title: str,
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
    series: Sequence[str] = (),
    colors: Sequence[str] = (),
    more: Sequence[Mapping[str, Any]] = (),
) -> Picture:
    """Curves along one axis, each with the band of its interval; of several a legend.

    Shares have the axis of `share_limits`, other values begin at 0 where their range does not say otherwise, so that
    pictures of most epochs and runs can be laid side by side; ratios are in logarithms, fitted to what is drawn.

    Args:
        shown: quantities of one kind, by the name that the legend gives them; their lengths may differ.
        title: stands above, cut in its middle where it is too long.
        width: of the axes, in pixels.
        height: the same.
        series: what the legend tells, where that is more than these.
        colors: of the series.
        more: rows beside those of the quantities; those that are `chosen` get a large mark.
    """
    first = next((one for one in shown.values() if np.size(one.values)), None)
    if first is None:
        return not_recorded(title, width, height)
    found = [row for name, one in shown.items() for row in rows(one, name)]
    reached = [row[key] for row in found for key in ("value", "low", "high") if row.get(key) is not None]
    places, told = [row["x"] for row in found], series or ([*shown] if len(shown) > 1 else ())
    log = first.unit == RATIO and min(reached, default=0) > 0
    spec = lines(
        first.along,
        first.unit,
        series=told,
        columns=max(1, width // (7 * max(map(len, told), default=1) + 40)),
        colors=colors,
        log=log,
        named=any(isinstance(x, str) for x in places),
        ticks=layer_ticks(max(places)) if all(isinstance(x, int) for x in places) else (),
        up=_upwards(first, reached, log=log),
    )
    return _picture(spec, [*found, *map(dict, more)], title, width, height)


def heat_map(quantity: Quantity, scale: Scale, title: str, *, side: int = SIDE, bar: bool = True) -> Picture:
    """A value for every pair of ticks of two axes, the first at the bottom left; each in its cell where there is room.
    Cells that are not beyond chance are hatched.

    Args:
        quantity: of two axes; the second runs across. NaN is grey.
        scale: of the colours.
        title: stands above.
        side: the width, in pixels.
        bar: whether the colours are told beside it.
    """
    up, across = np.shape(quantity.values)
    cell = side / max(across, up) if quantity.is_matrix else side / across
    height = max(cell * up, 48) if quantity.is_matrix else min(side, max(side * up / across, 48))
    legend = {"orient": "right", "title": scale.name, "gradientLength": max(height, 100), "format": ".2f"}
    told = legend if bar else {"disable": True}
    ends: dict[str, Any] = {"low": scale.low, "high": scale.high, "cell": cell}
    spec = cells(quantity.axes[-1], quantity.axes[0], scale.colors, legend=told, **ends)
    drawn = _picture(spec, rows(quantity), title, int(max(cell * across, 48)), int(height))
    if not (chance := quantity.within_chance()):
        return drawn
    return drawn | {"title": {"text": drawn["title"], "subtitle": ["Hatched: no more than chance,", chance]}}


def bars(quantity: Quantity, name: str) -> Picture:
    """How (L,) samples are spread over the layers: the share at each layer, and as a line the share up to it."""
    title = f"{upper(name)}: share of {sum(quantity.values):,} {quantity.unit} at each layer, and up to it"
    return _picture(specifications.bars(LAYER, quantity.unit), rows(quantity), title, WIDTH, HEIGHT)


def ways(quantity: Quantity, title: str) -> Picture:
    """The way of each entry of the first axis through the second, in the plane of the third's two coordinates."""
    found = rows(quantity)
    axis = quantity.axes[2]
    up = {"title": f"second {axis}", "scale": {"zero": False}}
    spec = lines(f"first {axis}", "", series=[*dict.fromkeys(row["y"] for row in found)], up=up)
    return _picture(spec, found, title, SIDE, SIDE)


def not_recorded(title: str, width: int, height: int) -> Picture:
    """An empty place that says so."""
    mark = {"type": "text", "text": "not recorded", "color": INK, "fontSize": 12}
    return {
        "data": {"values": [{}]},
        "mark": mark,
        "title": shorten(title, width // 7),
        "width": width,
        "height": height,
    }


def beside(pictures: Sequence[Picture], columns: int, **more: Any) -> Picture:
    """Pictures in rows of so many, each with its own scales; `more` holds for all, such as a `title`."""
    apart = {"resolve": {"scale": {"color": "independent", "shape": "independent", "strokeDash": "independent"}}}
    placed = {"concat": [*pictures], "columns": columns, "spacing": {"row": 30, "column": 36}, "align": "each"}
    return placed | apart | more


def save_picture(picture: Picture, path: Path) -> None:
    """Writes it as PNG. Whoever looks at `path` meanwhile sees the old picture or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(picture, path)


def drawn_later(picture: Picture, path: Path) -> Future[None]:
    """The same, into a folder that is there, by a thread that does one after the other: Vega's process does the work,
    and whoever asks goes on."""
    return _thread(os.getpid()).submit(_draw, picture, path)


def _draw(picture: Picture, path: Path) -> None:
    image = vega("vegalite_to_png", vl_spec=picture, config=_LOOK, scale=1.5)
    with written_whole(path) as part:
        part.write_bytes(image)


@cache
def _thread(owner: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def layer_ticks(layers: int) -> list[int]:
    """The layers, from 1, that get a tick: all up to 16, else the first, the last, and every 4th, 8th, 16th …"""
    if layers <= 16:
        return list(range(1, layers + 1))
    step = 4
    while layers > 8 * step:
        step *= 2
    return sorted({1, layers, *range(step, layers - step // 2, step)})


def share_limits(values: ArrayLike) -> tuple[float, float]:
    """The ends of an axis of shares: 0 … 1, or where all are small to the next of 0.5, 0.2, 0.1, 0.05 …; with room
    below where values are negative.

    In steps so coarse that the pictures of most epochs and runs can still be laid side by side.
    """
    every = np.asarray(values, dtype=np.float64)
    present = every[~np.isnan(every)].tolist()
    low, top = 0.2 * math.floor(min([*present, 0.0]) / 0.2), max(present, default=1.0)
    power = 10.0 ** math.floor(math.log10(top)) if top > 0 else 1.0
    return low, min(1.0, next(factor * power for factor in (1, 2, 5, 10) if round(top - factor * power, 12) <= 0))


def shorten(text: str, length: int) -> str:
    """The text on one line of at most `length` characters; its two ends stay, for runs often differ at the end."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def _picture(spec: Spec, found: list[dict[str, Any]], title: str, width: int, height: int) -> Picture:
    told = shorten(title, int(width / 6.5))
    return still(spec) | {"data": {"values": found}, "title": told, "width": width, "height": height}


def _upwards(quantity: Quantity, reached: Sequence[float], *, log: bool) -> Spec:
    """The channel of the values: the ends of its axis, and their unit."""
    unit = "" if quantity.unit in ("", RATIO, "share", LAYER) else quantity.unit
    told: Spec = {"title": unit or None}
    if log:
        close = max(reached) < 3 * min(reached)  # where 1, 2 and 5 may all lie beyond, and Vega's own ticks are many
        return told | {"axis": {"format": ".6~g"} | ({"values": _between(min(reached), max(reached))} if close else {})}
    low, high = quantity.range
    if high == 1 and low in (None, 0, -1):
        low, high = share_limits(reached)
    else:
        low = min([0.0, *reached]) if low is None else low
        high = (1.05 * max(reached, default=1.0) or 1.0) if high is None else high
    return told | {"scale": {"domain": [low, high], "nice": False}}


def _between(low: float, high: float) -> list[float]:
    """Round numbers between two, seven at most."""
    if low == high:
        return [low]
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(each for each in (0.2 * power, 0.5 * power, power, 2 * power) if (high - low) / each <= 7)
    return [round(step * count, 12) for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float) -> str:
    """A value in a cell."""
    if not math.isfinite(value):
        return ""
    value = round(value, 2) + 0.0  # no −0.00
    return (f"{value:.2f}" if abs(value) < 9.995 else f"{value:.3g}").replace("-", "−")
