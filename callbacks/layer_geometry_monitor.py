"""The shape of the cloud that every layer's features are."""

from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks.monitor import LayerMonitor
from layersim.metrics.geometry import CONFIDENCE, LayerGeometry
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.quantity import RATIO, Quantity, curve

CONSTANT = 0.99
"""A mean cosine of unrelated samples from which on they are nearly one and the same."""

_OF_TEXTS = " A text's first token is often so: --model.backbone.pool=mean reads the mean of its tokens."


class LayerGeometryMonitor(LayerMonitor[LayerGeometry]):
    """Logs and draws of every layer, with 95 % intervals, the mean cosine of unrelated samples (anisotropy) and the
    norm, of all samples, and the effective rank (RankMe) and the intrinsic dimension by two nearest neighbours, of
    `max_samples` of them; says where features hardly differ from sample to sample, so that no head can read them.

    Tokens of one text depend on each other, so that a language model's intervals are too narrow.

    Args:
        max_samples: kept at most; all where None. Rank and dimension depend on it.
        centering: of the rank: `none`, as published; `samples` takes the mean off first.
        **named: the parts of a module that is not ours; see LayerMonitor.
    """

    reads_head = False

    def __init__(
        self, max_samples: int | None = 2048, centering: Literal["none", "samples"] = "none", **named: Any
    ) -> None:
        super().__init__(**named)
        LayerGeometry(max_samples=max_samples, centering=centering)  # refuses options before any model is built
        self.max_samples = max_samples
        self.centering: Literal["none", "samples"] = centering
        self._told: list[int] = []

    def make_metrics(self, module: LayerwiseModule) -> dict[str, LayerGeometry]:
        of_texts = self.named is None and module.backbone.input_size is None and not module.backbone.reads_tokens
        self._hint = _OF_TEXTS if of_texts else ""
        return {"geometry": LayerGeometry(max_samples=self.max_samples, centering=self.centering)}

    def update(self, metrics: dict[str, LayerGeometry], output: LayerOutput) -> None:
        metrics["geometry"].update(output.features)

    def measure(self, metrics: dict[str, LayerGeometry]) -> dict[str, Quantity]:
        found = metrics["geometry"].compute()
        duplicates, kept = found["duplicates"].tolist(), {"max_samples": self.max_samples}
        left_out = {"equal_samples": curve(duplicates, unit="samples", range=(0, None))} if any(duplicates) else {}
        self._advise((found["mean_cosine"][0] > CONSTANT).nonzero().flatten().add(1).tolist())
        rank, cosine = {"centering": self.centering} | kept, "cosine of unrelated samples"
        return {
            "mean_cosine": _with_interval(found["mean_cosine"], label=cosine, range=(-1, 1)),
            "norm": _with_interval(found["norm"], label="norm of features", unit=RATIO, range=(0, None)),
            "effective_rank": _with_interval(found["effective_rank"], range=(1, None), options=rank),
            "intrinsic_dimension": _with_interval(found["intrinsic_dimension"], range=(0, None), options=kept),
            **left_out,
        }

    def _advise(self, layers: list[int]) -> None:
        if layers and layers != self._told:
            rank_zero_info(
                f"At layer {', '.join(map(str, layers))} all samples have nearly the same features: the mean cosine of "
                f"two is above {CONSTANT:g}, and a head has little to read.{self._hint}"
            )
        self._told = layers


def _with_interval(values: Tensor, **told: Any) -> Quantity:
    value, low, high = values.tolist()
    return curve(value, interval={"confidence": CONFIDENCE, "low": low, "high": high}, **told)
