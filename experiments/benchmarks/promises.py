"""How long promises last: 200 streams of digits, which go on as noise, blur or rotation at five strengths.

    python experiments/benchmarks/promises.py --run RUN [--streams 200] [--risk 0.05] [--risk_of error]

RUN is a classifier's of images whose validation split was not trained on, such as that of

    layersim fit --config recipe:digits/aligned --data.val_fraction=0.4

Its validation images, as they are and under each shift, are the worlds that samples are drawn from, independently and
with replacement, so that the truth is known. For each stream 1000 samples are drawn and exits calibrated on them, with
a reference for the alarm; then come 1000 samples as they are, and 500 of a shifted world. *Risk* is the shifted world's
at the calibrated threshold, mean over the streams; *broken* the share of streams where it exceeds the target. An alarm
watches labels, confidences or both; told are the share of streams in which it sounds within the 500 samples, the median
of how many it took, and *until then*: the mean loss of the shifted samples that were answered before the alarm, with
both tests. False alarms are counted on streams of 20 000 samples as they are. Targets
promised at once, and promises for new data by weights, are simulated in `tests/exits`. About 8 minutes on one busy
core, without the training.
"""

import argparse
import warnings
from dataclasses import dataclass

import torch
from rounds import machine, table
from torch import Tensor

from layersim.commands.transfer import STRENGTHS
from layersim.exits import (
    Alarm,
    Confidence,
    ExitTable,
    Reference,
    Risk,
    calibrate,
    exit_layer,
    exit_table,
    join_tables,
    reference_of,
)
from layersim.exits.reference import doubts
from layersim.exits.table import at_exits, drops
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures
from layersim.runs.models import make_data, open_module, read_source
from layersim.transfer.shifts import SHIFTS

CALIBRATION, BEFORE, AFTER, LONG = 1000, 1000, 500, 20_000
WATCHED = ("labels", "confidences", "both")


@torch.inference_mode()
def worlds(module: LayerwiseModule, split: torch.utils.data.Dataset[dict[str, Tensor]]) -> dict[str, ExitTable]:
    """The table of all images as they are, and under each shift."""
    samples = torch.utils.data.default_collate([split[place] for place in range(len(split))])  # type: ignore[arg-type]
    images, labels = samples["image"], samples["label"]
    shown = {"as they are": images}
    for kind, strengths in STRENGTHS.items():
        shown |= {f"{kind} {by:g}": SHIFTS[kind](images, by, samples["index"]) for by in strengths}
    module.eval()
    return {
        name: join_tables(
            [
                exit_table(module.head, LayerFeatures(module.backbone({"image": some}).values, true), Confidence())
                for some, true in zip(images.split(256), labels.split(256), strict=True)
            ]
        )
        for name, images in shown.items()
    }


@dataclass
class Stream:
    """What was calibrated for one stream."""

    threshold: float | None
    reference: Reference
    draw: torch.Generator


def calibrated(world: ExitTable, thresholds: list[float], classes: int, target: float, risk: Risk, seed: int) -> Stream:
    draw = torch.Generator().manual_seed(seed)
    own = world.select(torch.randint(len(world.targets), (CALIBRATION,), generator=draw))
    threshold = calibrate(own, Confidence(), thresholds, target=target, risk=risk, seed=seed).threshold
    return Stream(threshold, reference_of(own, Confidence(), threshold, classes), draw)


@dataclass
class Seen:
    """What all samples of a world tell at a threshold."""

    losses: Tensor
    doubt: Tensor
    depth: Tensor


def seen(world: ExitTable, threshold: float | None, classes: int, risk: Risk) -> Seen:
    exits = exit_layer(world.scores, threshold)
    doubt = doubts(Confidence(), world.scores, classes, len(world.scores))
    return Seen(at_exits(drops(world, risk), exits), doubt[0], exits + at_exits(doubt, exits))


def sounds(what: str, stream: Stream, target: float, risk: Risk, parts: list[tuple[Seen, Tensor]]) -> int | None:
    """At which sample of a stream; of both tests, each with half of the probability, the sooner one."""
    heard, confidence = [], 0.975 if what == "both" else 0.95
    if what != "confidences":
        watch = Alarm(target=target, risk=risk, confidence=confidence)
        for world, rows in parts:
            watch.report(world.losses[rows])
        heard.append(watch.sounded_at)
    if what != "labels":
        watch = Alarm(reference=stream.reference, confidence=confidence)
        for world, rows in parts:
            watch.observe(world.doubt[rows], world.depth[rows])
        heard.append(watch.sounded_at)
    return min((at for at in heard if at is not None), default=None)


def main(run: str, streams: int, target: float, risk: Risk) -> None:
    source = read_source(run)
    assert source.data is not None
    data, module = make_data(source.data), open_module(source, device="cpu")
    data.setup()
    data.adapt(module.backbone)
    classes, layers = module.backbone.num_classes, module.num_layers
    all_worlds = worlds(module, data.evaluation_split("val"))
    plain = all_worlds["as they are"]
    thresholds = Confidence().thresholds(classes, layers)
    made = [calibrated(plain, thresholds, classes, target, risk, seed) for seed in range(streams)]
    known = [seen(plain, stream.threshold, classes, risk) for stream in made]
    gains = [layers / (1 + exit_layer(plain.scores, stream.threshold).double().mean().item()) for stream in made]

    def rows(stream: Stream, samples: int) -> Tensor:
        return torch.randint(len(plain.targets), (samples,), generator=stream.draw)

    false = dict.fromkeys(WATCHED, 0)
    for stream, here in zip(made, known, strict=True):
        quiet = rows(stream, LONG)
        for what in WATCHED:
            false[what] += sounds(what, stream, target, risk, [(here, quiet)]) is not None
    print(
        f"{machine()}. {len(plain.targets)} images, {streams} streams, {risk} ≤ {target:g}, confidence 0.95, gain in "
        f"layers {sum(gains) / streams:.2f}; promise broken in {sum((k.losses.mean() > target).item() for k in known)} "
        f"streams as they are. False alarms within {LONG} samples: "
        f"{', '.join(f'{what} {count}' for what, count in false.items())}.\n"
    )
    lines = []
    for name, world in all_worlds.items():
        there = [seen(world, stream.threshold, classes, risk) for stream in made]
        risks = torch.stack([each.losses.mean() for each in there])
        delays: dict[str, list[int | None]] = {what: [] for what in WATCHED}
        lost, answered = 0.0, 0
        for stream, here, shifted in zip(made, known, there, strict=True):
            before, after = rows(stream, BEFORE), rows(stream, AFTER)
            for what in WATCHED:
                at = sounds(what, stream, target, risk, [(here, before), (shifted, after)])
                delays[what].append(None if at is None else at - BEFORE)
            last = delays["both"][-1]
            losses = shifted.losses[after][: None if last is None else max(0, last)]
            lost, answered = lost + losses.sum().item(), answered + len(losses)
        cells = [name, f"{risks.mean():.3f}", f"{(risks > target).double().mean():.2f}"]
        for what in WATCHED:
            heard = sorted(delay for delay in delays[what] if delay is not None)
            middle = f" ({heard[len(heard) // 2]})" if 2 * len(heard) > streams else ""
            cells.append(f"{len(heard) / streams:.2f}{middle}")
        lines.append([*cells, f"{lost / max(1, answered):.3f}"])
    print(table(["world", "risk", "broken", *WATCHED, "until then"], lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--risk", type=float, default=0.05)
    parser.add_argument("--risk_of", default="error")
    given = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # of alarms that sound
    main(given.run, given.streams, given.risk, given.risk_of)
