"""What the paper leaves open, since it reads one head and compares with nothing: do features know more where they are
read better, and is similarity more than chance?"""

import numpy as np

from layersim.report.claims.claim import GAIN, Limits, claim
from layersim.report.claims.finished import FinishedRun
from layersim.report.claims.intervals import Measured, shares
from layersim.report.lens import KNOWN, READABLE


@claim(
    says="Training one head at all layers makes features readable: the model's own head says more of shallow layers",
    source="figures 1b and 4b, told apart from what the features know",
    arms=GAIN,
    claimed=(">", "shallow-gain"),
)
def features_readable(run: FinishedRun, limits: Limits) -> Measured:
    """Gain in mean accuracy of the shared head over the first half of the layers, as `layersim lens` reads it."""
    return _shallow(run, READABLE)


@claim(
    says="It makes them know more: a linear probe says more of shallow layers, too",
    source="not in the paper, which reads the head alone",
    arms=GAIN,
    claimed=(">", 0.0),
)
def features_know_more(run: FinishedRun, limits: Limits) -> Measured:
    """Gain in mean accuracy of linear probes over the first half of the layers."""
    return _shallow(run, KNOWN)


@claim(
    says="Layers are more alike than chance makes them, by cosine and by CKA",
    source="figure 2, against permuted samples",
    claimed=("≤", 0.0),
)
def similarity_beyond_chance(run: FinishedRun, limits: Limits) -> Measured:
    """Share of the pairs of layers that are not beyond chance (family-wise p > 0.05), of the two the larger.

    Counted, so that it is exact.
    """
    of_each = np.array([run.within_chance(*told) for told in (("cosine", "cosine"), ("cka", "CKA"))])
    return Measured(of_each, np.stack([of_each, of_each]))


LEFT_OPEN = (features_readable, features_know_more, similarity_beyond_chance)


def _shallow(run: FinishedRun, who: str) -> Measured:
    told = run.read_by(who)
    samples = None if run.lens is None or run.lens.unit == "tokens" else run.lens.samples
    return shares([told.values[: max(1, run.layers // 2)].mean()], samples)
