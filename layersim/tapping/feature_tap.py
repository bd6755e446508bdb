"""The features of chosen submodules of any model. Letters: L layers, N samples, T tokens, D width."""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from layersim.errors import UserError
from layersim.tapping.layout import BatchSizes, Place, batch_sizes, check_layout, tokens_first
from layersim.tapping.output_pooling import Pool, check_pool, pooled_output
from layersim.tapping.submodules import chosen_names, named_submodules

_holders: set[object] = set()
"""Of compiled code in its eager stance."""
_stance = ExitStack()


class FeatureTap:
    """Records what chosen submodules of any `nn.Module` put out, while it is open.

        with FeatureTap(model, layers="blocks.*", pool="cls") as tap:
            for images, _ in loader:
                model(images)
                similarity.update(tap.take())

    Layers come in the order in which they put out their features. A module that runs k times in a forward pass, as
    where layers share weights, gives k layers: `name`, `name#2`, …. A forward pass is a call of `model`; who calls only
    its parts takes after each pass. What gradient checkpointing runs again in a backward pass is not recorded. While a
    tap is open all compiled code of the process runs eagerly, as it would pass over the tap; the numbers are then those
    of eager code.

    Args:
        model: bare, compiled or wrapped in DDP; call it as you are used to.
        layers: names as in the bare `model.named_modules()`, one or several, where `*` stands for one component:
            `blocks.*` is every block and nothing inside them.
        pool: to (N, D): "cls", token 0; "last", token T − 1, padding or not; "mean", over the tokens, or over all
            positions of a map. (N, D) stays as it is. For anything else, as padded tokens, a function from the module's
            output (its first tensor, where it puts out a tuple, a mapping or a dataclass) to (N, D).
        layout: which axis of the outputs is what: a letter for each, N of the samples and D of the width among them,
            such as "NTD", "TND", "NHWD" or "NDHW". Where None it is found from the batch that went in and from what is
            certain of the module (torch's `batch_first` and convolutions, its weights' widths, timm's formats):
            (N, T, D), (T, N, D), maps with channels first or last, nested and packed sequences. What is not certain is
            refused.

    Raises:
        UserError: a pattern that matches nothing, an unknown pool, a layout without N or D, DataParallel, TorchScript;
            within the model's forward pass, an output that the pool does not fit, or whose samples are not known to be
            those that went in.
    """

    def __init__(
        self, model: nn.Module, layers: str | Sequence[str], pool: Pool = "cls", *, layout: str | None = None
    ) -> None:
        check_pool(pool)
        check_layout(layout)
        modules = named_submodules(model)
        names = chosen_names([name for name in modules if name], layers)
        self._modules = {name: modules[name] for name in names}
        self._places = {name: Place(name, modules, layout) for name in names}
        above = {".".join(name.split(".")[:end]) for name in names for end in range(name.count(".") + 1)}
        if any(isinstance(modules[name], torch.jit.ScriptModule) for name in above.union(names)):
            raise UserError("TorchScript runs past the hooks of a tap: give the model as it was before torch.jit.")
        # modules that only hold others have no forward of their own, and are never called
        self._above = {name: modules[name] for name in above if type(modules[name]).forward is not nn.Module.forward}
        self._pool = pool
        self._passes = _Passes()
        self._finalizer: weakref.finalize[[], FeatureTap] | None = None
        self.names: list[str] = []
        """Names of the L layers, first layer first; known once something was taken."""

    def open(self) -> Self:
        """Starts recording, with nothing recorded yet."""
        self.close()
        self.names = []
        self._passes = passes = _Passes()  # hooks know this and not the tap, so that a tap let go of is collected
        ends = ExitStack()
        ends.callback(run_eagerly())
        for name, module in self._above.items():
            begin = partial(passes.begin, not name, tokens_first(module))
            ends.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for name, module in self._modules.items():
            add = partial(passes.add, self._pool, self._places[name])
            ends.callback(module.register_forward_hook(add, with_kwargs=True).remove)
        for module in self._above.values():  # after what it puts out itself
            ends.callback(module.register_forward_hook(passes.end, always_call=True).remove)
        self._finalizer = weakref.finalize(self, ends.close)
        return self

    def close(self) -> None:
        """Removes every hook. What was recorded can still be taken."""
        if self._finalizer is not None:
            self._finalizer()

    __enter__ = open

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self) -> Tensor:
        """(L, N, D) features recorded since the last take, which are then let go; of several passes, one behind the
        other. Without gradients, on the model's device; of layers on several, on the first one's.

        Raises:
            UserError: as `take_by_name`; layers that differ in N or D.
        """
        features = self.take_by_name()
        for axis, what in ((1, "width"), (0, "number of samples")):
            if len({tensor.shape[axis] for tensor in features.values()}) > 1:
                found = ", ".join(f"{name} has {tensor.shape[axis]}" for name, tensor in features.items())
                raise UserError(
                    f"Expected layers of one {what}, but {found}. Change layers or pool, or use take_by_name and "
                    "compare two layers at a time."
                )
        first = next(iter(features.values()))
        return torch.stack([tensor.to(first.device) for tensor in features.values()])

    def take_by_name(self) -> dict[str, Tensor]:
        """As `take`, but (N, D) by the layer's name, each of its own width.

        Raises:
            UserError: nothing ran since the last take, or a chosen module did not; a module ran in one pass oftener
                than in another.
        """
        passes = self._passes.release()
        ran = {name for calls in passes for name, _ in calls}
        if silent := [name for name in self._modules if name not in ran]:
            raise UserError(self._never_ran(silent))
        labelled = [_labelled(calls) for calls in passes]
        names = self.names or list(labelled[0])
        for layers in labelled:
            if layers.keys() != set(names):
                raise UserError(
                    "Expected the same layers in every forward pass, as often each, but got "
                    f"{', '.join(names)}, then {', '.join(layers)}. Change layers, or take after each batch."
                )
        self.names = names
        return {name: torch.cat([layers[name] for layers in labelled]) for name in names}

    def _never_ran(self, silent: list[str]) -> str:
        if len(silent) == len(self._modules):
            why = "None of the chosen layers ran"
        else:
            why = f"Expected every chosen layer to run, but not so {', '.join(silent)}"
        lists = [name for name in silent if isinstance(self._modules[name], nn.ModuleList | nn.ModuleDict)]
        instead = f"{lists[0]} only holds modules: choose {lists[0]}.*" if lists else "change layers"
        why += " since the last take, in a pass that did not fail"
        return f"{why}. Call the model while the tap is open, or {instead}."


class _Passes:
    """What was recorded: for each forward pass of the model that did not fail, the calls of the chosen modules, in
    their order."""

    def __init__(self) -> None:
        self.passes: list[list[tuple[str, Tensor]]] = [[]]
        self._calls = self.passes[0]  # of the pass that runs, or of the last, as a step may call parts after the whole
        self._outermost: nn.Module | None = None  # of those that run
        self._sizes = BatchSizes()  # of what went into it
        self._handled: BaseException | None = None  # by whoever called it

    def begin(self, whole: bool, tokens_first: bool, module: nn.Module, inputs: Any, named: Any) -> None:
        if whole or self._outermost in (None, module):
            self._outermost, self._sizes = module, batch_sizes((inputs, named), either=tokens_first)
            self._handled = sys.exception()
        if whole:
            self._calls = []

    def end(self, module: nn.Module, *_: object) -> None:
        if module is self._outermost:
            self._outermost = None
            if self._calls is not self.passes[-1]:  # a pass of the whole, which another exception may have ended
                self.passes.append(self._calls if sys.exception() is self._handled else [])
                self._calls = self.passes[-1]

    def add(self, pool: Pool, place: Place, module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:  # within a backward pass
            return
        # a sequence that goes into a part of the model may have the tokens first there, whatever went into the whole
        sizes = batch_sizes((inputs, named), either=True) if self._outermost is None else self._sizes
        self._calls.append((place.name, pooled_output(output, pool, place, sizes)))

    def release(self) -> list[list[tuple[str, Tensor]]]:
        released, self.passes, self._outermost = self.passes, [[]], None
        self._calls = self.passes[0]
        return [calls for calls in released if calls]


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


def _labelled(calls: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The calls of one pass by the layer's name, `name#2` for a module's second."""
    times: Counter[str] = Counter()
    labelled = {}
    for name, features in calls:
        times[name] += 1
        labelled[name if times[name] == 1 else f"{name}#{times[name]}"] = features
    return labelled
