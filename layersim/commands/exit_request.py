"""What `layersim exits` is asked for, and what can be said against it before anything is measured."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from layersim.data import Split, SplitDataModule
from layersim.data.blocks import first_tokens
from layersim.errors import UserError, as_user_error, at_least, check_choice, check_seed, check_share
from layersim.exits import POLICIES, Method, Risk, check_promise, check_targets, split_for_temperatures
from layersim.exits.token_calibration import TokenRisk
from layersim.module import LayerwiseModule


@dataclass(frozen=True)
class Texts:
    """How a language model is tried.

    Args:
        number: texts of the split, at most, that choose the threshold.
        prompt: tokens of each that are given.
        new: tokens that are written behind them.
        kv: where keys and values of the layers that a token skipped come from: `copied`, from what it was where it
            left (CALM); `exact`, from being taken through them with the next token that comes there.
        exit_layers: layers, from 1, at which tokens may leave; all where left out. Each costs a reading of the head,
            which with a large vocabulary is more than a narrow layer.
        batch_size: texts that are written side by side, to choose the threshold.
    """

    number: int = 512
    prompt: int = 32
    new: int = 32
    kv: Literal["exact", "copied"] = "exact"
    exit_layers: list[int] | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("number", "prompt", "new", "batch_size"):
            at_least(1, f"--texts.{name}", getattr(self, name))

    def check_on(self, model: LayerwiseModule, split: Split) -> int:
        """How many texts there are. Refuses, with a UserError, layers that the model has not, and texts longer than it
        or the split's blocks."""
        if wrong := sorted({*(self.exit_layers or ())} - {*range(1, model.num_layers)}):
            raise UserError(
                f"Expected --texts.exit_layers of 1 … {model.num_layers - 1}, but got {', '.join(map(str, wrong))}."
            )
        most: int | None = getattr(model.backbone, "max_positions", None)
        if most is not None and self.prompt + self.new > most:
            raise UserError(
                f"The model takes up to {most} tokens, but --texts.prompt and --texts.new are {self.prompt + self.new}."
            )
        return len(first_tokens(split, self.number, self.prompt + self.new))


@dataclass(frozen=True)
class ExitRequest:
    """The options of `calibrate_exits`, and what can be said against them before anything is measured."""

    policy: str
    risk: float | list[float] | str
    risk_of: Risk | TokenRisk | None
    confidence: float
    method: Method
    budget: float | None
    temperature_share: float
    split: str
    shifted_data: Any
    plan: bool
    measure_speed: bool
    texts: Any
    seed: int

    @property
    def targets(self) -> list[float]:
        """The risks, as numbers."""
        with as_user_error("--risk takes numbers", "Set one, such as 0.01, or several, such as 0.01,0.02,0.05."):
            words = self.risk.split(",") if isinstance(self.risk, str) else np.atleast_1d(self.risk)
            return [float(word) for word in words]

    @property
    def token_risk(self) -> Any:
        """Which risk of a language model's."""
        return self.risk_of or "disagreement"

    def check(self) -> None:
        """Refuses, with a UserError, what is out of its range; no data are read for that."""
        if self.policy not in POLICIES:
            raise UserError(f"policy: expected one of {', '.join(POLICIES)}, got {self.policy!r}.")
        check_choice("method", self.method, Method)
        check_choice("risk_of", self.risk_of, Risk | TokenRisk | None)
        check_choice("split", self.split, Literal["val", "test"])
        check_seed(self.seed)
        for target in self.targets:
            check_share("--risk", target)
        check_targets(self.targets)
        check_share("--confidence", self.confidence)
        check_share("--temperature_share", self.temperature_share, zero=True)
        if self.budget is not None:
            check_share("--budget", self.budget, one=True)
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
            texts = asked.check_on(model, datamodule.splits[split])
            check_promise(texts, of="texts", target=self.targets[0], risk=self.token_risk, confidence=self.confidence)
            return
        if self.risk_of == "continuation" or self.texts is not None:
            raise UserError("--texts and --risk_of=continuation are for language models, but this is a classifier.")
        if self.temperature_share:
            samples = len(split_for_temperatures(samples, self.temperature_share)[1])
        if self.budget is not None:
            usual = {"risk": 0.01, "risk_of": None, "method": "ltt", "confidence": 0.95}
            if self.plan:
                del usual["risk"]  # beside which a plan is made
            if typed := [name for name, value in usual.items() if getattr(self, name) != value]:
                raise UserError(f"A budget promises nothing: --{typed[0]} says nothing beside it. Leave either out.")
        else:
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
