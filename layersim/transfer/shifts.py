"""Images that differ from those a model was trained on, in three ways and several strengths.

Shifts act on images as the model reads them: normalised, float, (N, C, H, W). Letters: L layers, N samples.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torchvision.transforms import v2

from layersim.data import SplitDataModule
from layersim.data.splits import Sample, seeded
from layersim.errors import UserError
from layersim.evaluation import evaluate
from layersim.metrics import LayerAccuracy
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput

Shift = Callable[[Tensor, float, Tensor], Tensor]
"""Images, strength and the samples' indices → images."""


def rotate(images: Tensor, degrees: float, index: Tensor) -> Tensor:
    """Turned counter-clockwise about the centre, bilinear; corners get the mean colour, 0 in normalised images."""
    return v2.functional.rotate(images, degrees, v2.InterpolationMode.BILINEAR, fill=0.0)


def noise(images: Tensor, deviation: float, index: Tensor, *, seed: int = 0) -> Tensor:
    """Normal noise on every pixel. A sample's draw depends on the seed and its index alone: it is the same in any
    batch and, but for its scale, at any strength."""
    draws = []
    for number in index.tolist():
        with seeded(seed, number):
            draws.append(torch.randn(images.shape[1:]))
    return images + deviation * torch.stack(draws).to(images)


def blur(images: Tensor, share: float, index: Tensor) -> Tensor:
    """A Gaussian of σ = share × width, cut at 3σ; images are mirrored at their edges."""
    sigma = share * images.shape[-1]
    size = 2 * math.ceil(3 * sigma) + 1
    return v2.functional.gaussian_blur(images, [size, size], [sigma, sigma])


SHIFTS: dict[str, Shift] = {"rotation": rotate, "noise": noise, "blur": blur}


def check_strengths(strengths: Mapping[str, Sequence[float]], size: tuple[int, int, int] | None) -> None:
    """Refuses what no shift can do.

    Args:
        strengths: by the shift's name.
        size: (channels, height, width) of the images; None if any will do.

    Raises:
        UserError: no such shift; strengths that are no list; one that is not finite or below 0, or a blur of 0, or
            wider than the images.
    """
    if unknown := strengths.keys() - SHIFTS:
        raise UserError(f"There is no shift {', '.join(sorted(unknown))}. Choose from {', '.join(SHIFTS)}.")
    for kind, several in strengths.items():
        if not isinstance(several, Iterable):
            raise UserError(f"--strengths.{kind}: expected a list of numbers, got {several}.")
        for strength in several:
            if not math.isfinite(strength) or strength < 0 or (kind == "blur" and strength == 0):
                raise UserError(
                    f"--strengths.{kind}: expected finite numbers of 0 or more (blur: above 0), got {strength}."
                )
    if size is None:
        return
    _, height, width = size
    for share in strengths.get("blur", []):
        if (reach := math.ceil(3 * share * width)) >= min(height, width):
            raise UserError(
                f"--strengths.blur: {share:g} of the width reaches {reach} pixels to each side, further than images of "
                f"{height} × {width} can be mirrored. Choose a smaller one."
            )


def shifted_accuracies(
    module: LayerwiseModule,
    data: SplitDataModule,
    split: str,
    strengths: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
) -> tuple[list[float], dict[str, list[dict[str, Any]]]]:
    """The accuracy of the module's own head at every layer, on a split of images as they are and under each shift.

    Args:
        module: a classifier of images, on its device.
        data: set up, and fitted to the module's backbone.
        split: such as `val`.
        strengths: by the shift's name: rotation in degrees; noise in standard deviations of the pixels; blur's σ as a
            share of the image's width.
        seed: of the noise.

    Returns:
        (L,) accuracies on images as they are, and by shift a `strength` and (L,) `accuracy` each.
    """
    shifts: dict[str, Shift] = {**SHIFTS, "noise": partial(noise, seed=seed)}
    wanted = [(kind, strength) for kind, several in strengths.items() for strength in several]
    read = partial(_under_shifts, module, [(shifts[kind], strength) for kind, strength in wanted])
    loader = torch.utils.data.DataLoader[Sample](
        data.splits[split], batch_size=data.eval_batch_size, num_workers=data.num_workers, collate_fn=data.collate
    )
    batches: Any = track(loader, description="Shifting images")
    (accuracies,) = evaluate(module, batches, LayerAccuracy((1 + len(wanted)) * module.num_layers), read=read)
    plain, *under = accuracies.view(-1, module.num_layers).tolist()
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in strengths}
    for (kind, strength), accuracy in zip(wanted, under, strict=True):
        found[kind].append({"strength": float(strength), "accuracy": accuracy})
    return plain, found


def _under_shifts(
    module: LayerwiseModule, shifts: Sequence[tuple[Shift, float]], batch: Mapping[str, Any]
) -> LayerOutput:
    """What the module reads of a batch as it is and under S shifts, as if these were one model of (1 + S) L layers."""
    plain: LayerOutput = module(batch)
    shown = [shift(batch["image"], strength, batch["index"]) for shift, strength in shifts]
    under = [module({**batch, "image": images}).readout.predictions for images in shown]
    readout = replace(plain.readout, predictions=torch.cat([plain.readout.predictions, *under]))
    return replace(plain, readout=readout)
