"""`exits.json`: what `layersim exits` found for a run's model. Letters: L layers, T points of the curve."""

from dataclasses import dataclass
from typing import Any, ClassVar

from layersim.errors import UserError
from layersim.report.json_report import BY_LAYER, ONE, Numbers, Report, expect

CALIBRATION = {"error": "calibration error", "brier": "Brier score", "overconfidence": "confidence − accuracy"}
"""What is told of each layer's calibration, in words."""

_CHOSEN = dict.fromkeys(("mean_exit_layer", "layer_gain", "accuracy"), ONE)
_PROMISED = dict.fromkeys(("target", "observed_risk", "bound"), ONE)
_CHOICE = {
    **{"target": object, "threshold": (None, ONE)},
    "reference": {"samples": ONE} | dict.fromkeys(("ranks", "doubt", "depth"), Numbers(("K",))),
    **_CHOSEN,
}
_CURVE = {
    "threshold": ["T", (None, ONE)],
    **dict.fromkeys(("mean_exit_layer", "accuracy"), Numbers(("T",))),
    **dict.fromkeys(("mean_exit_layer_interval", "accuracy_interval"), Numbers(("T", 2))),
}
_PLAN = dict.fromkeys(("sizes", "ways", "pays_from", "pays_up_to"), object)


@dataclass(frozen=True, kw_only=True)
class ExitReport(Report):
    """A threshold to leave by, what it promises, what it did to the samples, and what else could have been chosen.

    Layers count from 1, lists run from the first layer to the last.
    """

    FILE: ClassVar[str] = "exits.json"
    VERB: ClassVar[str] = "exits"
    FORMS: ClassVar[dict[str, Any]] = {
        "calibration": dict.fromkeys(("before", "after"), dict.fromkeys(CALIBRATION, BY_LAYER)),
        "promise": (None, dict.fromkeys(("method", "risk", "confidence"), object) | _PROMISED),
        "choices": ["choices", _CHOICE],
        "shift": (None, dict.fromkeys(("effective_samples", "greatest", "new_samples", "told_apart"), ONE)),
        "curve": _CURVE,
        "speed": [{"threshold": object} | _CHOSEN | dict.fromkeys(("wall_gain", "seconds", "full_seconds"), ONE)],
        "plan": (None, _PLAN | dict.fromkeys(("asked", "predicted", "measured"), ONE)),
        "oracle": dict.fromkeys(("mean_exit_layer", "layer_gain"), ONE),
        "parameters": dict.fromkeys(("model", "head", "separate_heads", "share_saved"), ONE),
    }

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
        super().__post_init__()
        if self.promise is not None:
            expect("choices", self.choices, [_PROMISED])

    def choice(self, target: float | None = None) -> dict[str, Any]:
        """What was chosen for a target; for the strictest where None."""
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
        return next((float(one["wall_gain"]) for one in self.speed if one["threshold"] == self.threshold), None)
