"""The threshold at which a language model's tokens may leave early while a promise about its texts still holds.

Tokens of one text hang together, so that it is texts that are counted. Letters: L layers, N texts, P tokens of the
prompts, T new tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from layersim.errors import UserError, as_user_error, check_choice
from layersim.exits.calibration import check_promise, leaving_rule
from layersim.exits.generation import TokenExit
from layersim.exits.given import as_tokens
from layersim.exits.policies import Patience, rising

TokenRisk = Literal["disagreement", "loss", "continuation"]
TOKEN_RISKS: dict[TokenRisk, str] = {
    "disagreement": "the share of a text's new tokens that the full model would not have written behind the same words",
    "loss": "the rise of a text's loss over the full model's, in nats a token, counted as 1 at most and −1 at least",
    "continuation": "the share of texts in which some token differs from the full model's",
}
"""What a text costs, in words."""
_SHARES = [*(step / 20 for step in range(1, 20)), 0.98, 0.99, 0.999]
"""Of a policy's range, where thresholds are tried: few, since for each one all texts are written anew."""


@dataclass(frozen=True, kw_only=True)
class TokenCalibration:
    """A threshold, what it promises of new texts, and what it did to the N it was chosen on."""

    policy: str
    threshold: float | None
    """None: only the last layer lets go."""
    kv: str
    """Where keys and values of skipped layers come from; see `TokenExit`."""
    exit_layers: list[int]
    """Layers 1 … L − 1 at which tokens may leave."""
    risk: TokenRisk
    target: float
    """The risk that is promised not to be exceeded."""
    confidence: float
    """The probability of the promise."""
    observed_risk: float
    """The mean of the risk over the N texts."""
    bound: float
    """What the promise says of the risk at most; at most the target."""
    texts: int
    prompt_tokens: int
    new_tokens: int
    layers: int
    exits: list[int]
    """L counts: new tokens that left at each layer."""
    mean_exit_layer: float
    """Of new tokens, counted from 1; a text's first one leaves at the last layer, where its prompt is read."""
    layer_gain: float
    """L / mean exit layer."""
    tried: list[dict[str, float]]
    """Thresholds from the most cautious one down to the first that failed: `threshold`, `mean_exit_layer`, `risk`,
    `bound`."""

    def explain(self) -> str:
        """The bound and what it means, in plain words."""
        what = TOKEN_RISKS[self.risk]
        rule = leaving_rule("token", self.policy, self.threshold, f"{what} at or below {self.target:g}")
        return (
            f"{rule} With probability {self.confidence:g} over the draw of these {self.texts} texts, {what} is at most "
            f"{self.target:g} on average over new texts of {self.new_tokens} tokens; the upper bound at this threshold "
            f"is {self.bound:.4g}. Measured on these texts: {self.observed_risk:.4g}. New tokens leave at layer "
            f"{self.mean_exit_layer:.2f} of {self.layers} on average, {self.layer_gain:.2f} times fewer layers. The "
            "promise is for texts drawn independently like these, written greedily by a model that was fixed without "
            "them."
        )


def calibrate_tokens(
    exits: TokenExit,
    input_ids: Tensor,
    following: Tensor,
    *,
    target: float,
    risk: TokenRisk = "disagreement",
    confidence: float = 0.95,
    thresholds: Sequence[float] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> TokenCalibration:
    """The least threshold that is promised to keep the risk at most at the target.

    From the most cautious one down each threshold is tried: texts are written with it, and what they cost is tested;
    the last that passed is the answer. Since the order was fixed before the texts were seen, no correction for the
    number of thresholds is needed (fixed-sequence testing, arXiv 2110.01052). A text's `continuation` is tested by the
    exact binomial tail, the others by betting (see `layersim.exits.promises`).

    Args:
        exits: the model; its threshold is not looked at.
        input_ids: (N, P) prompts.
        following: (N, T) what really followed, of which `loss` is taken; for the others T alone counts.
        target: the risk, in (0, 1).
        confidence: in (0, 1).
        thresholds: ascending, and fixed without looking at the texts; 22 in the policy's range where None.
        batch_size: texts that are written side by side.
        seed: of the random order in which the promise bets on the texts.

    Raises:
        UserError: an option out of its range, too few texts, or texts that are no tokens of the model.
    """
    check_choice("risk", risk, TokenRisk)
    with as_user_error("What followed the prompts cannot be read", "Give (texts, tokens)."):
        following = torch.as_tensor(following)
    if following.ndim != 2 or len(following) != len(input_ids) or batch_size < 1:
        given = f"{len(input_ids)} and {tuple(following.shape)}, and batch_size {batch_size}"
        raise UserError(f"Expected prompts, (texts, tokens) that followed, and batches of 1 or more, but got {given}.")
    promise = check_promise(len(input_ids), of="texts", target=target, risk=risk, confidence=confidence)
    backbone, policy = exits.backbone, exits.policy
    prompts = as_tokens(backbone, input_ids)[0]
    followed = as_tokens(backbone, following)[0] if risk == "loss" else following
    if thresholds is None:
        low, high = policy.bounds(backbone.num_classes, backbone.num_layers)
        thresholds = [low + share * (high - low) for share in _SHARES]
        if isinstance(policy, Patience):
            thresholds = policy.thresholds(backbone.num_classes, backbone.num_layers)
    thresholds = rising(thresholds)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    parts = (torch.split(each[order], batch_size) for each in (prompts, followed))
    batches = [*zip(*parts, strict=True)]
    layers, losses, full = _written(exits.at(None), batches, risk, None)
    threshold, kept, told = None, losses, layers
    tried = []
    for candidate in reversed(thresholds):
        layers, losses, _ = _written(exits.at(candidate), batches, risk, full)
        bound = promise.bound(losses)
        mean = float(layers.double().mean()) + 1
        tried.append({"threshold": candidate, "mean_exit_layer": mean, "risk": losses.mean().item(), "bound": bound})
        if not promise.keeps(losses):
            break
        threshold, kept, told = candidate, losses, layers
    mean = float(told.double().mean()) + 1
    return TokenCalibration(
        policy=policy.name,
        threshold=threshold,
        kv=exits.kv,
        exit_layers=sorted(layer + 1 for layer in exits.exits),
        risk=risk,
        target=target,
        confidence=confidence,
        observed_risk=kept.mean().item(),
        bound=promise.bound(kept),
        texts=len(prompts),
        prompt_tokens=prompts.shape[1],
        new_tokens=followed.shape[1],
        layers=backbone.num_layers,
        exits=told.flatten().bincount(minlength=backbone.num_layers).tolist(),
        mean_exit_layer=mean,
        layer_gain=backbone.num_layers / mean,
        tried=tried,
    )


def _written(
    exits: TokenExit, batches: Sequence[tuple[Tensor, Tensor]], risk: TokenRisk, full: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(N, T) the layers, from 0, that new tokens left at behind the prompts, (N,) what the texts cost, and the tokens,
    or their losses, of each batch; `full` are those of the full model, None where this is it."""
    layers, costs, told = [], [], []
    for number, (ids, following) in enumerate(batches):
        new = exits.generate(ids, None, following.shape[1], forced=following if risk == "loss" else None)
        layers.append(new.exit_layers)
        told.append(new.tokens if new.losses is None else new.losses)
        whole = told[number] if full is None else full[number]
        if new.losses is not None:
            costs.append((new.losses.double().mean(dim=1) - whole.double().mean(dim=1)).clamp(-1, 1))
        elif risk == "continuation":
            costs.append((new.tokens != whole).any(dim=1).double())
        else:  # what the full model would have written at each place behind the same words
            choices = exits.full_logits(ids, new.tokens).argmax(dim=-1)
            costs.append((new.tokens != choices).double().mean(dim=1))
    return torch.cat(layers), torch.cat(costs).cpu(), told
