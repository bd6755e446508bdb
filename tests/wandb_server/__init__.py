"""A stand-in for the W&B server, on loopback: real clients talk to it, tests read what arrived."""

from tests.wandb_server.server import KEY, WandbServer
from tests.wandb_server.store import Run, Store, Sweep

__all__ = ["KEY", "Run", "Store", "Sweep", "WandbServer"]
