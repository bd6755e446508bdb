"""How good the texts are that a language model writes from each of its layers: the numbers, and their curves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layersim.errors import UserError
from layersim.report.drawing.canvas import place, sheet, write_labels, write_title
from layersim.report.drawing.curves import draw_lines, scale_layers, scale_ratios
from layersim.report.drawing.legend import draw_legend, legend_height


@dataclass(frozen=True, kw_only=True)
class LayerQuality:
    """What `layersim.text.quality_by_layer` measured. Lists run along `layers`; NaN where texts were too short.

    Raises:
        UserError: a list has not one number a layer.
    """

    layers: list[int]
    """The layers that wrote, ascending, counted from 1."""
    samples: int
    """Texts written from each layer."""
    perplexity: list[float]
    """Of the texts, new tokens only, under the judge's last layer."""
    diversity: list[float]
    """Π (1 − rep-n) over n = 2, 3, 4: 0 … 1."""
    repetition: list[float]
    """rep-4, the share of 4-grams that their text has had before: 0 … 1."""
    options: dict[str, Any] = field(default_factory=dict)
    """How the texts were written: numbers compare only where these and the prompts agree."""

    def __post_init__(self) -> None:
        for key in ("perplexity", "diversity", "repetition"):
            if (found := len(getattr(self, key))) != len(self.layers):
                raise UserError(f"{key}: expected {len(self.layers)} numbers, one a layer, got {found}.")


def quality_figure(qualities: Mapping[str, LayerQuality]) -> Figure:
    """Perplexity (log scale), diversity and repetition of generated texts by layer, one curve a run.

    Args:
        qualities: by the run's name.

    Raises:
        UserError: there is no run.
    """
    if not qualities:
        raise UserError("expected one run or more to draw the quality of, got none.")
    left, side, gap = 0.75, 2.9, 0.75
    width = 3 * side + 2 * gap
    legend = legend_height(qualities, width)
    figure = sheet(left + width + 0.2, 0.55 + 2.6 + 0.45 + legend)
    panels = {"perplexity": "Perplexity of the texts", "diversity": "Diversity", "repetition": "Repetition of 4-grams"}
    for column, (key, title) in enumerate(panels.items()):
        axes = place(figure, left + column * (side + gap), 0.55 + legend, side, 2.6)
        write_title(axes, title)
        write_labels(axes, "layer", "")
        lines = _draw_curves(axes, qualities, key)
    draw_legend(figure, lines, left, legend, width)
    return figure


def _draw_curves(axes: Axes, qualities: Mapping[str, LayerQuality], key: str) -> dict[str, Line2D]:
    lines = draw_lines(axes, {name: (quality.layers, getattr(quality, key)) for name, quality in qualities.items()})
    if key == "perplexity":
        scale_ratios(axes)
    else:
        axes.set_ylim(0, 1)
    scale_layers(axes, max(max(quality.layers) for quality in qualities.values()))
    return lines
