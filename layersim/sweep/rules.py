"""What a sweep file may say of a parameter, in the words of W&B's engine."""

from difflib import get_close_matches
from math import isfinite
from typing import Any

_RANGE = ({"min", "max"}, set[str]())
_STEPS = ({"min", "max"}, {"q"})
_BELL = (set[str](), {"mu", "sigma"})
_STEPPED_BELL = (set[str](), {"mu", "sigma", "q"})
DISTRIBUTIONS: dict[str, tuple[set[str], set[str]]] = {
    "constant": ({"value"}, set()),
    "categorical": ({"values"}, set()),
    "categorical_w_probabilities": ({"values", "probabilities"}, set()),
    **dict.fromkeys(("uniform", "int_uniform", "log_uniform_values", "inv_log_uniform_values"), _RANGE),
    **dict.fromkeys(("q_uniform", "q_log_uniform_values"), _STEPS),
    **dict.fromkeys(("normal", "log_normal"), _BELL),
    **dict.fromkeys(("q_normal", "q_log_normal"), _STEPPED_BELL),
    "beta": ({"a", "b"}, set()),
    "q_beta": ({"a", "b"}, {"q"}),
}
"""Each distribution's keys: those that it needs, and those that it may have."""


def broken_rule(entry: dict[str, Any]) -> str | None:
    """What is wrong with a parameter's entry; None where nothing is.

    The engine's own word on min and max, and on probabilities, is left to it.
    """
    name = entry.get("distribution") or _implied(entry)
    if name in ("log_uniform", "inv_log_uniform", "q_log_uniform"):
        return f"{name} takes exponents of e as min and max: write {name}_values, which takes the limits themselves"
    if name not in DISTRIBUTIONS:
        near = get_close_matches(str(name), DISTRIBUTIONS, n=1)
        return f"there is no distribution {name!r}: {'did you mean ' + near[0] if near else ', '.join(DISTRIBUTIONS)}?"
    needed, allowed = DISTRIBUTIONS[name]
    given = entry.keys() - {"distribution"}
    if given - needed - allowed or needed - given:
        keys = ", ".join([*sorted(needed), *(f"{key} (optional)" for key in sorted(allowed))])
        return f"{name} takes {keys}, but got {', '.join(map(str, sorted(given))) or 'nothing'}"
    if "values" in given and (not isinstance(entry["values"], list) or not entry["values"]):
        return f"values is a list of one or more, but got {entry['values']!r}"
    for key in given - {"value", "values", "probabilities"}:
        if isinstance(entry[key], str):
            return f"{key} is the text {entry[key]!r}, not a number: YAML reads 1.0e-5 as one, and 1e-5 as text"
        if not isinstance(entry[key], int | float) or isinstance(entry[key], bool) or not isfinite(entry[key]):
            return f"{key} is a number, but got {entry[key]!r}"
    return None


def _implied(entry: dict[str, Any]) -> str:
    """The distribution that an entry's keys stand for where it names none."""
    if "probabilities" in entry:
        return "categorical_w_probabilities"
    if "values" in entry:
        return "categorical"
    return "constant" if "value" in entry else "uniform"
