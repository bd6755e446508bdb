"""What `layersim exits` is asked for, and what can be said against it before anything is measured."""

from dataclasses import dataclass

from layersim.data import SplitDataModule
from layersim.data.splits import shared_samples
from layersim.errors import UserError
from layersim.exits import Method, Risk, check_promise, split_for_temperatures
from layersim.exits.calibration import require_share
from layersim.module import LayerwiseModule


@dataclass(frozen=True)
class ExitRequest:
    """Options of `LayerwiseTrainer.exits`, which explains them."""

    risk: float
    risk_of: Risk
    confidence: float
    method: Method
    budget: float | None
    temperature_share: float
    split: str

    def check(self) -> None:
        """Refuses, with a UserError, what is out of its range; no data are read for that."""
        require_share("--risk", self.risk)
        require_share("--confidence", self.confidence)
        require_share("--temperature_share", self.temperature_share, zero=True)
        if self.budget is not None:
            require_share("--budget", self.budget, one=True)

    def check_on(self, model: LayerwiseModule, datamodule: SplitDataModule) -> None:
        """What can be said against exits on loaded data before anything is measured.

        Raises:
            UserError: a language model; a split that does not exist, that shares samples with the training data, or has
                too few for the promise.
        """
        split = self.split
        if model.backbone.reads_tokens:
            raise UserError("Exits are for classifiers, but this model predicts tokens. Use a classification backbone.")
        if split not in datamodule.splits:
            raise UserError(f"The data has no split {split!r}. Set --data.{datamodule.test_option}, or --split val.")
        samples = len(datamodule.splits[split])
        if common := shared_samples(datamodule.splits["train"], datamodule.splits[split]):
            raise UserError(
                f"{common} of the {samples} samples of the {split} split were trained on: what is chosen on them "
                "promises nothing of new ones. Choose another --split, or hold samples out of the training data."
            )
        if self.temperature_share:
            samples = len(split_for_temperatures(samples, self.temperature_share)[1])
        if self.budget is None:
            check_promise(samples, target=self.risk, risk=self.risk_of, confidence=self.confidence, method=self.method)
