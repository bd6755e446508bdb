"""What Jiang et al. 2025 ("Tracing Representation Progression", arXiv 2406.14479v3) claim, to be judged on other runs.

Published numbers are computed as ours are, from values that the paper prints, or that were read off its figures (to
about 0.01).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from layersim.report.claims import measured
from layersim.report.claims.intervals import Measured
from layersim.report.claims.measured import FinishedRun, Limits

ONE_HEAD = ("aligned", "alternating")
"""Arms in which one head is trained at all layers."""
GAIN = (ONE_HEAD, ("standard",))
LOSS = (("standard",), ONE_HEAD)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper that a number can bear out or refute.

    Where a run has several numbers, the greatest counts. The claim holds where the whole interval lies on its side of
    the limit, does not hold where the whole interval lies on the other, and is open where the limit is within.
    """

    name: str
    says: str
    """In words of our own."""
    source: str
    """Where in arXiv 2406.14479."""
    number: str
    """What is measured."""
    published: str = ""
    """The paper's number, where it prints or draws one."""
    read: Callable[[FinishedRun, Limits], Measured]
    """Raises NotMeasured."""
    check: Callable[[Sequence[FinishedRun], Limits], None] | None = None
    """Raises NotMeasured where the numbers of all runs that a verdict is about say nothing together."""
    arms: tuple[tuple[str, ...], ...] = (("standard", *ONE_HEAD, "separate"),)
    """Each of the first has the number, or how much more of it than each of the second."""
    claimed: tuple[Literal["≤", ">"], float | str]
    """The limit is a number, or the name of one of the limits."""


LIMITS: dict[str, tuple[float, str]] = {
    "drop": (0.01, "a drop from one layer to a later one that still counts as none"),
    "correlation": (0.8, "of cosine and CKA, from which one follows the other"),
    "shallow-gain": (0.1, "a gain in accuracy that counts as far above"),
    "last-layer-loss": (0.01, "the accuracy that the last layer may lose"),
    "par-loss": (0.01, "a loss in accuracy that is still on a par"),
    "parameters-saved": (0.05, "the share of the parameters that one head must save"),
    "epsilon": (0.01, "the accuracy below the best layer's that effective depth tolerates"),
    "transfer-loss": (0.01, "the accuracy that a layer may lose under shifts or on another task"),
}
"""What a user may set: name, default, meaning."""

CLAIMS = (
    Claim(
        name="similarity-rises",
        says="Similarity rises as layers come closer: cos(l, m) < cos(l + 1, m) for l + 1 < m",
        source="theorem 2.1, figure 2",
        number="largest drop of the cosine when a layer comes one closer",
        published="−0.02, DeiT-S on CIFAR-10, standard, to the last layer",
        read=measured.similarity_drops,
        claimed=("≤", "drop"),
    ),
    Claim(
        name="cosine-follows-cka",
        says="The cosine, cheap as it is, says what CKA says",
        source="figure 2",
        number="Pearson's correlation of cosine and CKA over the pairs of layers",
        published="0.98, DeiT-S on CIFAR-10, to the last layer",
        read=measured.cosine_cka_correlation,
        claimed=(">", "correlation"),
    ),
    Claim(
        name="accuracy-rises",
        says="Layer accuracy rises monotonically",
        source="figures 1 and 4",
        number="largest drop of accuracy from a layer to the next",
        published="−0.001, DeiT-S fine-tuned on CIFAR-10, aligned",
        read=measured.accuracy_drops,
        claimed=("≤", "drop"),
    ),
    Claim(
        name="probability-rises",
        says="The probability of the true class rises with the layer",
        source="theorem 2.2",
        number="largest drop of its mean from a layer to the next",
        read=measured.probability_drops,
        claimed=("≤", "drop"),
    ),
    Claim(
        name="shallow-layers",
        says="Training one head at all layers makes shallow layers far more accurate than standard training",
        source="figures 1b and 4b",
        number="gain in mean accuracy over the first half of the layers",
        published="0.47, DeiT-S fine-tuned on CIFAR-10",
        read=measured.shallow_accuracy,
        arms=GAIN,
        claimed=(">", "shallow-gain"),
    ),
    Claim(
        name="last-layer",
        says="The last layer loses next to nothing by it",
        source="figures 4b and 8",
        number="loss of accuracy at the last layer",
        published="0.006 on ImageNet-1K, 0.019 on SST-2, −0.005 on CIFAR-10",
        read=measured.last_accuracy,
        arms=LOSS,
        claimed=("≤", "last-layer-loss"),
    ),
    Claim(
        name="more-saturation",
        says="More samples have their final prediction before the last layer",
        source="figure 6a",
        number="gain in the share of samples that saturate early",
        published="0.12, from 0.87 to 0.99, CIFAR-10",
        read=measured.saturated_early,
        arms=GAIN,
        claimed=(">", 0.0),
    ),
    Claim(
        name="earlier-saturation",
        says="Predictions become final at a shallower layer",
        source="figure 6a",
        number="layers by which the mean saturation layer is earlier",
        published="5.55 of 12, from 9.79 to 4.24, CIFAR-10",
        read=measured.saturation_layer,
        arms=LOSS,
        claimed=(">", 0.0),
    ),
    Claim(
        name="effective-depth",
        says="Fewer layers are needed for the accuracy that is asked",
        source="figure 5a",
        number="layers by which the accuracy of the run's own best layer, less ε, is reached earlier (between layers "
        "on a line; rounded up, a run's effective depth)",
        published="4.2 of 12, DeiT-S on CIFAR-10, training accuracy",
        read=measured.effective_depth,
        arms=LOSS,
        claimed=(">", 0.0),
    ),
    Claim(
        name="one-head-on-par",
        says="With early exit, one head is on a par with a head for each layer at equal mean exit layer",
        source="table of exits, figure 7",
        number="loss against separate heads with mean exit layer at 1/2 and 3/4 of the layers, the larger",
        published="0.004 on ImageNet-1K (1.36 against 1.42 times fewer layers)",
        read=measured.accuracy_with_exits,
        check=measured.check_exits,
        arms=(("separate",), ONE_HEAD),
        claimed=("≤", "par-loss"),
    ),
    Claim(
        name="parameters-saved",
        says="One head saves the parameters of L − 1 classifiers",
        source="section on parameters: (L − 1) K d / (P + (L − 1) K d)",
        number="share of the parameters of the model with a head for each layer",
        published="0.784 GPT-2, 0.161 DeiT-S, 0.089 DeiT-B",
        read=measured.parameters_saved,
        arms=(ONE_HEAD,),
        claimed=(">", "parameters-saved"),
    ),
    Claim(
        name="transfer-shift",
        says="Under shifted data (rotation, noise, blur) no layer is worse than with standard training",
        source="transfer of layer features",
        number="largest loss over the layers, of accuracy averaged over shifts and strengths",
        read=measured.shifted_accuracy,
        check=measured.check_shifts,
        arms=LOSS,
        claimed=("≤", "transfer-loss"),
    ),
    Claim(
        name="transfer-task",
        says="On another task, by a linear probe, no layer's frozen features are worse than with standard training",
        source="transfer of layer features",
        number="largest loss over the layers, of the probe's accuracy",
        read=measured.probe_accuracy,
        check=measured.check_probes,
        arms=LOSS,
        claimed=("≤", "transfer-loss"),
    ),
)

ABSOLUTE_DEPTH = Claim(
    name="absolute-depth",
    says="Fewer layers are needed for the accuracy 1 − ε",
    source="figure 5a",
    number="layers by which the accuracy 1 − ε is reached earlier (between layers on a line)",
    published="5.6 of 12, DeiT-S on CIFAR-10, training accuracy 0.97",
    read=measured.absolute_depth,
    check=measured.check_absolute_depth,
    arms=LOSS,
    claimed=(">", 0.0),
)
"""Judged where the accuracy is asked for, `--absolute-epsilon`: it is the task's own."""
