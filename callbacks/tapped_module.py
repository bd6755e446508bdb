"""The layers of a module that is not ours, and what its classifier reads there, batch by batch."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.backbones.tiny_input import rounding
from layersim.errors import UserError, meant
from layersim.evaluation import everywhere, processes
from layersim.heads import SharedHead
from layersim.labels import as_classes
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from layersim.tapping.feature_tap import FeatureTap
from layersim.tapping.layout import batch_sizes, check_layout, tokens_first
from layersim.tapping.output_pooling import Pool, check_pool
from layersim.tapping.submodules import named_submodules

LABELS = ("label", "labels", "target")
"""Under which classes are found in a batch."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """The parts of a module that is not ours which monitors measure, by their names in it: see `LayerMonitor`."""

    layers: str | Sequence[str]
    pool: Pool = "cls"
    layout: str | None = None
    norm: str | None = None
    head: str | None = None
    label: str | int | None = None

    def __post_init__(self) -> None:
        check_pool(self.pool)
        check_layout(self.layout)


def named_parts(layers: str | Sequence[str] | None, **parts: Any) -> Named | None:
    """What `Named` takes; None, a model of ours, where there are no layers.

    Raises:
        UserError: parts without layers, an unknown part, pool or layout.
    """
    known = [each.name for each in fields(Named)]
    if unknown := [name for name in parts if name not in known]:
        raise UserError(f"There is no part {unknown[0]!r}.{meant(unknown[0], known)} Choose from {', '.join(known)}.")
    if layers is not None:
        return Named(layers=layers, **parts)
    if given := [name for name, value in parts.items() if value != getattr(Named, name)]:
        told = ", ".join(f"{name}={parts[name]!r}" for name in given)
        raise UserError(f"{told}: of a module whose layers are named. Name these too (layers=…), or leave it out.")
    return None


class NamedBackbone(Backbone):
    """What a monitor wants to know of a model, told by its parts; it runs nothing."""

    def __init__(self, module: nn.Module, named: Named, num_layers: int) -> None:
        super().__init__()
        parts = named_submodules(module)
        for option, name in {"norm": named.norm, "head": named.head}.items():
            if name is not None and name not in parts:
                hint = meant(name, parts) or " `named_modules()` lists them."
                raise UserError(f"{type(module).__name__} has no submodule {name!r}.{hint} Change {option}.")
        self.num_layers = num_layers
        self._parts = (parts[named.norm] if named.norm else nn.Identity(), parts[named.head] if named.head else None)

    @property
    def final_norm(self) -> nn.Module:
        return self._parts[0]

    @property
    def classifier(self) -> nn.Module:
        if self._parts[1] is None:
            raise UserError('This callback reads the classifier at every layer. Name it: head="net.head".')
        return self._parts[1]

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        classes = getattr(self.classifier, "out_features", None)
        if not isinstance(classes, int):
            raise UserError(
                f"Expected a linear classifier as head, but got a {type(self.classifier).__name__}, whose number of "
                "classes is not known."
            )
        return classes


class ReadModel:
    """A model that is not ours, as monitors ask ours."""

    def __init__(self, backbone: Backbone) -> None:
        self.num_layers = backbone.num_layers
        self.backbone = backbone

    @property
    def head(self) -> SharedHead:
        """Reads the classifier behind the norm at every layer."""
        return SharedHead(self.backbone)


class TappedModule:
    """Taps a module while it runs, over one epoch.

    Raises:
        UserError: as `FeatureTap`, or a part that the module has not.
    """

    positions_each = 1

    def __init__(self, module: nn.Module, named: Named) -> None:
        self.module = module
        self.named = named
        self.tap = FeatureTap(module, named.layers, named.pool, layout=named.layout)
        self.model(1)  # refuses names that the module has not
        self._samples = 0
        self._hooks = contextlib.ExitStack()

    @property
    def reads_head(self) -> bool:
        """Whether its classifier is named."""
        return self.named.head is not None

    def model(self, layers: int) -> ReadModel:
        """What monitors ask of it, where it has so many layers."""
        return ReadModel(NamedBackbone(self.module, self.named, layers))

    def open(self, batch: Any) -> None:
        """Before a step with this batch."""
        self.close()
        names = self.tap.names
        self.tap.open()
        self.tap.names = names  # which are those of each batch
        self._said: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        around = str(self.named.head).split(".")
        for at in range(len(around) + 1) if self.reads_head else ():
            part = named_submodules(self.module)[".".join(around[:at])]
            self._hooks.callback(part.register_forward_hook(self._keep).remove)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Logits of samples, by the head or what is around it, and how exact they are, unless something is random in
        training."""
        said = getattr(output, "logits", output)
        numbers = isinstance(said, Tensor) and said.is_floating_point() and said.layout is torch.strided
        if numbers and said.ndim == 2 and not any(part.training for part in self.module.modules()):
            share = rounding(said.new_ones(1))  # here, where autocast is known
            self._said.setdefault(module, []).append((said.detach().clone(), share))

    def close(self) -> None:
        """Lets go of the module."""
        self.tap.close()
        self._hooks.close()

    def read(self, batch: Any, below: int | None = None) -> LayerOutput | None:
        """What the layers put out since the tap was opened, and what the head, where one is named, reads there, of the
        samples whose position is below that; None where there are none. Closes the tap, as later callbacks may run the
        model too.

        Raises:
            UserError: as `FeatureTap.take`; no layout was told, and the step ran on another number of samples than the
                batch has, such as each video's frames; there are no labels where the head is read, or it reads others
                than the model's own logits at the last layer.
        """
        self.close()
        values = self.tap.take()
        samples = values.shape[1]
        sizes = batch_sizes(batch, either=tokens_first(self.module))
        if self.named.layout is None and sizes.first and samples not in sizes.first:
            raise UserError(
                f"The step puts {samples} samples through {self.tap.names[0]} for {sizes} samples. If each is a "
                'sample, set layout, such as "NTD"; or pool frames or crops of one sample by a function given as pool.'
            )
        position = _integers(batch.get("position"), samples) if isinstance(batch, Mapping) else None
        if position is None and processes() > 1:
            rank_zero_warn(
                'The batches have no "position", one integer a sample: each process numbers its own, minibatch CKA '
                "groups each process's samples, and samples that a sampler repeats count twice."
            )
        targets = labels_of(batch, self.named.label, samples).to(values.device) if self.reads_head else None
        kept = of_those_below(LayerFeatures(values, targets, position), below)
        if kept is None:
            return None
        self._samples += kept.values.shape[1]
        backbone = self.model(len(kept.values)).backbone
        if not self.reads_head:
            return read_by_head(backbone, kept)
        own = [each.dtype for each in backbone.classifier.parameters() if each.is_floating_point()]
        dtype = next(iter(own), values.dtype)  # a quantised head's weights are whole numbers
        self._check_logits(values[-1:].to(dtype), len(values))
        return read_by_head(backbone, kept, dtype)

    def _check_logits(self, last: Tensor, layers: int) -> None:
        """Refuses features (1, N, D) of the last layer of which the head reads none of the logits (N, C) that it gave
        the model, or, where it gave none of samples (each token's, or by its weights alone), other predictions than the
        module around it; not so where a part of the same kind follows, which the author left out of the layers."""
        parts = named_submodules(self.module)
        name = self.tap.names[-1].partition("#")[0]
        behind = [parts[each] for each in [*parts][[*parts].index(name) + 1 :] if each != self.named.head]
        if any(type(part) is type(parts[name]) for part in behind) or not last.numel():
            return
        reads = getattr(parts.get(str(self.named.head)), "in_features", last.shape[-1])
        if reads != last.shape[-1]:
            raise UserError(
                f"The head reads {reads} components, but {self.tap.names[-1]} pooled by {self.options()['pool']!r} has "
                f"{last.shape[-1]}. Set pool to a function that gives what the head is given, or leave head out."
            )
        found = self.model(layers).head.logits(last, [layers - 1])[0]
        said = {of: [each for each in told if each[0].shape == found.shape] for of, told in self._said.items()}
        own = said.pop(parts[str(self.named.head)], [])
        off: list[Any] = [(found - logits).abs().max() > share * logits.abs().max() for logits, share in own]
        for logits, share in () if own else chain(*said.values()):  # whatever was made of them: probabilities, logs
            ways = [_behind(found, sign * logits.to(found.device)) for sign in (1, -1)]  # energies and losses fall
            off.append(all(bool((way > share * found.abs().max()).any()) for way in ways))
        if off and all(off):
            raise UserError(
                f"The head's own logits are not those that it reads of {self.tap.names[-1]} pooled by "
                f"{self.options()['pool']!r} behind norm {self.named.norm!r}. Set pool as the model pools (mean, last, "
                "or a function that gives what the norm is given; where it pools behind the norm, one that does both, "
                "and no norm), or norm, or layers up to the model's last one; or leave head out."
            )

    def options(self) -> dict[str, Any]:
        """Which features were measured: the layers' names, first layer first, and the pool's."""
        pool = self.named.pool
        told: dict[str, Any] = {"layers": self.tap.names}
        told["pool"] = pool if isinstance(pool, str) else getattr(pool, "__name__", type(pool).__name__)
        return told if self.named.layout is None else told | {"layout": self.named.layout}

    def shape(self) -> tuple[int, int]:
        """L, and N of all processes; to be called on each."""
        names, samples = zip(*everywhere([(self.tap.names, self._samples)]), strict=True)
        self.tap.names = max(names, key=len)  # a process without any batch knows none
        return len(self.tap.names), sum(samples)


def _behind(logits: Tensor, said: Tensor) -> Tensor:
    """(N,) by how much the best of the classes that `said` puts first, of several alike, is behind the best."""
    return logits.amax(1) - logits.masked_fill(said < said.amax(1, keepdim=True), -torch.inf).amax(1)


def read_by_head(backbone: Backbone, features: LayerFeatures, dtype: torch.dtype | None = None) -> LayerOutput:
    """What the backbone's own head reads at every layer, of features in this dtype; nothing where there are no targets.

    Raises:
        UserError: targets that are not a class for each sample, or none of the classifier's, counted from 0.
    """
    values, targets = features.values, features.targets
    if targets is None:
        nothing = values.new_empty(0)
        return LayerOutput(features, Readout(nothing, nothing, nothing, nothing, nothing))
    targets = as_classes(targets, values.shape[1], backbone.num_classes)
    readout = ReadModel(backbone).head(values.to(dtype or values.dtype), targets, range(backbone.num_layers))
    return LayerOutput(features, readout, readout.losses[-1])


def of_those_below(features: LayerFeatures, below: int | None, per: int = 1) -> LayerFeatures | None:
    """Only the samples at positions below that, of which each has so many; None where there are none."""
    if below is None or features.position is None:
        return features
    rows = features.position // per < below
    if not rows.any():
        return None
    values = features.values[:, rows.to(features.values.device)]
    targets = None if features.targets is None else features.targets[rows.to(features.targets.device)]
    return LayerFeatures(values, targets, features.position[rows])


def labels_of(batch: Any, where: str | int | None, samples: int) -> Tensor:
    """(N,) integer classes of a batch, as `Named` finds them."""
    found = None
    if where is not None:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            found = batch[where]
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in LABELS if key in batch), None)
    elif isinstance(batch, Sequence) and len(batch) == 2:
        found = batch[1]
    if (classes := _integers(found, samples)) is not None:
        return classes.long()
    found = as_tensor(found)
    came = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise UserError(
        f"Expected the integer classes of {samples} samples in each batch, but got {came}. Set the label to their "
        "key, or their place, in a batch."
    )


def as_tensor(found: Any) -> Any:
    """A list, a tuple or a NumPy array of numbers as a tensor; what is none of these as it is."""
    with contextlib.suppress(RuntimeError, TypeError, ValueError):
        return torch.as_tensor(found)
    return found


def _integers(found: Any, samples: int) -> Tensor | None:
    """(N,) whole numbers, where it holds one for each sample."""
    found = as_tensor(found)
    usable = isinstance(found, Tensor) and found.shape == (samples,) and not found.is_floating_point()
    return found if usable else None
