"""Vega-Lite specifications of what is drawn, on the page and as still pictures: curves, bars, heat maps.

A specification holds no numbers. It is given rows `now` and, on the page alone, those of the `others`, faint behind,
and the slider's place in `time`; and parameters: `walked`, the row that the page's keyboard reads out, and of a heat
map `low` and `high`, the ends of its colours, and `cell`, the width of a cell in pixels. A row has `id`, `x`, `y` (a
series, or a row of cells), `value`, `low` and `high` (an interval), `short`, the text of its cell, `chance`, whether
that is no more than chance makes it, and on the page `told`, that of its tooltip.
"""

from collections.abc import Sequence
from typing import Any

from layersim.report.quantity import LAYER

Spec = dict[str, Any]

LAYERS = ("every layer",)
COUNTED = ("samples", "tokens")
READABLE = 19
"""Pixels of a cell that has room for its number."""
_HATCH = (
    "M-1,-.75L-.75,-1M-1,-.25L-.25,-1M-1,.25L.25,-1M-1,.75L.75,-1M-.75,1L1,-.75M-.25,1L1,-.25M.25,1L1,.25M.75,1L1,.75"
)
"""Eight strokes in the square from −1 to 1, none through its middle, where the pointer finds the cell."""
_FAINT = {"filled": False, "strokeWidth": 1, "opacity": 0.45}
_TOLD = {"tooltip": {"field": "told"}}
_WALKED = {"transform": [{"filter": "datum.id === walked"}]}
_DARK = {"viridis": "{} < 0.431", "RdBu": "abs({} - 0.514) > 0.381"}
"""Where between the ends of its colours white stands out better than black, by WCAG."""


def lines(
    x: str,
    unit: str,
    *,
    series: Sequence[str] = (),
    colors: Sequence[str] = (),
    columns: int = 0,
    log: bool = False,
    named: bool = False,
    ticks: Sequence[int] = (),
    up: Spec | None = None,
) -> Spec:
    """Curves with their points, and bands where there are intervals.

    Args:
        x: the axis across.
        unit: of the values.
        series: names, each with its own colour, mark and dashes; `LAYERS`: colours from the first to the last.
        colors: of the series; the page's own where empty.
        columns: of the legend; 0: two, or one where a name does not fit into half of a small chart.
        log: draw in logarithms.
        named: what stands along the axis are names.
        ticks: along the axis; as there is room where empty.
        up: what else holds for the channel of the values: its title, the ends of its scale.
    """
    across = (
        _channel("x", "ordinal", x)
        if named
        else _channel("x", "quantitative", x, scale={"zero": False, "nice": False, "padding": 10})
    )
    if ticks or x in (LAYER, "epoch", "step"):
        across["axis"] = {"format": "d"} | ({"values": [*ticks]} if ticks else _whole("x", "ceil(width / 40)"))
    if x == LAYER and not ticks:  # in the room around the points there may be a tick at 0
        real = {"condition": {"test": "datum.value < 1", "value": 0}, "value": 1}
        across["axis"] |= {"tickOpacity": real, "gridOpacity": real, "labelExpr": "datum.value < 1 ? '' : datum.label"}
    up = _up(unit, log) | {"scale": {"type": "log", "nice": False} if log else {"zero": False}} | (up or {})
    color: dict[str, Any] = {}
    marks: dict[str, Any] = {}
    if series is LAYERS:
        legend = {"type": "gradient", "format": "d", "gradientLength": 180} | _whole("color", "5")
        color = {"color": _channel("y", "quantitative", LAYER, legend=legend)}
    elif series:
        columns = columns or (1 if max(map(len, series)) > 17 else 2)
        name = _channel("y", "nominal", None, legend={"columns": columns}, scale={"domain": [*series]})
        color, marks = {"color": name}, {"shape": name, "strokeDash": name}
        if colors:
            color = {"color": name | {"scale": {"domain": [*series], "range": [*colors]}}}
    place = {"x": across, "y": up}
    band = place | {"y": up | {"field": "low"}, "y2": {"field": "high"}} | color
    curve = {"transform": [{"filter": "!datum.chosen"}]}
    finger = {"type": "point", "filled": True, "size": 180}  # for tooltips; and seen where a row was chosen
    seen = {"opacity": {"condition": {"test": "datum.chosen", "value": 1}, "value": 0}}
    return _layered(
        _mark("line", place | {"detail": {"field": "group"}}, style="faint") | {"data": {"name": "others"}},
        _mark("rule", {"x": across}) | {"data": {"name": "time"}},
        _mark("area", band, style="band") | curve,
        _mark("line", place | color | marks | {"order": {"field": "id"}}, point=True) | curve,
        {"mark": finger, "encoding": place | color | seen | _TOLD},
        _WALKED | _mark("point", place, style="walked", size=260),
    )


def bars(x: str, unit: str) -> Spec:
    """Shares of all, and as a line their sum up to each place."""
    place = {"x": _channel("x", "ordinal", x), "y": _up(unit)}
    summed = {"transform": [{"window": [{"op": "sum", "field": "value", "as": "sum"}]}]}
    return _layered(
        _mark("bar", place | _TOLD),
        summed | _mark("line", place | {"y": place["y"] | {"field": "sum"}}, style="sum", point={"style": "sum"}),
        _WALKED | _mark("bar", place, style="walked"),
    )


def cells(
    x: str,
    y: str,
    colors: str,
    *,
    legend: Spec | None = None,
    low: float | str = "low",
    high: float | str = "high",
    cell: float | str = "cell",
) -> Spec:
    """A heat map, the first row below; each cell with its number where there is room for it.

    Args:
        x: the axis across.
        y: the axis upwards.
        colors: `viridis` or `RdBu`, with `_r` where they are turned.
        legend: what holds for the bar of colours.
        low: the end of the colours, a number or a parameter's name; so
        high: the other end, and
        cell: the width of a cell in pixels.
    """
    name = colors.removesuffix("_r")
    scheme = {"scheme": {"RdBu": "redblue"}.get(name, name), "reverse": name != colors, "clamp": True}
    ends = {"domain": [{"expr": f"{low}"}, {"expr": f"{high}"}]}
    place = {"x": _channel("x", "ordinal", x), "y": _channel("y", "ordinal", y, scale={"reverse": True})}
    along = f"(datum.value - {low}) / ({high} - {low})"
    dark = _DARK[name].format(along if name == colors else f"(1 - {along})")
    ink = {"text": {"field": "short"}, "color": {"condition": {"test": dark, "value": "white"}, "value": "black"}}
    stroke = {"stroke": ink["color"]}
    hatch = _mark("point", place | stroke | _TOLD, shape=_HATCH, size={"expr": f"{cell} * {cell}"}, **_FAINT)
    number = _mark("text", place | ink, fontSize={"expr": f"min(12, {cell} * min(0.44, 1.76 / length(datum.short)))"})
    told = {"legend": legend} if legend else {}
    return _layered(
        _mark(
            "rect",
            place | {"color": _channel("value", "quantitative", None, scale=scheme | ends, **told)} | _TOLD,
            invalid="show",
        ),
        hatch | {"transform": [{"filter": "datum.chance"}]},
        number | {"transform": [{"filter": f"{cell} >= {READABLE} && isValid(datum.value)"}]},
        _WALKED | _mark("rect", place, style="walked"),
        low=0,
        high=1,
        cell=0,
    )


def still(spec: Spec) -> Spec:
    """The same without what the page alone shows: other epochs, the slider's place, the keyboard's cursor."""
    kept = [layer for layer in spec["layer"] if "data" not in layer and layer.get("transform") != _WALKED["transform"]]
    return {"layer": kept}


def words(name: str) -> str:
    """A name as people write it."""
    return name.replace("_", " ")


def upper(title: str) -> str:
    """A title, which begins with a capital."""
    return title[:1].upper() + title[1:]


def _channel(field: str, kind: str, title: str | None, **more: Any) -> Spec:
    shown = {"axis": {"labelAngle": 0, "labelOverlap": True}} if kind == "ordinal" else {}
    order = {} if kind == "quantitative" else {"sort": None}
    return {"field": field, "type": kind, "title": title and words(title)} | shown | order | more


def _up(unit: str, log: bool = False) -> Spec:
    """The channel of the values. Vega's own labels lack the decimals of a value alone, and some of a logarithmic axis
    are empty."""
    share = unit in ("share", *COUNTED)
    whole = f"format(datum.value, '.6~{'%' if share else 'g'}')"
    told = whole if log else f"domain('y')[1] - domain('y')[0] === 0 ? {whole} : datum.label"
    return _channel("value", "quantitative", None, axis={"labelExpr": told} | ({"format": "%"} if share else {}))


def _whole(scale: str, most: str) -> Spec:
    """Ticks at whole numbers alone: Vega's `tickMinStep` lets halves through."""
    return {"tickCount": {"expr": f"max(1, min({most}, floor(span(domain('{scale}')))))"}}


def _mark(kind: str, encoding: Spec, **look: Any) -> Spec:
    return {"mark": {"type": kind} | look, "encoding": encoding}


def _layered(*layers: Spec, **parameters: Any) -> Spec:
    named = {"walked": -1} | parameters
    return {
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"name": "now"},
        "params": [{"name": name, "value": value} for name, value in named.items()],
        "layer": list(layers),
    }
