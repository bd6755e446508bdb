"""One of two processes: trains every case on a sharded model. `python -m tests.sharding DIRECTORY`, told its rank by
LOCAL_RANK, as Lightning's own launcher tells it."""

import os
import sys
import warnings
from pathlib import Path

import torch

from layersim.commands.console import quiet
from tests.sharding.cases import CASES, train

if __name__ == "__main__":
    home = Path(sys.argv[1])
    warnings.simplefilter("error")
    quiet()
    for name, case in CASES.items():
        found = train(case, home / name, 2)
        if os.environ["LOCAL_RANK"] == "0":
            torch.save(found, home / f"{name}.pt")
