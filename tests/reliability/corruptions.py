"""Checkpoints that are damaged: is any damage taken for weights?"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from layersim.errors import UserError
from layersim.runs.checkpoints import read_checkpoint
from layersim.runs.resume import find_run
from layersim.runs.whole_checkpoints import WholeCheckpoints
from tests.reliability.children import Child, command
from tests.reliability.tally import Tally
from tests.tiny import FLAGS

COUNT = 2000
INJECTED = (
    "A checkpoint of a real training damaged in one of eight ways: a bit flipped, a byte or a block overwritten, a "
    "block of zeros (what a power cut leaves), cut short, a piece missing, two blocks exchanged, another file's end. "
    "Read by `--ckpt_path` it has to be refused in a line; `--resume` has to take the one before it. Every 50th goes "
    "through the command as well."
)
EVERY_COMMAND = 50


def run(count: int, seed: int, folder: Path) -> Tally:
    """Damages a checkpoint so many times."""
    tally, generator = Tally(), random.Random(seed)
    root = folder / "runs"
    trained = Child(folder / "trained", command, ["fit", *FLAGS, f"--trainer.default_root_dir={root}"])
    assert trained.wait() == 0, trained.said
    (whole,) = root.glob("*/*/checkpoints/last.ckpt")
    run_directory, before = whole.parent.parent, whole.with_name("before.ckpt")
    shutil.copy(whole, before)
    for other in {*whole.parent.iterdir()} - {whole, before}:
        other.unlink()
    content = whole.read_bytes()
    expected = torch.load(before, weights_only=True)["state_dict"]
    for number in range(count):
        how = generator.choice([*DAMAGES])
        damaged = DAMAGES[how](content, generator)
        if damaged == content:  # as where a byte is overwritten by itself
            tally.outcomes["the same bytes by chance"] += 1
            continue
        whole.write_bytes(damaged)
        if (said := _read(whole, run_directory, before)) is None and number % EVERY_COMMAND == 0:
            said = _command(folder / f"said-{number}", whole, root)
        if said is None:
            tally.outcomes[f"{how}: refused, and the one before it taken"] += 1
        else:
            tally.lost.append(f"{how} (number {number}): {said}")
    read = read_checkpoint(before)["state_dict"]
    assert all(torch.equal(read[name], expected[name]) for name in expected), "the control: an undamaged one is read"
    return tally


def _read(damaged: Path, run_directory: Path, before: Path) -> str | None:
    """What went wrong where a damaged checkpoint is read in this process; None: all is as it should be."""
    for read in (read_checkpoint, WholeCheckpoints().load_checkpoint):
        try:
            read(damaged)
        except UserError as error:
            if str(before) not in str(error):
                return f"the whole one is not named: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        else:
            return f"{read.__qualname__} took it"
    _, found = find_run(run_directory, last=False)
    return None if found == before else f"--resume took {found}"


def _command(output: Path, damaged: Path, root: Path) -> str | None:
    words = ["validate", f"--ckpt_path={damaged}", f"--trainer.default_root_dir={root}", "--trainer.logger=false"]
    child = Child(output, command, words)
    status = child.wait()
    if status != 2 or "Traceback" in child.said or "layersim: error: " not in child.said:
        return f"validate ended with {status}: {child.said[-300:]!r}"
    return None


def _flip(content: bytes, generator: random.Random) -> bytes:
    bit = generator.randrange(8 * len(content))
    return _over(content, bit // 8, bytes([content[bit // 8] ^ (1 << bit % 8)]))


def _over(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def _block(content: bytes, generator: random.Random) -> tuple[int, int]:
    """Where a block begins, and its length."""
    length = generator.choice([16, 512, 4096])
    return generator.randrange(len(content) - length), length


def _random_block(content: bytes, generator: random.Random) -> bytes:
    at, length = _block(content, generator)
    return _over(content, at, generator.randbytes(length))


def _zeros(content: bytes, generator: random.Random) -> bytes:
    at, length = _block(content, generator)
    return _over(content, at, bytes(length))


def _missing(content: bytes, generator: random.Random) -> bytes:
    at, length = _block(content, generator)
    return content[:at] + content[at + length :]


def _exchanged(content: bytes, generator: random.Random) -> bytes:
    length = generator.choice([16, 512, 4096])
    one, other = sorted(generator.sample(range(len(content) // length), 2))
    first, second = (content[place * length : (place + 1) * length] for place in (one, other))
    return _over(_over(content, one * length, second), other * length, first)


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit flipped": _flip,
    "a byte overwritten": lambda content, draw: _over(content, draw.randrange(len(content)), draw.randbytes(1)),
    "a block overwritten": _random_block,
    "a block of zeros": _zeros,
    "cut short": lambda content, draw: content[: draw.randrange(len(content))],
    "a piece missing": _missing,
    "two blocks exchanged": _exchanged,
    "another file's end": lambda content, draw: content[: -(cut := draw.randrange(1, 4096))] + draw.randbytes(cut),
}
