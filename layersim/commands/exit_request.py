"""What `layersim exits` is asked for, and what can be said against it before anything is measured."""

from dataclasses import dataclass
from typing import Any

from layersim.commands.token_exits import Texts
from layersim.data import SplitDataModule
from layersim.errors import UserError, as_user_error
from layersim.exits import Method, Risk, check_promise, check_targets, split_for_temperatures
from layersim.exits.calibration import require_share
from layersim.exits.token_calibration import TokenRisk
from layersim.module import LayerwiseModule


@dataclass(frozen=True)
class ExitRequest:
    """Those options of `calibrate_exits` that something can be said against before anything is measured."""

    risk: float | list[float] | str
    risk_of: Risk | TokenRisk | None
    confidence: float
    method: Method
    budget: float | None
    temperature_share: float
    split: str
    shifted_data: Any = None
    plan: bool = False
    measure_speed: bool = True
    texts: Any = None

    @property
    def targets(self) -> list[float]:
        """The risks, as numbers."""
        words = self.risk.split(",") if isinstance(self.risk, str) else self.risk
        with as_user_error("--risk takes numbers", "Set one, such as 0.01, or several, such as 0.01,0.02,0.05."):
            return [float(word) for word in words] if isinstance(words, list) else [words]

    def check(self) -> None:
        """Refuses, with a UserError, what is out of its range; no data are read for that."""
        for target in self.targets:
            require_share("--risk", target)
        check_targets(self.targets)
        require_share("--confidence", self.confidence)
        require_share("--temperature_share", self.temperature_share, zero=True)
        if self.budget is not None:
            require_share("--budget", self.budget, one=True)
            if self.shifted_data is not None:
                raise UserError("A budget promises nothing, to new data neither. Leave --shifted_data or --budget out.")
        if self.plan and not self.measure_speed:
            raise UserError("A plan is made of measured times. Leave --plan or --measure_speed=false out.")

    def check_on(self, model: LayerwiseModule, datamodule: SplitDataModule) -> None:
        """Refuses, with a UserError, a split of loaded data that does not exist, shares samples with the training data,
        or has too few for the promise, and options that are for models of another kind."""
        split = self.split
        if split not in datamodule.splits:
            raise UserError(f"The data has no split {split!r}. Set --data.{datamodule.test_option}, or --split val.")
        samples = len(datamodule.splits[split])
        if common := datamodule.trained_on(split):
            raise UserError(
                f"{common} of the {samples} samples of the {split} split were trained on: what is chosen on them "
                "promises nothing of new ones. Choose another --split, or hold samples out of the training data."
            )
        if model.backbone.reads_tokens:
            self._check_tokens()
            asked = Texts() if self.texts is None else Texts(**vars(self.texts))
            risk: Any = self.risk_of or "disagreement"
            texts = asked.check_on(model, datamodule.splits[split])
            check_promise(texts, of="texts", target=self.targets[0], risk=risk, confidence=self.confidence)
            return
        if self.risk_of == "continuation" or self.texts is not None:
            raise UserError("--texts and --risk_of=continuation are for language models, but this is a classifier.")
        if self.temperature_share:
            samples = len(split_for_temperatures(samples, self.temperature_share)[1])
        if self.budget is None:
            promised: dict[str, Any] = {
                "risk": self.risk_of or "error",
                "confidence": self.confidence,
                "method": self.method,
            }
            check_promise(samples, target=self.targets[0], together=len(self.targets), **promised)

    def _check_tokens(self) -> None:
        usual = {"method": "ltt", "budget": None, "temperature_share": 0.0, "shifted_data": None, "plan": False}
        if typed := [name for name, value in usual.items() if getattr(self, name) != value]:
            raise UserError(f"--{typed[0]} is for classifiers, but this model predicts tokens. Leave it out.")
        if len(self.targets) > 1 or self.risk_of == "error":
            raise UserError(
                "Of a language model one --risk is promised, and --risk_of is disagreement, loss or continuation."
            )
