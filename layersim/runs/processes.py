"""All processes of a run end where one does, and begin only where they have alike what they must: the callback for any
Trainer, and what the command adds to it."""

import contextlib
import hashlib
import os
import secrets
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from multiprocessing.connection import Client, Listener
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

import layersim
from layersim.errors import UserError
from layersim.report.configuration import flat
from layersim.report.environment import environment
from layersim.runs.process_watch import GRACE, PARENT, Watch

_TRAINER = (
    *("max_epochs", "max_steps", "accumulate_grad_batches", "precision", "gradient_clip_val", "val_check_interval"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
)
_DATA = ("batch_size", "eval_batch_size", "drop_last", "seed", "shuffle_buffer")
_SAMPLES = 3  # of a split that are looked into

Facts = Mapping[str, str]
"""By name, what a process has, in a word that can be shown, or as a digest."""


class ProcessWatch(Callback):
    """Ends all processes of a run within seconds where one dies, stops or raises, and names it. When they meet, those
    that differ in packages, code, options or data are refused. One of the defaults;
    `--trainer.callbacks+=layersim.runs.processes.ProcessWatch --trainer.callbacks.limit=60` gives it another limit.

    Args:
        limit: seconds after which a process that gives no sign of life, or that keeps all others waiting and does not
            compute, counts as stopped. Work that rank 0 does alone may take longer.
    """

    def __init__(self, limit: float = 20.0) -> None:
        if limit < 2:
            raise UserError(f"Expected a limit of at least 2 seconds, but got {limit}. Change ProcessWatch's limit.")
        self.limit = limit
        self.watch: Watch | None = None
        self._by_command = False

    def watching(self, children: dict[int, Popen[bytes]] | None = None, *, by_command: bool = True) -> Watch:
        """A thread that watches this process's children and parent; the other processes once there is a group."""
        self.watch, self._by_command = Watch(rank_zero_only.rank or 0, self.limit, children), by_command  # type: ignore[attr-defined]
        self.watch.start()
        return self.watch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not dist.is_initialized():
            return
        watch = self.watch if self.watch and self._by_command else self.watching(by_command=False)
        group, world, host = dist.distributed_c10d._get_default_group(), trainer.world_size, socket.gethostname()
        watch.rank = trainer.global_rank
        known = {trainer.global_rank: (host, facts(trainer, pl_module))}
        if trainer.is_global_zero:
            key = secrets.token_bytes(16)
            with Listener(("", 0), backlog=world, authkey=key) as listener:
                trainer.strategy.broadcast((listener.address[1], key, os.getpid(), host))
                accepted = [listener.accept() for _ in range(world - 1)]
            told = [connection.recv() for connection in accepted]
            peers = {rank: connection for connection, (rank, *_) in zip(accepted, told, strict=True)}
            pids = {rank: pid for rank, pid, where, _ in told if where == host}
            known |= {rank: (where, others) for rank, _, where, others in told}
        else:
            address: Any = trainer.strategy.broadcast(None)
            port, key, pid, where = address
            peers = {0: Client((os.environ["MASTER_ADDR"], port), authkey=key)}
            peers[0].send((trainer.global_rank, os.getpid(), *known[trainer.global_rank]))
            pids = {0: pid} if where == host else {}
        watch.connect(peers, pids, group._get_sequence_number_for_group)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            require_agreement(known)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.watch is not None and not self._by_command:
            self.watch.failed(exception) if isinstance(exception, Exception) else self.watch.leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.watch is not None and not self._by_command:
            self.watch.finish()


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's, without its observer, which kills all processes, the first too, where one ends."""

    def __init__(self, lightning: _SubprocessScriptLauncher, process_watch: ProcessWatch) -> None:
        super().__init__(lightning.cluster_environment, lightning.num_processes, lightning.num_nodes)
        self.process_watch = process_watch

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        first = environment.node_rank() * self.num_processes + 1
        self.process_watch.watching(dict(enumerate(self.procs, first)))
        return function(*args, **kwargs)


@contextlib.contextmanager
def ending_together(trainer: Trainer) -> Iterator[None]:
    """Around a verb of the command: where another process fails this one exits, quietly, with that one's status."""
    call = next((call for call in trainer.callbacks if isinstance(call, ProcessWatch)), None)  # type: ignore[attr-defined]
    launcher = trainer.strategy.launcher
    if call is None or not isinstance(launcher, _SubprocessScriptLauncher) or trainer.world_size == 1:
        yield
        return
    trainer.strategy._launcher = _Launcher(launcher, call)
    try:
        yield
    except Exception as error:
        if (watch := call.watch) is None:
            raise
        end = watch.failed(error)
        error.add_note(f"(raised by rank {watch.rank} of {trainer.world_size}; the others end with it)")
        watch.end_children(GRACE if watch.connected else 0)
        if watch.rank and watch.connected:  # nothing is left to be done here, where a broken group may hang at exit
            if os.environ.get("LAYERSIM_DEBUG") or (end.rank == watch.rank and end.status != 2):  # else rank 0 tells it
                traceback.print_exception(error)
            sys.stdout.flush()
            os._exit(end.status)
        if end.rank != watch.rank:
            sys.exit(end.status)
        if isinstance(error, UserError):
            raise UserError(f"rank {watch.rank}: {error}") from error
        raise
    except BaseException:  # this process is told to stop, and whoever does that tells the others
        if call.watch is not None:
            call.watch.leave()
            call.watch.end_children(GRACE)
        raise
    if call.watch is not None and (late := call.watch.finish()):
        sys.exit(late.status)


def facts(trainer: Trainer, module: LightningModule) -> dict[str, str]:
    """What this process trains with: packages, code, seed, options, data; no path, as each machine may have its own."""
    found = {f"package {name}": version for name, version in environment().items() if name != "system"}
    found["code of layersim"] = _code()
    found["--seed_everything"] = os.environ.get("PL_GLOBAL_SEED", "none")
    found |= {f"--trainer.{name}": str(getattr(trainer, name)) for name in _TRAINER}
    options = {name: value for name, value in flat(dict(module.hparams)).items() if not name.startswith("backbone.")}
    found |= {f"--model.{name}": str(value) for name, value in options.items() if os.sep not in str(value)}
    found["model"] = _digest(f"{name}{tuple(value.shape)}" for name, value in module.state_dict().items())
    data = getattr(trainer, "datamodule", None)
    found |= {f"--data.{name}": str(getattr(data, name)) for name in _DATA if hasattr(data, name)}
    for role, split in getattr(data, "splits", {}).items():
        found[f"number of {role} samples"] = str(len(split))
        found[f"{role} data"] = _digest(_contents(split))
    if (stream := getattr(data, "stream", None)) is not None:
        found["number of files of the stream"] = str(stream.rows.num_shards)
        found["train data"] = _digest(_whole(stream.first()))
    return found


def require_agreement(told: Mapping[int, tuple[str, Facts]]) -> None:
    """Raises a UserError that names the first process which differs from rank 0, by rank, machine and facts, and in
    what."""
    host, first = told[0]
    for rank, (where, other) in sorted(told.items()):
        for name in {**first, **other}:
            ours, theirs = first.get(name, "none"), other.get(name, "none")
            if ours != theirs:
                raise UserError(
                    f"the processes of a run must be alike, but rank {rank} on {where} has another {name} than rank 0 "
                    f"on {host}: {theirs}, and {ours}. Install, copy or set it alike on both machines"
                )


@cache
def _code() -> str:
    packages = [layersim, *filter(None, [sys.modules.get("callbacks")])]
    files = (path for package in packages for path in Path(str(package.__file__)).parent.rglob("*.py"))
    return _digest(path.name.encode() + path.read_bytes() for path in sorted(files))


def _contents(split: Any) -> Iterable[bytes | str]:
    """What tells a split from another: its samples' numbers and labels, and a few of them whole."""
    for numbers in (split.index, split.labels):
        yield b"" if numbers is None else np.ascontiguousarray(numbers).tobytes()
    for place in np.linspace(0, len(split) - 1, min(_SAMPLES, len(split)), dtype=int):
        yield from _whole(split[int(place)])


def _whole(sample: Mapping[str, Any]) -> Iterator[bytes | str]:
    for name, value in sorted(sample.items()):
        yield name
        yield value.numpy().tobytes() if isinstance(value, Tensor) else np.asarray(value).tobytes()


def _digest(parts: Iterable[bytes | str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:12]
