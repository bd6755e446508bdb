"""What a model does between its last block and its logits, explained from one forward.

The logits are followed back to the last block: each tensor on the way is what some module gave, perhaps with its tokens
pooled, an activation applied or a number multiplied. Each explanation is checked on the recorded values.

Letters: N samples, T tokens, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any, get_args

import torch
from torch import Tensor, nn

from layersim.backbones.calls import Call
from layersim.backbones.tokens import Rule, pooled

Step = str | nn.Module
_ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
"""What models call as functions before their last linear map."""


class OneToken(nn.Module):
    """A part of the model that takes all tokens and looks at the first, given that one: (…, D) → (…, C)."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: Tensor) -> Tensor:
        return self.part(features.reshape(-1, 1, features.shape[-1])).reshape(*features.shape[:-1], -1)


class Softcapped(nn.Module):
    """Logits kept between −cap and cap: cap · tanh(logits / cap) (Gemma 2, arXiv 2408.00118), (…, C) → (…, C)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        return torch.tanh(logits / self.cap) * self.cap


class Scaled(nn.Module):
    """Logits, or what becomes them, times a number (Granite, Cohere), (…, C) → (…, C)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.scale


@dataclass(frozen=True)
class Pooling:
    rule: Rule
    prefix: int


Link = Call | Pooling | nn.Module


def path_to_logits(
    after: list[Call], logits: Tensor, mask: Tensor | None, model: Any, per_token: bool
) -> dict[str, Any] | None:
    """The way from the last block, whose call is the first of `after`, to the logits, in the words of `Layout`; None
    where there is none. A norm of the base model that comes first is the final norm; the classifier's own stays there.

    Args:
        after: the calls of modules outside of the blocks, in the order of their ends.
        mask: (N, T); None for images.
        per_token: whether each token has logits, (N, T, C); otherwise each sample, (N, C).
    """
    links = next(_Search(after, logits.detach(), mask, model.config, per_token).back(), None)
    if links is None:
        return None
    links = [
        link for link in links if not (isinstance(link, Call) and _idle(link) and not getattr(link.module, "p", 0))
    ]
    pools = [link for link in links if isinstance(link, Pooling)]
    if len(pools) != (not per_token):
        return None
    pooling = pools[0] if pools else Pooling("first", 0)
    place = links.index(pooling) if pools else 0
    before, behind = links[:place], links[place + 1 if pools else 0 :]
    norm_first = "mean" in pooling.rule and any(not _idle(link) for link in before)
    chain = before if norm_first else [*before, *behind] if "mean" not in pooling.rule else behind
    first = next((link for link in chain if not _idle(link)), None)
    norm = first if isinstance(first, Call) and _is_norm(first, model.base_model) else None
    rest = chain[chain.index(norm) + 1 :] if norm else chain
    if norm_first:
        if not norm or any(not _idle(link) for link in rest):
            return None
        rest = behind
    steps = tuple(link.path if isinstance(link, Call) else link for link in rest if not isinstance(link, Pooling))
    names = {module: name for name, module in model.base_model.named_modules()}
    return {
        "final_norm": norm and names[norm.module],
        "norm_first": norm_first,
        "pooling": pooling.rule,
        "prefix": pooling.prefix,
        "classifier": steps,
    }


class _Search:
    """Depth first, from the logits back, outer modules before those inside of them."""

    def __init__(self, after: list[Call], logits: Tensor, mask: Tensor | None, config: Any, per_token: bool) -> None:
        self.block, *self.calls = after
        self.logits = logits
        self.mask = mask
        self._dead_ends: set[tuple[int, float]] = set()
        named = vars(config.get_text_config()).items() if per_token else ()
        caps = [value for key, value in named if "cap" in key and "att" not in key and isinstance(value, int | float)]
        self.caps: list[nn.Module] = [*map(Softcapped, caps)]
        prefixes = {0, 1, 1 + (getattr(config, "num_register_tokens", None) or 0)}
        self.poolings = [
            Pooling(rule, prefix)
            for rule in get_args(Rule)
            for prefix in sorted(prefixes)
            if (rule == "first" or mask is None or mask.shape[1] == self.block.gave.shape[1])
            and (prefix == 0 or (mask is None and "mean" in rule))
            and not (prefix == 0 and rule == "class and mean")
        ]

    def back(self, target: Tensor | None = None, before: float = inf) -> Iterator[list[Link]]:
        """The links from the block to `target` (the logits where None), whose taker begins at `before`."""
        target, found = self.logits if target is None else target, False
        if (place := (id(target), before)) in self._dead_ends:
            return
        for call in reversed(self.calls):
            if call.end >= before:
                continue
            for gap in self._gap(call.gave, target):
                for own in self._alone(call):
                    for rest in self.back(call.given, call.start):
                        found = True
                        yield [*rest, *own, *gap]
        for gap in self._gap(self.block.gave, target):
            found = True
            yield gap
        if not found:
            self._dead_ends.add(place)

    def _gap(self, source: Tensor, target: Tensor) -> list[list[Link]]:
        """What makes `target` of `source` without a module: the way that fits best, or none.

        Where texts' tokens are told apart by nothing, as behind a classifier of zeros, there is none either.
        """
        ways: list[tuple[float, list[Link]]] = []
        for pool, tokens in self._pooled(source, target):
            if tokens.shape != target.shape:
                continue
            exact = None if any(isinstance(link, Pooling) and "mean" in link.rule for link in pool) else 2e-6
            # a cap that is set is not felt by the small logits of a new model, and so is tried before nothing at all
            tried: list[tuple[nn.Module, float | None]] = [(cap, None) for cap in self.caps if target is self.logits]
            tried += [(kind(), exact) for kind in (nn.Identity, *_ACTIVATIONS)]
            if not pool:
                wide, aim = tokens.double(), target.double()
                tried.append((Scaled(float(f"{(wide * aim).sum() / (wide * wide).sum():.7g}")), None))
            for function, tolerance in tried:
                if close(found := function(tokens), target, tolerance):
                    made = [] if isinstance(function, nn.Identity) else [function]
                    ways.append((distance(found, target), [*pool, *made]))
                    break
        ways.sort(key=lambda way: way[0])
        unsure = self.mask is not None and len(ways) > 1 and ways[1][0] <= 2 * ways[0][0]
        return [] if unsure else [links for _, links in ways[:1]]

    def _pooled(self, source: Tensor, target: Tensor) -> Iterator[tuple[list[Link], Tensor]]:
        if source.ndim == target.ndim:
            yield [], source
        elif source.ndim == 3 and target.ndim == 2 and len(source) == len(target):
            for pooling in self.poolings:
                if source.shape[1] > pooling.prefix:
                    yield [pooling], pooled(source, self.mask, pooling.rule, pooling.prefix)

    def _alone(self, call: Call) -> Iterator[list[Link]]:
        """The call, with the pooling that it does itself, if it acts on a token alone."""
        try:
            if call.given.ndim == 3 and call.gave.ndim == 2:
                for pool, token in self._pooled(call.given, call.gave):
                    if close(OneToken(call.module)(token), call.gave):
                        yield [*pool, call]
                        return
            elif call.given.ndim == call.gave.ndim and (
                call.given.ndim == 2 or close(call.module(call.given[:, -1:]), call.gave[:, -1:])
            ):
                yield [call]
        except Exception:  # a module that wants more than a token, in its own words
            return


def close(found: Any, expected: Tensor, tolerance: float | None = None) -> bool:
    """Equal up to rounding, each token measured by its own length: some are a thousand times longer than others.

    Where no `tolerance` is given it is 1e-4, which another order of sums needs, and 2e-2 in half precision.
    """
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    half = {found.dtype, expected.dtype} & {torch.bfloat16, torch.float16}
    return distance(found, expected) <= (tolerance or (2e-2 if half else 1e-4))


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest share of a token's length (…, D) by which it is off; 0 between zeros."""
    found, expected = found.detach().double(), expected.detach().double()
    off, length = (found - expected).norm(dim=-1), expected.norm(dim=-1)
    return float(torch.where(off == 0, off, off / length).max())


def _idle(link: Link) -> bool:
    return isinstance(link, Call) and isinstance(link.module, nn.Dropout | nn.Identity)


def _is_norm(call: Call, base: nn.Module) -> bool:
    return "Norm" in type(call.module).__name__ and any(part is call.module for part in base.modules())
