"""The best accuracy for a given share of the layers. Letter: L layers."""

from collections.abc import Sequence

from layersim.errors import UserError
from layersim.exits.policies import Policy
from layersim.exits.ranges import require_share
from layersim.exits.summary import ExitSummary, at_exits, mean_exit_layer, summarize
from layersim.exits.sweep import check_thresholds, sweep
from layersim.exits.table import ExitTable


def best_within(table: ExitTable, policy: Policy, thresholds: Sequence[float], budget: float) -> ExitSummary:
    """The threshold of best accuracy among those with a mean exit layer ≤ budget × L; of equals, the cheapest.

    Measured on the table's samples, and no promise: on new samples the mean exit layer may lie a little above the
    budget, and the accuracy, having been picked as the best, below.

    Args:
        thresholds: ascending, as the policy gives them.
        budget: share of the layers, in (0, 1].

    Raises:
        UserError: the budget is out of range, or no threshold keeps to it.
    """
    check_thresholds(thresholds)
    require_share("a budget", budget, one=True)
    num_layers = table.scores.shape[0]
    right = (table.predictions == table.targets).double()
    tried = [
        (at_exits(right, exits).mean().item(), -mean_exit_layer(exits), threshold)
        for threshold, exits in sweep(table.scores, thresholds)
    ]
    affordable = [one for one in tried if -one[1] <= budget * num_layers]
    if not affordable:
        least = min(-one[1] for one in tried) / num_layers
        raise UserError(
            f"No threshold of the policy {policy.name} leaves within {budget:g} of the layers on average; the least is "
            f"{least:.3g}. Raise the budget, or change the policy."
        )
    threshold = max(affordable, key=lambda one: one[:2])[2]
    return summarize(table, policy, threshold)
