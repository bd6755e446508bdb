"""Disks that are full, may not be written or are gone, at any file and any moment: is it said, and is what stood
before still whole?"""

import atexit
import csv
import errno
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layersim.report.records import read_records
from layersim.runs.whole_checkpoints import is_whole, newest_whole
from tests import tiny
from tests.reliability.children import Child, command
from tests.reliability.tally import AT_ONCE, Tally

COUNT = 500
INJECTED = (
    "Faults of the file system at the n-th opening, making or renaming of a file of one kind, from there on or once: a "
    "full disk, a reached quota, a file system that is read-only, may not be written or breaks (each as an error of "
    "the call); a limit on the size of files, as by `ulimit -f`, which cuts a file anywhere; the run's directory "
    "deleted. In `fit` (checkpoints, records, metrics, configuration, figures, page), `predict`, `export`, `report`. "
    "Looked at: the status, one line and no traceback, what was written before, no half-written file; every third "
    "training that had saved goes on and is compared, to the bit, with one that nothing befell."
)
FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
KINDS = {
    # by verb and kind of file: what their names hold, and how many of them are made, renamed or opened
    ("fit", "checkpoints"): (r"\.ckpt", 12),
    ("fit", "records"): (r"layers\.jsonl", 2),
    ("fit", "metrics"): (r"metrics\.csv", 8),
    ("fit", "configuration"): (r"config\.yaml|environment\.json", 6),
    ("fit", "figures"): (r"\.png|figures$", 20),
    ("fit", "page"): (r"report\.html", 3),
    ("predict", "predictions"): (r"predictions\.parquet", 3),
    ("export", "export"): (r"exported", 6),
    ("report", "page"): (r"report\.html", 3),
}
DISPENSABLE = {("fit", "figures"), ("fit", "page")}


@dataclass(frozen=True)
class Fault:
    """What befalls a command.

    Attributes:
        where: verb and kind of file.
        what: an error's number; or "quota", after `most` bytes of a file; or "deleted".
        nth: at which of the kind's files' openings, makings and renamings, from 1.
        lasts: whether it is so from there on.
    """

    where: tuple[str, str]
    what: int | str
    nth: int
    lasts: bool
    most: int = 0

    def __str__(self) -> str:
        what = errno.errorcode[self.what] if isinstance(self.what, int) else f"{self.what} ({self.most} bytes)"
        return f"{' '.join(self.where)}: {what} at opening {self.nth}{', lasting' if self.lasts else ''}"


def befallen(fault: Fault, home: Path, words: Sequence[str]) -> None:
    """`layersim WORDS` with a fault, for a child."""
    from layersim.__main__ import main

    pattern, seen = re.compile(KINDS[fault.where][0]), 0
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    to_file = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # which no limit of this process's holds for
    assert to_file.stdin is not None
    for stream in (1, 2):
        os.dup2(to_file.stdin.fileno(), stream)
    to_file.stdin.close()

    def strike(event: str, told: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and told[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in ("os.mkdir", "os.rename"):
            return
        if not isinstance(told[0], str | os.PathLike) or not pattern.search(Path(told[0]).name):
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            return
        seen += 1
        due = seen >= fault.nth if fault.lasts else seen == fault.nth
        if fault.what == "quota":
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.most, unlimited[1]) if due else unlimited)
        elif due and fault.what == "deleted":
            shutil.rmtree(home, ignore_errors=True)
        elif due:
            assert isinstance(fault.what, int)
            raise OSError(fault.what, os.strerror(fault.what), told[0])

    sys.addaudithook(strike)
    status = main(words)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    atexit._run_exitfuncs()  # ends the process that draws, which would keep the stream open
    sys.stdout.flush()
    for stream in (1, 2):
        os.close(stream)
    to_file.wait()
    os._exit(status)


def run(count: int, seed: int, folder: Path) -> Tally:
    """Breaks so many commands, one a core."""
    tally, generator = Tally(), random.Random(seed)
    whole = folder / "whole"
    assert Child(folder / "whole.txt", command, fit(whole)).wait() == 0
    (kept,) = whole.glob("default/*")
    faults = [any_fault(generator, number) for number in range(count)]

    def broken(number: int) -> tuple[bool, str]:
        return one(faults[number], folder / str(number), kept, number % 3 == 0)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for fault, (good, what) in zip(faults, pool.map(broken, range(count)), strict=True):
            if good:
                tally.outcomes[what] += 1
            else:
                tally.lost.append(f"{fault}: {what}")
    return tally


def any_fault(generator: random.Random, number: int) -> Fault:
    where = [*KINDS][number % len(KINDS)]
    what = generator.choice([*FAULTS, "quota", "quota", "deleted"])
    if what == "deleted" and where[0] != "fit":
        what = "quota"
    nth = generator.randint(1, KINDS[where][1])
    most = round(10 ** generator.uniform(0, 2 if where[1] == "records" else 4))
    return Fault(where, what, nth, generator.random() < 0.7, most if what == "quota" else 0)


def fit(root: Path) -> list[str]:
    lengths = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2"]
    return ["fit", *tiny.FLAGS, f"--trainer.default_root_dir={root}", "--trainer.log_every_n_steps=1", *lengths]


def one(fault: Fault, folder: Path, whole: Path, goes_on: bool) -> tuple[bool, str]:
    """Breaks one command: whether its end was good, and the end in words."""
    folder.mkdir()
    verb, root, checkpoint = fault.where[0], folder / "runs", whole / "checkpoints/last.ckpt"
    if verb == "report":
        shutil.copytree(whole, root / "default/run")
    words = {
        "fit": fit(root),
        "predict": ["predict", *fit(root)[1:], f"--ckpt_path={checkpoint}"],
        "export": ["export", *tiny.FLAGS, f"--ckpt_path={checkpoint}", f"--to={folder / 'exported'}"],
        "report": ["report", str(root / "default/run")],
    }[verb]
    child = Child(folder / "said.txt", befallen, fault, root, words, where=folder)
    try:
        status = child.wait(240)
    except TimeoutError as error:
        return False, f"hangs: {error}"
    said = child.said
    errors = re.findall(r"^layersim: error: .*", said, re.MULTILINE)
    runs = [*root.glob("*/*")]
    complaints = [
        "a traceback" * ("Traceback" in said),
        f"status {status}, {len(errors)} errors" * ((status, len(errors)) not in ((0, 0), (2, 1))),
        "a half-written file"
        * bool([*folder.rglob(".*.part"), *folder.rglob(".*.partial")] and fault.what != "deleted"),
        *(f"{path.name} is damaged" for path in root.rglob("*.ckpt") if not is_whole(path)),
        *(_damage(run) for run in runs),
    ]
    harmless = status == 0 and (fault.where in DISPENSABLE or _struck_nothing(fault, runs, whole, folder))
    if status == 0 and not harmless:
        complaints.append("success is claimed")
    if fault.where in DISPENSABLE and status and fault.what != "deleted":
        complaints.append(f"status {status} for what is dispensable")
    if verb == "export" and status and (folder / "exported").exists():
        complaints.append("a part of an export")
    if verb == "report" and not (root / "default/run/report.html").read_text().endswith("</html>\n"):
        complaints.append("the page before is gone")
    if complaint := "; ".join(filter(None, complaints)):
        return False, f"{complaint}: {said[-600:]!r}"
    end = "nothing was hit, or only what can be done without: the numbers are those of an unbroken run"
    if status == 0:
        return (not runs or verb != "fit" or alike(runs[0], whole)) or False, end
    if goes_on and verb == "fit" and runs and newest_whole(runs[0] / "checkpoints"):
        again = Child(folder / "again.txt", command, ["fit", f"--resume={runs[0]}"], where=folder)
        if again.wait(240) or not alike(next(path for path in root.glob("*/*") if path != runs[0]), whole):
            return False, f"does not go on as an unbroken one: {again.said[-600:]!r}"
        return True, "one line, status 2; gone on with, bitwise equal"
    return True, "one line, status 2, all that was written before is whole"


def alike(run: Path, whole: Path) -> bool:
    """Whether two runs have come to the same weights, records and rows."""
    ends = [torch.load(each / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for each in (run, whole)]
    same = all(value.equal(ends[0][name]) for name, value in ends[1].items())
    records = [[one.to_line() for one in read_records(each / "layers.jsonl")] for each in (run, whole)]
    rows = [(each / "metrics.csv").read_text() for each in (run, whole)]
    return same and records[0] == records[1] and rows[0] == rows[1]


def _damage(run: Path) -> str:
    """What of a run's tables is cut, in words."""
    for name in ("layers.jsonl", "metrics.csv"):
        if (run / name).exists() and (content := (run / name).read_bytes()) and not content.endswith(b"\n"):
            return f"{name} is cut"
    if (run / "metrics.csv").exists():
        with (run / "metrics.csv").open(newline="") as file:
            if any(not row.get("step") for row in csv.DictReader(file)):
                return "metrics.csv lost a step"
    return ""


def _struck_nothing(fault: Fault, runs: list[Path], whole: Path, folder: Path) -> bool:
    """Whether all is there in spite of a fault, which came too late or left room enough."""
    verb = fault.where[0]
    if verb == "fit":
        files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
        return bool(runs) and files == {path.relative_to(runs[0]) for path in runs[0].rglob("*") if path.is_file()}
    if verb == "export":
        return (folder / "exported/layersim.json").is_file()
    return verb == "report" or bool(runs and (runs[0] / "predictions.parquet").is_file())
