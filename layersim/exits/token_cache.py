"""Keys and values of a language model whose tokens leave at different layers. Letters: L layers, N texts, n of them, q
tokens of each, H heads, D width of a head."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class TokenCache(Cache):  # type: ignore[misc]
    """Room for the keys and values of so many tokens of N texts at each layer, written wherever they are missing.

    Blocks of transformers write and read it as any other cache. What they are run on says the caller beforehand:
    """

    rows: Tensor | None = None
    """(n,) the texts; all N where None."""
    places: Tensor | None = None
    """(n, q) where in their texts the tokens stand; None: behind each other from the first place on."""
    start = 0
    """So many tokens stand before those that the model itself is run on."""
    end = 0
    """Tokens before this place are read."""

    def __init__(self, num_layers: int, texts: int, tokens: int) -> None:
        super().__init__(layers=[_Layer(self, texts, tokens) for _ in range(num_layers)])


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    is_sliding = False  # all tokens are kept: a layer that looks back no further masks the others

    def __init__(self, cache: TokenCache, texts: int, tokens: int) -> None:
        super().__init__()
        self.cache, self.texts, self.tokens = cache, texts, tokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            # (N, tokens, H, D), seen as (N, H, tokens, D): a token's keys lie together, as they are written
            new.new_zeros(self.texts, self.tokens, new.shape[1], new.shape[3]).transpose(1, 2)
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes those (n, H, q, D) of the tokens; gives those (n, H, end, D) of all before `end`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, places, end = self.cache.rows, self.cache.places, self.cache.end
        kept = []
        for room, new in ((self.keys, key_states), (self.values, value_states)):
            assert room is not None
            if places is None:
                room[:, :, :end] = new
            elif rows is None and places.shape[1] == 1:
                room[:, :, end - 1 : end] = new
            else:
                texts = torch.arange(self.texts, device=new.device) if rows is None else rows
                room.transpose(1, 2)[texts.unsqueeze(1), places] = new.transpose(1, 2)
            kept.append(room[:, :, :end] if rows is None else room[rows, :, :end])
        return kept[0], kept[1]

    def get_seq_length(self) -> int:
        return self.cache.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.start + query_length, 0

    def get_max_length(self) -> int:
        return self.tokens
