"""Text written token by token, each of which leaves at the first layer that is sure of it.

Keys and values of the layers that a token skipped are made when a later token of its text comes to that layer, of all
that are missing there at once; where none ever comes, never.

Letters: L layers, N texts, n of them, P tokens of the prompts, T new tokens, q tokens of each text, D width, V
vocabulary.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from layersim.backbones.base import Backbone
from layersim.backbones.calls import first_tensor, hooked
from layersim.backbones.huggingface import TransformersBackbone
from layersim.errors import UserError, as_user_error, check_choice
from layersim.evaluation import alone
from layersim.exits.block_calls import CANNOT, BlockCalls, learned_axes, text_batch
from layersim.exits.given import as_stops, as_tokens
from layersim.exits.policies import Policy, Seen, check_policy
from layersim.exits.token_cache import TokenCache
from layersim.heads import Head
from layersim.precision import widened

KVCache = Literal["exact", "copied"]


@dataclass(frozen=True)
class Written:
    """New tokens of N texts, and where each left."""

    tokens: Tensor
    """(N, T) new tokens; behind a stop token, that token again."""
    exit_layers: Tensor
    """(N, T) layers 0 … L − 1; −1 behind a stop token."""
    losses: Tensor | None
    """(N, T) negative log-probability, in nats, of the token that was forced there; None where none was."""

    def mean_exit_layer(self) -> float:
        """Counted from 1, over the tokens up to the stop token."""
        return float(self.exit_layers[self.exit_layers >= 0].double().mean()) + 1


class TokenExit:
    """A causal language model that spends on each token as many layers as a policy asks for.

    Prompts go through all layers. Greedy: each new token is the most likely one at the layer where it leaves.

    Args:
        backbone: of a language model of transformers whose blocks keep keys and values.
        head: reads its layers.
        policy: how sure a layer is of a token.
        threshold: of the policy's score, at which a token leaves; None: only the last layer lets go, which gives the
            tokens of transformers' own greedy `generate`.
        exit_layers: layers, 0 … L − 1, at which tokens may leave; all where None. Reading a layer costs as much as the
            head does, which with a large vocabulary is more than a narrow model's layer.
        kv: `exact`: a token that skipped layers is taken through them together with the first one behind it that
            comes there (as in FREE, arXiv 2310.05424), so that keys and values are the model's own; `copied`: they are
            made of what it was where it left (CALM, arXiv 2207.07061), in the same time.

    Raises:
        UserError: no language model; one that keeps something else than keys and values of all its tokens, such as a
            recurrent state; a threshold outside the policy's range; exit layers that the model has not.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        policy: Policy,
        threshold: float | None,
        exit_layers: Collection[int] | None = None,
        kv: KVCache = "exact",
    ) -> None:
        check_choice("kv", kv, KVCache)
        layers = backbone.num_layers
        if not (backbone.reads_tokens and isinstance(backbone, TransformersBackbone)):
            raise UserError("Expected a language model of transformers. Exits of classifiers are EarlyExit's.")
        if backbone.refiner is not None or backbone.layout.sequence_first:
            raise UserError(f"{CANNOT}: its blocks cannot be called one by one.")
        check_policy(policy, threshold, backbone.num_classes, layers)
        asked = sorted(range(layers) if exit_layers is None else exit_layers, key=float)
        given = {int(layer) for layer in asked}
        if wrong := [layer for layer in asked if int(layer) != layer or int(layer) not in range(layers)]:
            raise UserError(f"Expected exit layers of 0 … {layers - 1}, but got {', '.join(map(str, wrong))}.")
        self.backbone = backbone
        self.head = head
        self.policy = policy
        self.threshold = threshold
        self.exits = {*range(layers - 1)} & given
        self.kv = kv
        with alone(backbone, head):
            with as_user_error(CANNOT):
                self.axes = learned_axes(backbone)
            self._rehearse()

    def generate(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | Sequence[Sequence[int]] | None = None,
        max_new_tokens: int = 64,
        *,
        stop: int | Collection[int] | Tensor | None = (),
        forced: Tensor | Sequence[Sequence[int]] | None = None,
    ) -> Written:
        """Writes behind prompts.

        Args:
            input_ids: (N, P) prompts, those that are shorter padded in front; on any device, as are the others.
            attention_mask: (N, P), 0 where a prompt is padded; all 1 where None.
            max_new_tokens: T.
            stop: the tokens, or the one, at which a text ends, such as the tokenizer's `eos_token_id`; none where None.
            forced: (N, T) tokens to write whatever the model would, to measure its loss of them.

        Raises:
            UserError: no prompt, prompts that are padded behind, prompts or stops that are no tokens of the model, or
                more tokens than the model has positions.
        """
        ids, mask = as_tokens(self.backbone, input_ids, attention_mask)
        told = None if forced is None else as_tokens(self.backbone, forced)[0]
        if not (mask[:, -1] > 0).all():
            raise UserError(
                "Expected prompts that are padded in front, so that all go on at the same place, but got padding at "
                "their ends. Set the tokenizer's padding_side to left."
            )
        if max_new_tokens < 1 or (told is not None and told.shape != (len(ids), max_new_tokens)):
            raise UserError(f"Expected at least one new token, and as many forced ones, but got {max_new_tokens}.")
        most, length = self.backbone.max_positions, ids.shape[1] + max_new_tokens
        if most is not None and length > most:
            raise UserError(f"The model takes up to {most} tokens, but {length} are asked for. Lower max_new_tokens.")
        with alone(self.backbone, self.head):
            return _Writing(self, ids, mask, max_new_tokens).write(as_stops(self.backbone, stop), told)

    def at(self, threshold: float | None) -> "TokenExit":
        """The same with another threshold.

        Raises:
            UserError: it lies outside the policy's range.
        """
        self.policy.check(threshold, self.backbone.num_classes, self.backbone.num_layers)
        other = copy(self)
        other.threshold = threshold
        return other

    def full_logits(self, input_ids: Tensor, new: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, T, V) the full model's logits at the places of new tokens (N, T) behind prompts, in one pass."""
        (ids, mask), (new, seen) = as_tokens(self.backbone, input_ids, attention_mask), as_tokens(self.backbone, new)
        whole = text_batch(torch.cat([ids, new], dim=1), torch.cat([mask, seen], dim=1))
        with alone(self.backbone):
            logits = self.backbone.model(**self.backbone.inputs(whole)).logits
        return widened(logits[:, ids.shape[1] - 1 : -1])

    def _rehearse(self) -> None:
        """Makes sure, on a tiny input, that each layer keeps keys and values, and that with these the model gives what
        it gives without."""
        ids = self.backbone.small_batch()["input_ids"][:1]
        prompts, forced = torch.cat([ids, ids.roll(1)]), ids[:, 1:].repeat(2, 1)
        mask = torch.ones_like(prompts)
        mask[1, 0] = 0
        with as_user_error(CANNOT):
            writing = _Writing(self, prompts, mask, forced.shape[1], full=True)
            found = writing.write(set(), forced).losses
        if not writing.cache.is_initialized:
            raise UserError(f"{CANNOT}: not each of its layers keeps keys and values of its own.")
        logits = self.full_logits(prompts, forced, mask)
        expected = cross_entropy(logits.flatten(0, 1), forced.flatten(), reduction="none").view_as(forced)
        tolerance = 5e-2 if self.backbone.model.dtype in (torch.bfloat16, torch.float16) else 1e-3
        assert found is not None
        if not (found - expected).abs().max() <= tolerance * expected.abs().max():
            raise UserError(f"{CANNOT}: with keys and values kept it gives other logits than without.")


class _Writing:
    """One call of `generate`: the texts so far, their keys and values, and what the tokens left behind."""

    def __init__(self, by: TokenExit, ids: Tensor, mask: Tensor, new: int, *, full: bool = False) -> None:
        self.by, self.backbone = by, by.backbone
        self.ids, self.new = ids, new
        self.texts, self.prompt = ids.shape
        self.last = self.backbone.num_layers - 1
        self.exits = set() if full else by.exits
        self.mask = torch.cat([mask, mask.new_ones(self.texts, new)], dim=1)
        self.cache = TokenCache(self.last + 1, self.texts, self.prompt + new)
        self.blocks = BlockCalls(self.backbone, by.axes, self.mask, self.cache)
        self.filled = [[self.prompt] * self.texts for _ in range(self.last + 1)]
        """By layer and text: so many first tokens have keys and values there."""
        self.states: Tensor | None = None
        """(N, T, D) what new tokens were where they left."""

    def write(self, stop: set[int], forced: Tensor | None) -> Written:
        tokens = self.ids.new_zeros(self.texts, self.new)
        layers = torch.full_like(tokens, -1)
        losses = None if forced is None else torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
        going = list(range(self.texts))
        for step in range(self.new):
            rows = torch.tensor(going, device=tokens.device)
            logits, left = self._read(rows, tokens[rows, step - 1 : step]) if step else self._read_prompts()
            chosen = logits.argmax(dim=-1) if forced is None else forced[rows, step]
            if losses is not None:
                losses[rows, step] = cross_entropy(logits, chosen, reduction="none").to(losses)
            tokens[rows, step], layers[rows, step] = chosen, left
            if stop:
                told = dict(zip(going, chosen.tolist(), strict=True))
                for row, token in told.items():
                    if token in stop:
                        tokens[row, step:] = token
                going = [row for row, token in told.items() if token not in stop]
                if not going:
                    break
        return Written(tokens, layers, losses)

    def _read_prompts(self) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of the first new tokens, and the last layer for each of them."""
        self.cache.start, self.cache.end, self.cache.rows, self.cache.places = 0, self.prompt, None, None
        with self.backbone.listening(lambda tokens: tokens[:, -1], [self.last]) as read:
            self.backbone.extend(text_batch(self.ids, self.mask[:, : self.prompt]), self.cache)
        return self._logits(read[0], self.last), torch.full_like(self.ids[:, 0], self.last)

    def _read(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, V) behind the last tokens (n, 1) of the texts that go on, and the layers (n,) they left at."""
        place = self.cache.end
        self.cache.start, self.cache.end = place, place + 1
        states = self._embedded(text_batch(tokens, self.mask[rows, : place + 1]))
        here, seen, called = torch.arange(len(rows), device=rows.device), Seen(), None
        told: list[tuple[Tensor, Tensor, int]] = []
        texts, policy, threshold = rows.tolist(), self.by.policy, self.by.threshold
        for layer in range(self.last + 1):
            missing = self._missing(layer, texts, place)
            if (calling := (texts, missing)) != called:
                places = torch.tensor(missing, device=rows.device)
                self.blocks.at(None if len(texts) == self.texts else rows[here], places)
                called = calling
            if places.shape[1] > 1:
                states = torch.cat([self._left(rows[here], places[:, :-1], states), states], dim=1)
            read = self.blocks(layer, states)
            if places.shape[1] > 1 and self.by.kv == "exact":
                self._leave(rows[here].unsqueeze(1), places, read)
            states, features = read[:, -1:], read[:, -1]
            if layer == self.last:
                told.append((here, self._logits(features, layer), layer))
            elif layer in self.exits and threshold is not None:
                logits = None if policy.reads == "features" else self._logits(features, layer)
                leaves = policy.score(seen.view(logits, features, policy.reads)) >= threshold
                if leaves.any():
                    gone, stays = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
                    of_them = self._logits(features[gone], layer) if logits is None else logits[gone]
                    told.append((here[gone], of_them, layer))
                    self._leave(rows[here[gone]], torch.full_like(gone, place), features[gone])
                    if not len(stays):
                        break
                    here, states = here[stays], states[stays]
                    texts = rows[here].tolist()
                    seen.keep(stays)
        back = torch.cat([who for who, _, _ in told]).argsort()
        layers = torch.cat([torch.full_like(who, layer) for who, _, layer in told])
        return torch.cat([logits for _, logits, _ in told])[back], layers[back]

    def _embedded(self, batch: dict[str, Tensor]) -> Tensor:
        """(n, 1, D) what the model's own forward gives its first block."""
        given: list[Tensor] = []

        def take(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = first_tensor([*args, *kwargs.values()])
            assert hidden is not None
            given.append(hidden)
            raise _Embedded

        with suppress(_Embedded), hooked([self.backbone.blocks[0]], before=take):
            self.backbone.extend(batch, self.cache)
        return given[0]

    def _missing(self, layer: int, texts: list[int], place: int) -> list[list[int]]:
        """Places (n, q) of the tokens that have no keys and values at the layer, the last one being new; in texts where
        fewer are missing the new one stands several times, which does no harm."""
        filled = self.filled[layer]
        missing = [[*range(filled[text], place + 1)] for text in texts]
        for text in texts:
            filled[text] = place + 1
        most = max(map(len, missing))
        return [each + [place] * (most - len(each)) for each in missing] if most > 1 else missing

    def _leave(self, rows: Tensor, places: Tensor, features: Tensor) -> None:
        """Keeps what tokens were where they left."""
        if self.states is None:
            self.states = features.new_empty(self.texts, self.new, features.shape[-1])
        self.states[rows, places - self.prompt] = features

    def _left(self, rows: Tensor, places: Tensor, states: Tensor) -> Tensor:
        """(n, q − 1, D) what tokens were where they left; in the new one's place, where it stands again, its own (n, 1,
        D)."""
        assert self.states is not None
        left = self.states[rows.unsqueeze(1), places - self.prompt]
        return torch.where((places == self.cache.start).unsqueeze(2), states, left)

    def _logits(self, features: Tensor, layer: int) -> Tensor:
        return widened(self.by.head.logits(features.unsqueeze(0), [layer]).squeeze(0))


class _Embedded(BaseException):  # no error, which a guard at a library's door would take it for
    """The first block is about to be called: the rest of the model's forward is not needed."""
