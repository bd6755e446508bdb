"""`exits.json`: what `layersim exits` found for a run's model. Letters: L layers, T points of the curve."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layersim.errors import UserError
from layersim.report.json_report import read_report, write_report
from layersim.report.numbers import expect_curve, expect_numbers, expect_shapes

EXITS_FILE = "exits.json"

_SPEED = ("mean_exit_layer", "accuracy", "layer_gain", "wall_gain", "seconds", "full_seconds")
_NUMBERS = ("mean_exit_layer", "layer_gain", "accuracy", "full_accuracy", "loss", "full_loss")
CALIBRATION = {"error": "calibration error", "brier": "Brier score", "overconfidence": "confidence − accuracy"}
"""What is told of each layer's calibration, in words."""
_LOSSES = ("loss", "full_loss")  # infinite where a model is sure and wrong; JSON has null for that


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """A threshold to leave by, what it promises, what it did to the samples, and what else could have been chosen.

    Layers count from 1, lists run from the first layer to the last.

    Raises:
        UserError: a number, list or key is missing or does not fit; the key is named.
    """

    policy: str
    threshold: float | None
    """None: every sample goes through all layers."""
    temperatures: list[float] | None
    """L numbers that the layers' logits are divided by; None: by nothing."""
    calibration: dict[str, dict[str, list[float]]]
    """`before` the temperatures and `after` (equal where there are none), L numbers each, on the samples that the
    threshold was chosen on: `error` (expected calibration error), `brier`, `overconfidence` (confidence − accuracy)."""
    layers: int
    """L."""
    samples: int
    mean_exit_layer: float
    layer_gain: float
    """L / mean exit layer."""
    exits: list[int]
    """L counts: samples that left at each layer."""
    accuracy: float
    """Of the predictions at the exits."""
    full_accuracy: float
    """Of the last layer's."""
    loss: float
    """Cross-entropy at the exits, mean, in nats."""
    full_loss: float
    promise: dict[str, Any] | None
    """`method`, `risk`, `target`, `confidence` (None: a mean is promised), `observed_risk`, `bound`; None: the
    threshold was chosen by a budget, and nothing is promised."""
    choices: list[dict[str, Any]]
    """Of each target, rising, which are all promised together (or of the budget): `target`, `threshold` (the first is
    the report's), `observed_risk`, `bound`, `mean_exit_layer`, `layer_gain`, `accuracy`, and the `reference` of an
    alarm, `samples`, `ranks`, `doubt` and `depth`, as `layersim.exits.Reference` takes them."""
    shift: dict[str, float] | None
    """Of a promise for new data: `effective_samples`, `greatest` density ratio, `new_samples` and how well the two are
    `told_apart`, an area under a ROC curve; None: the promise is for data like the samples."""
    curve: dict[str, Any]
    """`threshold` (T numbers or None), `mean_exit_layer` and `accuracy` (T), and their 95 % bands
    `mean_exit_layer_interval` and `accuracy_interval` (T pairs of low and high)."""
    speed: list[dict[str, Any]]
    """Of each threshold that was timed: `threshold`, `mean_exit_layer`, `accuracy`, `layer_gain`, `wall_gain` (the full
    model's time ÷ the time with exits), `seconds` and `full_seconds` (medians, for a sample)."""
    batch_size: int | None
    """Samples in a batch that was timed; None: nothing was."""
    device: str
    oracle: dict[str, float]
    """`mean_exit_layer` and `layer_gain` of leaving as soon as the prediction is the final one for good."""
    parameters: dict[str, float]
    """`model`, `head` (its classifiers), `separate_heads` (the model with a classifier for each layer) and
    `share_saved`, the share of those that one for all layers saves."""
    plan: dict[str, Any] | None
    """Of `--plan`: the accuracy `asked`, batch `sizes` (K), the `ways` that reach it (`name`, `accuracy`, `layers`,
    `threshold`, predicted `seconds` of a sample (K)), from which batch exits pay (`pays_from`) and up to which accuracy
    in the largest (`pays_up_to`); `predicted` and `measured` seconds of a sample at the chosen threshold."""
    head: str
    """The class of the head."""
    objective: str
    """The class of the objective that it was trained with."""
    weights: str
    """By which the model is known again: its fingerprint."""
    tokenizer: str | None
    """By which its texts' tokenizer and length are known again; None of images."""
    precision: str
    """In which it was read, as Lightning names it."""

    def __post_init__(self) -> None:
        for key in ("policy", "device", "head", "objective", "weights", "precision"):
            if not isinstance(getattr(self, key), str):
                raise UserError(f"{key}: expected a name, got {getattr(self, key)!r}.")
        if not isinstance(self.tokenizer, str | None):
            raise UserError(f"tokenizer: expected a fingerprint or null, got {self.tokenizer!r}.")
        counts = {"layers": (), "samples": (), "exits": (self.layers,)}
        numbers: dict[str, tuple[int, ...]] = counts | dict.fromkeys(_NUMBERS, ())
        optional = {"threshold": (), "batch_size": (), "temperatures": (self.layers,)}
        numbers |= {key: shape for key, shape in optional.items() if getattr(self, key) is not None}
        for key, shape in numbers.items():
            expect_numbers(key, getattr(self, key), shape, counts=key in (*counts, "batch_size"))
        expect_shapes("calibration", self.calibration, {}, others=("before", "after"))
        for when, told in self.calibration.items():
            expect_shapes(f"calibration.{when}", told, dict.fromkeys(CALIBRATION, (self.layers,)))
        if self.promise is not None:
            promised = dict.fromkeys(("target", "observed_risk", "bound"), ())
            expect_shapes("promise", self.promise, promised, others=("method", "risk", "confidence"))
        if not isinstance(self.choices, list) or not self.choices:
            raise UserError(f"choices: expected a list, got {self.choices!r}.")
        for number, choice in enumerate(self.choices):
            _expect_choice(f"choices[{number}]", choice, promised=self.promise is not None)
        if self.shift is not None:
            shifted = ("effective_samples", "greatest", "new_samples", "told_apart")
            expect_shapes("shift", self.shift, dict.fromkeys(shifted, ()))
        expect_shapes("curve", self.curve, {})
        expect_curve("curve", self.curve)
        bands = (len(self.curve["threshold"]), 2)
        expect_shapes("curve", self.curve, {"mean_exit_layer_interval": bands, "accuracy_interval": bands})
        if not isinstance(self.speed, list):
            raise UserError(f"speed: expected a list, got {self.speed!r}.")
        for number, speed in enumerate(self.speed):
            expect_shapes(f"speed[{number}]", speed, dict.fromkeys(_SPEED, ()), others=("threshold",))
        if self.plan is not None:
            others = ("sizes", "ways", "pays_from", "pays_up_to")
            expect_shapes("plan", self.plan, dict.fromkeys(("asked", "predicted", "measured"), ()), others=others)
        expect_shapes("oracle", self.oracle, {"mean_exit_layer": (), "layer_gain": ()})
        counted = ("model", "head", "separate_heads", "share_saved")
        expect_shapes("parameters", self.parameters, dict.fromkeys(counted, ()))

    def choice(self, target: float | None = None) -> dict[str, Any]:
        """What was chosen for a target; for the strictest where None.

        Raises:
            UserError: there is no such target.
        """
        if target is None:
            return self.choices[0]
        for choice in self.choices:
            if choice["target"] == target:
                return choice
        told = ", ".join(f"{one['target']:g}" for one in self.choices) if self.promise else "none"
        raise UserError(f"Expected a risk that was promised ({told}), but got {target:g}. Run `layersim exits` for it.")

    @property
    def wall_gain(self) -> float | None:
        """The full model's time ÷ the time with exits at the threshold; None where that was not timed."""
        gains = [float(speed["wall_gain"]) for speed in self.speed if speed["threshold"] == self.threshold]
        return gains[0] if gains else None


def _expect_choice(key: str, choice: Any, *, promised: bool) -> None:
    names = ("mean_exit_layer", "layer_gain", "accuracy", *(("target", "observed_risk", "bound") if promised else ()))
    numbers: dict[str, tuple[int, ...]] = dict.fromkeys(names, ())
    expect_shapes(key, choice, numbers, others=("target", "threshold", "reference"))
    if choice["threshold"] is not None:
        expect_numbers(f"{key}.threshold", choice["threshold"], ())
    reference = choice["reference"]
    expect_shapes(f"{key}.reference", reference, {"samples": ()}, others=("ranks", "doubt", "depth"))
    ranks = (len(reference["ranks"]) if isinstance(reference["ranks"], list) else 0,)
    expect_shapes(f"{key}.reference", reference, dict.fromkeys(("ranks", "doubt", "depth"), ranks))


def write_exit_report(directory: Path, report: ExitReport) -> Path:
    """Writes the report into a run's directory, a key a line, and gives the file's path."""
    values = asdict(report)
    values |= {key: values[key] if math.isfinite(values[key]) else None for key in _LOSSES}
    return write_report(directory / EXITS_FILE, values)


def read_exit_report(place: Path) -> ExitReport | None:
    """The report in a run's directory, or in a file, None where there is none; a key that this version does not know is
    passed over.

    Raises:
        UserError: the file cannot be read, is no JSON object, a key is missing, or a value does not fit.
    """
    path = place / EXITS_FILE if place.is_dir() else place
    return read_report(path, ExitReport, "exits", or_nan=_LOSSES)
