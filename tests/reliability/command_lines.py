"""Command lines at random: each works, or ends with one line of ours."""

import json
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import time
import traceback
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import yaml

from layersim.report.configuration import flat
from layersim.sweep.flags import whole_flag
from tests.reliability.children import Child
from tests.reliability.tally import AT_ONCE, Tally

INJECTED = (
    "One or two options of a small command line that works, of any verb, get values drawn from right, odd and absurd "
    "ones; paths lead to nothing, to folders, to other people's and to damaged files. Lost is a traceback, a status "
    "other than 0 and 2, an error that is not one paragraph, a run directory that nothing was measured in, a file "
    "outside of the run's root, a setting that the run's record tells otherwise, and a line that takes two minutes."
)
COUNT = 5000
PATIENCE = 120
"""Seconds for a line."""
MEMORY = 4 << 30
"""Bytes that a line may ask for beyond what its process has at first."""
OWN_PLACE = (
    "trainer.logger",
    "default_root_dir",
    "experiment",
    "--to",
    "--output",
    "--dry_run",
    "dirpath",
    "save_dir",
    "filename",
    "dump",
)
"""Words of options that say where to write."""


def run(count: int, seed: int, folder: Path) -> Tally:
    child = Child(folder / "crews.log", crews, folder, seed, count, environment={"WANDB_MODE": "offline"})
    assert child.wait(12 * 3600) == 0, child.said[-3000:]
    tally = Tally()
    for line in sorted(folder.glob("crew-*/outcomes.jsonl")):
        for told in map(json.loads, line.read_text().splitlines()):
            if told["lost"]:
                tally.lost.append(f"{told['lost']}: {told['words'][:1500]}")
            else:
                tally.outcomes[told["outcome"]] += 1
    return tally


def crews(folder: Path, seed: int, count: int) -> None:
    """All lines, in crews that are forked from this process with all caches warm."""
    from tests.reliability.words import LINES, make_there, options

    (there := folder / "there").mkdir()
    make_there(there)
    os.chdir(there)
    for _, line in LINES:
        options(tuple(line))
    before, left = _files(there), multiprocessing.Value("i", count)
    started = [
        multiprocessing.Process(target=crew, args=(folder / f"crew-{number}", there, seed, left))
        for number in range(AT_ONCE)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join()
    assert _files(there) == before, "a line wrote into what all lines are given a copy of"
    sys.exit(any(each.exitcode for each in started))


def crew(place: Path, there: Path, seed: int, left: "Synchronized[int]") -> None:
    """Lines of those that are left for all crews, each in a process of its own, forked from this one.

    In one process for all a line would leave its seeds, filters of warnings and environment to the next; a process that
    imports everything takes 10 s.
    """
    from tests.reliability.words import draw_line

    place.mkdir()
    with (place / "outcomes.jsonl").open("w", buffering=1) as outcomes:
        while (number := _next(left)) >= 0:
            words = draw_line(random.Random(f"{seed}-{number}"))
            outcome, lost = _try(words, there, place / "line")
            told = f"layersim {shlex.join(words)}"
            outcomes.write(json.dumps({"words": told, "outcome": outcome, "lost": lost, "number": number}) + "\n")


def _next(left: "Synchronized[int]") -> int:
    with left.get_lock():
        left.value -= 1
        return left.value


def _try(words: list[str], there: Path, place: Path) -> tuple[str, str]:
    """Runs a line in a copy of a folder. Gives what came of it, or what is wrong with that."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(there, place, symlinks=True)
    output = place.with_suffix(".log")
    before = _files(place)
    begun = time.monotonic()
    if not (process := os.fork()):
        _become(words, place, output)
    ended, status = os.waitpid(process, os.WNOHANG)
    while not ended and time.monotonic() < begun + PATIENCE:
        time.sleep(0.005)
        ended, status = os.waitpid(process, os.WNOHANG)
    if not ended:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return "", "hangs"
    said = output.read_text(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    outcome = {0: "done", 2: "refused in one line"}.get(code, f"status {code}")
    return outcome, wrong(words, code, said, place, before)


def _become(words: list[str], place: Path, output: Path) -> None:
    """The forked process runs the line, and ends."""
    status = 70
    try:
        os.setsid()
        os.chdir(place)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))  # Vega's process reserves far more
        sys.argv = ["layersim", *words]
        from layersim.__main__ import main

        status = main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _files(place: Path) -> dict[str, tuple[int, int]]:
    told = {str(path.relative_to(place)): path.lstat() for path in place.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in told.items() if not name.startswith("runs")}


def wrong(words: list[str], code: int, said: str, place: Path, before: dict[str, tuple[int, int]]) -> str:
    """What is wrong with an end; nothing where all is well."""
    if "Traceback (most recent call last)" in said:
        *_, last = [
            line for line in said.strip().splitlines() if re.match(r"[\w.]+(Error|Exception|Warning|Exit)\b", line)
        ] or [said.strip().splitlines()[-1]]
        return f"traceback: {re.sub(r'[0-9]+', '#', last)[:300]}"
    if code not in (0, 2):
        return f"status {code}: {said.strip()[-300:]}"
    errors = said.count("layersim: error: ")
    if code == 2 and errors != 1:
        return f"{errors} errors: {said.strip()[-300:]}"
    if code == 2:
        told = said.partition("layersim: error: ")[2].strip()
        if not told or "\n\n" in told or len(told) > 8000:
            return f"no paragraph: {told[:300]!r}"
    if any(word in given for given in words for word in OWN_PLACE):
        return ""
    runs = [path.parent for path in (place / "runs").rglob("config.yaml") if "there" not in path.parts]
    if code == 2 and (place / "runs").exists():
        kept = [path for path in (place / "runs").rglob("*") if path.suffix in (".jsonl", ".ckpt", ".parquet", ".csv")]
        if not any(path.stat().st_size for path in kept):
            return f"leaves {sorted(map(str, (place / 'runs').rglob('*')))[:3]}"
    after = _files(place)
    changed = [name for name in after if before.get(name) != after[name] and (place / name).is_file()]
    if words[0] not in ("report", "transfer", "compare") and (
        outside := [name for name in changed if name[:3] != "out"]
    ):
        return f"changes {outside[:5]}"
    return _ignored(words, runs) if code == 0 else ""


def _ignored(words: list[str], runs: list[Path]) -> str:
    """A setting that the run's record tells otherwise than it was typed last."""
    for run in runs[:1]:
        recorded: dict[str, Any] = flat(yaml.safe_load((run / "config.yaml").read_text()))
        typed: dict[str, tuple[str, str]] = {}
        for name, _, text in (word.lstrip("-").partition("=") for word in words if "=" in word):
            if (key := whole_flag(name, recorded)) in recorded:
                typed[key] = name, text
        for key, (name, text) in typed.items():
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError:
                continue
            if isinstance(value, int | float) and (name, value) != ("seed_everything", True):  # Lightning draws one
                stands, told = recorded[key], {str(recorded[key]), repr(recorded[key])}
                same = stands in (value, float(value)) or bool(told & {text, str(value), str(float(value))})
                if not same or ("limit_" in name and type(stands) is not type(value)):
                    return f"--{name}={text} stands as {stands!r} in config.yaml"
    return ""
