"""An alarm for the samples that come: their risk is above what was promised, or they are not like those calibrated on.

Letters: n samples, L layers, R ranks, δ = 1 − confidence.
"""

import copy
import warnings
from collections.abc import Mapping
from math import log
from typing import Any

import torch
from torch import Tensor

from layersim.errors import UserError, check_choice, check_share
from layersim.exits.capital import Capital
from layersim.exits.reference import Reference
from layersim.exits.table import RISKS, Risk

_MOST = 2**14
"""Samples by which an alarm must be able to sound."""


class Alarm:
    """Watches a stream without end, on labels, on confidences alone, or on both; `EarlyExit(…, watch=alarm)` asks it.

    On labels, whose losses are told by `report` or `EarlyExit.audit`, it tests that the risk is at most the target. On
    confidences, which `EarlyExit` tells by itself, it tests that samples come from where the calibration samples came
    from: an alarm of change, which may or may not cost accuracy. Both are bets (`Capital`), valid however long and
    however often one looks: as long as what is tested holds, the alarm ever sounds with probability at most δ, over the
    draw of the calibration samples and the stream; with both tests each has half of δ. Once it has sounded, `EarlyExit`
    goes through all layers, from the next batch on, until `reset`; each reset spends δ anew.

    An alarm that is silent proves nothing: it may have seen too little yet.

    Args:
        target: the risk that labels must not show to be exceeded; None: labels are not watched.
        risk: which risk the losses are of.
        reference: what calibration samples looked like at the threshold in use; None: confidences are not watched.
        confidence: 1 − δ, in (0, 1).
        stream: samples that will come, where they have an end.

    Raises:
        UserError: nothing to watch, a target or confidence out of range, a reference of too few samples, or a stream
            that ends before the alarm could sound.
    """

    def __init__(
        self,
        *,
        target: float | None = None,
        risk: Risk = "error",
        reference: Reference | None = None,
        confidence: float = 0.95,
        stream: int | None = None,
    ) -> None:
        check_choice("risk", risk, Risk)
        check_share("a confidence", confidence)
        if target is None and reference is None:
            raise UserError("Expected something to watch: set the alarm's target (labels), its reference, or both.")
        self.target, self.risk, self.reference = target, risk, reference
        self.delta = (1 - confidence) / (1 if target is None or reference is None else 2)
        self.capitals: dict[str, Capital] = {}
        if target is not None:
            check_share("a risk target", target)
            lowest = 0.0 if risk == "disagreement" else -1.0
            self.capitals["labels"] = Capital(torch.tensor([target], dtype=torch.float64), lowest)
        if reference is not None:
            self.capitals["confidences"] = Capital(reference.shares(self.delta / 2), 0.0)
        self.reset()
        self.least_samples = min(self._least(kind) for kind in self.capitals)
        """Fewer samples cannot make it sound, whatever they are."""
        if self.least_samples > _MOST:
            raise UserError(
                f"An alarm with confidence {confidence:g} on {reference and reference.samples} calibration samples "
                f"could not sound within {_MOST} samples. Calibrate on more samples, or lower the confidence."
            )
        if stream is not None and stream < self.least_samples:
            raise UserError(
                f"The alarm needs {self.least_samples} samples at least, but the stream ends after {stream}. Lower the "
                "confidence, or calibrate on more samples."
            )

    def reset(self) -> None:
        """Silent again, as if no sample had come: after the cause was found, or exits were calibrated anew."""
        self.sounded_at: int | None = None
        """The sample at which it sounded, counted from 1 among those of its kind, labelled or not; None: silent."""
        self.sounded_by: str | None = None
        """`labels` or `confidences`."""
        for capital in self.capitals.values():
            capital.reset()

    def report(self, losses: Tensor) -> None:
        """Tells what leaving early cost samples with labels: (n,) losses in [−1, 1], for `disagreement` in [0, 1].

        Raises:
            UserError: labels are not watched, or losses that are out of range or NaN.
        """
        if "labels" not in self.capitals:
            raise UserError("This alarm watches no labels. Set its target.")
        losses = torch.as_tensor(losses, dtype=torch.float64, device="cpu")
        lowest = self.capitals["labels"].low
        if losses.ndim != 1 or not ((losses >= lowest) & (losses <= 1)).all():
            raise UserError(
                f"Expected one loss in {lowest:g} … 1 for each sample ({self.risk}), but got {tuple(losses.shape)} "
                f"numbers{f' in {losses.amin():g} … {losses.amax():g}' if losses.numel() else ''}."
            )
        self._bet("labels", losses.unsqueeze(1))

    def observe(self, doubt: Tensor, depth: Tensor) -> None:
        """Tells what samples looked like to the exits, as `Reference` says: (n,) each. Nothing where confidences are
        not watched, or once the alarm has sounded."""
        if self.reference is not None and self.sounded_at is None:
            self._bet("confidences", self.reference.beyond(torch.stack([doubt, depth]).double().cpu()))

    def _bet(self, kind: str, values: Tensor) -> None:
        at = self._won(kind, self.capitals[kind], values)
        if at is not None and self.sounded_at is None:
            self.sounded_at, self.sounded_by = at, kind
            warnings.warn(self.describe(), stacklevel=3)

    def _won(self, kind: str, capital: Capital, values: Tensor) -> int | None:
        """The sample, counted from 1, at which the bets of a kind win by these values."""
        before, won = capital.samples, capital.update(values) >= log(1 / self.delta_of(kind))
        return before + 1 + int(won.int().argmax()) if won.any() else None

    def delta_of(self, kind: str) -> float:
        """The probability with which the bets of a kind may sound falsely; of confidences the other half went into
        the bounds of the reference."""
        return self.delta / 2 if kind == "confidences" else self.delta

    def _least(self, kind: str) -> int:
        """So many samples of the worst kind make it sound."""
        capital = copy.copy(self.capitals[kind])
        worst = [torch.ones(1, 1, dtype=torch.float64)]
        if kind == "confidences":
            assert self.reference is not None
            far = torch.full((2, 1), torch.inf, dtype=torch.float64)
            worst = [self.reference.beyond(far), self.reference.beyond(-far)]
        found = []
        for values in worst:
            capital.reset()
            at = None
            while at is None and capital.samples < _MOST:
                at = self._won(kind, capital, values.expand(64, -1))
            found.append(at or _MOST + 1)
        return min(found)

    def describe(self) -> str:
        """One sentence or two: silent, and on how much; or why it sounded, and what follows."""
        seen = " and ".join(f"{capital.samples} {kind}" for kind, capital in self.capitals.items())
        if self.sounded_at is None:
            short = max(capital.samples for capital in self.capitals.values()) < self.least_samples
            least = f"; it could not have sounded before {self.least_samples} samples" if short else ""
            return f"The alarm is silent after {seen}{least}."
        says = "the samples are not like those that the exits were calibrated on"
        if self.sounded_by == "labels":
            says = f"{RISKS[self.risk]} exceeds the {self.target:g} that was promised"
        return (
            f"The alarm sounded at sample {self.sounded_at}, by its {self.sounded_by}: {says}. All samples go through "
            "all layers from here on. Calibrate exits on samples like these; Alarm.reset() lets them leave again."
        )

    def state_dict(self) -> dict[str, Any]:
        """What a service keeps to go on after a restart; JSON can hold it."""
        capitals = {kind: capital.state_dict() for kind, capital in self.capitals.items()}
        return {"tests": self._tests(), "capitals": capitals, "sounded": [self.sounded_at, self.sounded_by]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another alarm with the same tests was.

        Raises:
            UserError: the state is of an alarm with other tests, or of none.
        """
        if state.get("tests") != (tests := self._tests()):
            raise UserError(
                f"Expected the state of an alarm that tests {tests}, but got {state.get('tests')}. Make the alarm with "
                "the same target, risk, reference and confidence, or leave its old state."
            )
        self.sounded_at, self.sounded_by = state["sounded"]
        for kind, capital in self.capitals.items():
            capital.load_state_dict(state["capitals"][kind])

    def _tests(self) -> dict[str, Any]:
        bounds = {kind: capital.targets.tolist() for kind, capital in self.capitals.items()}
        reference = None if self.reference is None else [self.reference.doubt, self.reference.depth]
        return {"risk": self.risk, "delta": self.delta, "bounds": bounds, "reference": reference}
