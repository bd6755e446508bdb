"""The command in processes of its own, for tests of what one process and several find."""

import socket
from pathlib import Path
from typing import Any

from layersim.__main__ import main
from tests.measured import measured
from tests.reliability.children import Child, command

PATIENCE = 3600
"""Seconds that a process of its own may take: no test fails because the machine does much else."""


def run_command(verb: str, processes: int, root: Path, *flags: str, strategy: str = "strategy=ddp") -> Path:
    """Runs `layersim VERB` on so many processes, its runs kept under a root of its own; gives the run's directory.

    One process is this one: what it imports takes longer than what it does.
    """
    home = root / f"{verb}-{processes}"
    words = [verb, *flags, "--trainer.accelerator=cpu", f"--trainer.default_root_dir={home}"]
    if processes == 1:
        assert main([*words, "--trainer.devices=1"]) == 0
    else:
        for status, said in spread_over(processes, root / f"{verb}-{processes} says", words, strategy):
            assert status == 0, said[-4000:]
    (directory,) = (path for path in home.glob("*/*") if path.is_dir())
    return directory


def spread_over(
    processes: int, folder: Path, words: list[str], strategy: str = "strategy=ddp"
) -> list[tuple[int, str]]:
    """Status and words of so many processes of the command, begun as torchrun begins them; what each says is kept in
    the folder, in a file named after its rank."""
    folder.mkdir(parents=True)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    shared |= {"LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": folder.name}
    ddp = [f"--trainer.devices={processes}", f"--trainer.{strategy}"]
    children = [
        Child(folder / rank, command, [*words, *ddp], environment=shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(processes))
    ]
    return [(child.wait(PATIENCE), child.said) for child in children]


def last_record(directory: Path) -> dict[str, Any]:
    """The last line of a run's `layers.jsonl`."""
    return measured(directory)[-1]
