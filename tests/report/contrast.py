"""How well text stands out."""

import re
from typing import Any


def contrast(found: Any) -> float:
    """WCAG 2.2, of an element's text and of the first painted ground behind it."""
    pair = found.evaluate(
        """(node) => {
          const style = getComputedStyle(node);
          const ink = node instanceof SVGElement ? style.fill : style.color;
          let ground = node;
          while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
          return [ink, getComputedStyle(ground).backgroundColor];
        }"""
    )
    light, dark = sorted(luminance([int(part) for part in re.findall(r"\d+", color)[:3]]) for color in pair)[::-1]
    return (light + 0.05) / (dark + 0.05)


def luminance(color: list[int]) -> float:
    linear = [part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
