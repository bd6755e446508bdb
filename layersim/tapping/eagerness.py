"""Compiled code made to run eagerly for a while."""

from collections.abc import Callable
from contextlib import ExitStack

import torch

_holders: set[object] = set()
_stance = ExitStack()


def run_eagerly() -> Callable[[], None]:
    """From now on all compiled code of this process runs eagerly: compiled code passes over hooks that came after it.

    Returns:
        What ends it. Of several that overlap, whichever ends last counts.
    """
    holder = object()
    if not _holders:
        _stance.enter_context(torch.compiler.set_stance("force_eager"))
    _holders.add(holder)

    def end() -> None:
        _holders.discard(holder)
        if not _holders:
            _stance.close()

    return end
