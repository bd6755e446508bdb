"""Where an output's samples, tokens and width stand. Letters: N samples, T tokens, D width, H and W of maps."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from layersim.errors import UserError

_SEQUENCES = (
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
"""torch's own, whose `batch_first` says where their samples stand."""
_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
"""torch's own, whose width is the second axis."""
_SAMPLES_FIRST = ("timm", "transformers", "torchvision")
"""Libraries whose blocks have the samples first, but for those of `_TOKENS_FIRST`."""
_TOKENS_FIRST = tuple(
    f"transformers.models.{family}."
    for family in (
        *("conditional_detr", "dab_detr", "edgetam_video", "fsmt", "led", "longformer", "mask2former", "sam2_video"),
        *("sam3_tracker_video", "wavlm", "xlnet"),
    )
)
"""Families that have some modules with the tokens first."""


@dataclass(frozen=True)
class BatchSizes:
    """What N may be, by the tensors that went in; nothing where there were none."""

    first: frozenset[int] = frozenset()
    """If these have the samples first."""
    second: frozenset[int] = frozenset()
    """If they have them second, as sequences may."""

    def __str__(self) -> str:
        return f"a batch of {' or '.join(map(str, sorted(self.first)))}" if self.first else "an unknown number"


def batch_sizes(given: Any, *, either: bool = False) -> BatchSizes:
    """The sizes of a batch, in whatever structure it comes.

    Args:
        given: arguments; what is no tensor is passed over, and so are masks (T, T) and what has one row for all samples
            where there is anything else.
        either: whether sequences may well have their tokens first.
    """
    shapes = [sequence_shape(tensor) for tensor in tensors(given)] + [(len(part), 0, 0, 0) for part in _lists(given)]
    wide = [shape for shape in shapes if len(shape) > 1] or [shape for shape in shapes if shape]
    telling = [shape for shape in wide if shape[0] > 1 and not (len(shape) == 2 and shape[0] == shape[1])] or wide
    first = frozenset(shape[0] for shape in telling)
    second = frozenset(shape[1] for shape in telling if len(shape) in (2, 3))
    return BatchSizes(first | second if either else first, second)


def tensors(given: Any) -> Iterator[Tensor | PackedSequence]:
    """Those in a structure of tuples, lists, mappings and dataclasses, in their order."""
    if isinstance(given, Tensor | PackedSequence):
        yield given
        return
    parts: Any = ()
    if isinstance(given, Mapping):
        parts = given.values()
    elif isinstance(given, tuple | list):
        parts = given
    elif is_dataclass(given):
        parts = (getattr(given, field.name) for field in fields(given))
    for part in parts:
        yield from tensors(part)


def sequence_shape(tensor: Tensor | PackedSequence) -> tuple[int, ...]:
    """Its shape, of which only the number of samples is known where their lengths differ."""
    if isinstance(tensor, PackedSequence):
        return (int(tensor.batch_sizes[0]), 0, 0, 0)  # on the host
    return (tensor.size(0), 0, 0, 0) if tensor.is_nested else tuple(tensor.shape)


def tokens_first(module: nn.Module) -> bool:
    """Whether anything of torch's own in here takes (T, N, D)."""
    return any(getattr(part, "batch_first", True) is False for part in module.modules())


def check_layout(layout: str | None) -> None:
    """Raises UserError where it names no samples, no width, or an axis twice."""
    says = isinstance(layout, str) and {"N", "D"} <= set(layout) and len(set(layout)) == len(layout)
    if layout is not None and not says:
        raise UserError(
            f"layout: expected a letter for each axis, N of the samples and D of the width among them, such as NTD, "
            f"TND, NHWD or NDHW, got {layout!r}."
        )


class Place:
    """Where a module's output has which axis: told, one letter an axis, or found from its shape and what is certain of
    the module, which has this name among all `modules` of the model."""

    def __init__(self, name: str, modules: Mapping[str, nn.Module], told: str | None) -> None:
        parts = name.split(".")
        lineage = [modules[".".join(parts[:end])] for end in range(len(parts), -1, -1)]
        self.name = name
        self.told = told
        self.found: dict[int, str] = {}  # by the number of axes: holds for later batches that could be either
        sequence = next((module for module in lineage if isinstance(module, _SEQUENCES)), None)
        # without any `batch_first`, as of one's own layers in torch's encoder, nothing is certain
        certain = sequence is not None and any(hasattr(part, "batch_first") for part in sequence.modules())
        self.tokens_first = tokens_first(sequence) if sequence is not None and certain else None
        kinds = [type(module).__module__ for module in lineage]
        libraries = [kind.split(".")[0] in _SAMPLES_FIRST for kind in kinds]
        self.samples_first = libraries[0] and not kinds[0].startswith(_TOKENS_FIRST)
        self.of_library = any(libraries)
        self.channels_first = isinstance(lineage[0], _CHANNELS_FIRST)
        holder = next((m for m in lineage if any(p.ndim for p in m.parameters())), lineage[0])
        within = dict(holder.named_modules(remove_duplicate=False))
        owners = ((re.sub(r"\.?parametrizations\..*|\.?[^.]*$", "", n), p.shape) for n, p in holder.named_parameters())
        weights = [(isinstance(within[owner], _CHANNELS_FIRST), shape) for owner, shape in owners]
        self.recurs = any(isinstance(module, nn.RNNBase) for module in within.values())
        # not T of positions (1, T, D), nor 1, the width of a depthwise kernel
        self.widths = {size for of, shape in weights if of or shape[2:].numel() == 1 for size in shape[:2]} - {1}
        self.convolves = any(of for of, _ in weights)
        self.only_convolves = self.convolves and all(len(shape) != 2 for _, shape in weights)
        formats = (str(getattr(m, "output_fmt", "")).rpartition(".")[2] for m in lineage)  # timm's
        self.channels_last = next((found == "NHWC" for found in formats if found), False)

    def __call__(self, shape: tuple[int, ...], sizes: BatchSizes) -> str:
        """One letter an axis of an output of this shape, such as "NTD", where `sizes` of samples went in.

        Raises:
            UserError: what it is not certain of.
        """
        if self.told is not None:
            if len(self.told) != len(shape) or not self._may_be(shape[self.told.index("N")], sizes):
                raise self._refused(shape, sizes, f"which is not {self.told}: change layout")
            return self.told
        layout = (self._sequence if len(shape) == 3 and not self.channels_first else self._placed)(shape, sizes)
        if layout != self.found.setdefault(len(shape), layout):
            raise self._refused(shape, sizes, f"{self.found[len(shape)]} before and {layout} now")
        return layout

    def _may_be(self, samples: int, sizes: BatchSizes) -> bool:
        return not sizes.first or samples in sizes.first | sizes.second

    def _sequence(self, shape: tuple[int, ...], sizes: BatchSizes) -> str:
        if self.tokens_first is not None:
            if not self._may_be(shape[int(self.tokens_first)], sizes):
                raise self._refused(shape, sizes, "whose samples no axis has")
            return "TND" if self.tokens_first else "NTD"
        known = self.found.get(3, "NTD" if self.samples_first else "")
        fits = [axis for axis in (0, 1) if shape[axis] in sizes.first]
        if not sizes.first or (len(fits) == 2 and shape[0] > 1 and not known):
            raise self._refused(shape, sizes, "which may have samples or tokens first")
        if not fits:
            raise self._refused(shape, sizes, "whose samples no axis has")
        if fits == [1] and known != "TND" and shape[0] % shape[1] == 0:
            raise self._refused(shape, sizes, "which may have tokens first, or several windows or frames a sample")
        if fits == [1] or (len(fits) == 2 and known == "TND"):
            return "TND"
        channels = shape[1] in self.widths
        certain = self.convolves or self.recurs or self.of_library or not channels  # linear maps of one's own may turn
        if not certain and shape[2] not in self.widths:
            raise self._refused(shape, sizes, "whose width may be the second axis or the last")
        if not self.convolves or channels != (shape[2] in self.widths):
            return "NDT" if self.convolves and channels else "NTD"
        if known != "TND" and (3 in self.found or (self.of_library and not self.only_convolves)):
            return known or "NTD"
        raise self._refused(shape, sizes, "whose width may be the second axis or the last")

    def _placed(self, shape: tuple[int, ...], sizes: BatchSizes) -> str:
        if len(shape) == 2 and self.tokens_first is not None:
            raise self._refused(shape, sizes, "tokens of one sample, or of all: give the model a batch")
        if sizes.first and shape[0] not in sizes.first:
            raise self._refused(shape, sizes, "whose samples the first axis does not have")
        if len(shape) == 2:
            return "ND"
        positions = "ABCSTHW"[2 - len(shape) :]
        first, last = f"ND{positions}", f"N{positions}D"
        if not sizes.first:
            raise self._refused(shape, sizes, "whose first axis may be windows or frames as well")
        if self.channels_first:
            return first
        # where parts are concatenated, C is among no widths, and W may be by chance: then a square map, H = W, tells
        known, square = [shape[axis] in self.widths for axis in (1, -1)], shape[-2] == shape[-1]
        if known == [False, True] and not square:
            return last
        if known == [True, False] and self.only_convolves:
            return first
        convolved = known[0] == known[1] and self.only_convolves and not self.channels_last
        if (known == [True, False] or convolved) and (square or shape[-3] != shape[-2]):
            return first
        if self.channels_last:
            return last
        if len(shape) in self.found:
            return self.found[len(shape)]
        raise self._refused(shape, sizes, "whose width may be the second axis or the last")

    def _refused(self, shape: tuple[int, ...], sizes: BatchSizes, why: str) -> UserError:
        return UserError(
            f"{self.name} puts out {shape} for {sizes} samples, {why}. Set layout to a letter for each axis, such as "
            "NTD, TND, NHWD or NDHW, or pool to a function that gives (N, D), or choose other layers."
        )


def _lists(given: Any) -> Iterator[list[Any]]:
    """Lists of a sample each, as detectors take them."""
    if isinstance(given, list):
        yield given
    elif isinstance(given, Mapping | tuple):
        for part in given.values() if isinstance(given, Mapping) else given:
            yield from _lists(part)
