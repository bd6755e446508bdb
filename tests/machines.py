"""Two machines, imitated: two network namespaces joined by a virtual link, each with a name of its own."""

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.reliability.children import Child, command

CAN = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("ip") is not None
NEEDS = "needs root, and `ip` with network namespaces"
_NEW_NETWORK, _NEW_NAMES = 0x40000000, 0x04000000  # CLONE_NEWNET, CLONE_NEWUTS


class Machine:
    """One of two.

    Args:
        number: 0 or 1.
        pair: tells the pairs of this computer apart.
    """

    def __init__(self, number: int, pair: int) -> None:
        self.number = number
        self.name = f"machine-{number}"
        self.namespace = f"ls{pair}-{number}"
        self.link = f"lsv{pair}-{number}"
        self.address = f"10.77.{pair % 256}.{number + 1}"

    def environment(self, port: int, rank: int, each: int) -> dict[str, str]:
        """What `torchrun` tells a process: two machines with so many processes each."""
        told = {"MASTER_PORT": port, "RANK": self.number * each + rank, "LOCAL_RANK": rank, "GROUP_RANK": self.number}
        told |= {"WORLD_SIZE": 2 * each, "LOCAL_WORLD_SIZE": each}
        said = {name: str(value) for name, value in told.items()}
        said |= {"MASTER_ADDR": self.address.rpartition(".")[0] + ".1", "TORCHELASTIC_RUN_ID": self.namespace}
        return said | {"GLOO_SOCKET_IFNAME": self.link, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    pair = os.getpid() % 10_000
    one, other = machines = Machine(0, pair), Machine(1, pair)

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for machine in machines:
            ip("netns", "add", machine.namespace)
        ip(
            "link",
            "add",
            one.link,
            "netns",
            one.namespace,
            "type",
            "veth",
            "peer",
            other.link,
            "netns",
            other.namespace,
        )
        for machine in machines:
            inside = ("-n", machine.namespace)
            ip(*inside, "addr", "add", f"{machine.address}/24", "dev", machine.link)
            ip(*inside, "link", "set", machine.link, "up")
            ip(*inside, "link", "set", "lo", "up")
        yield machines
    finally:
        for machine in machines:
            subprocess.run(["ip", "netns", "del", machine.namespace], check=False, capture_output=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
    return port


def run_on(
    machines: tuple[Machine, Machine], folder: Path, words: tuple[list[str], list[str]], each: int = 1
) -> list[tuple[int, str]]:
    """Status and words of each process of the command: rank 0 first.

    Args:
        machines: as `two_machines` gives them.
        folder: for what they say.
        words: the verb and its options, of each machine.
        each: processes on each.
    """
    folder.mkdir(parents=True)
    port = free_port()
    spread = [f"--trainer.devices={each}", "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
    children = [
        Child(
            folder / f"{machine.number}-{rank}",
            on_machine,
            machine.namespace,
            machine.name,
            [*said, *spread],
            environment=machine.environment(port, rank, each),
        )
        for machine, said in zip(machines, words, strict=True)
        for rank in range(each)
    ]
    return [(child.wait(), child.said) for child in children]


def on_machine(namespace: str, name: str, words: list[str]) -> None:
    """Moves this process into a machine's network, under its name, and runs the command there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as network:
        moved = libc.setns(network.fileno(), _NEW_NETWORK) == 0 and libc.unshare(_NEW_NAMES) == 0
    if not moved:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    socket.sethostname(name)
    command(words)
