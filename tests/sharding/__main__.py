"""One of two processes: trains every case on a sharded model. `python -m tests.sharding DIRECTORY`, told its rank by
LOCAL_RANK, as Lightning's own launcher tells it."""

import os
import sys
import warnings
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from layersim.__main__ import main
from layersim.commands.console import quiet
from layersim.errors import UserError
from layersim.sharding import shard
from tests import tiny
from tests.sharding.cases import CASES, RESUMED, adam, build, go_on, train


def keep(found: dict[str, Any], path: Path) -> None:
    if os.environ["LOCAL_RANK"] == "0":
        torch.save(found, path)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", "The dirpath has changed"
    )  # a run that goes on is kept elsewhere, as it is compared
    quiet()
    for name, case in CASES.items():
        keep(train(case, home / "two" / name, 2), home / f"{name}.pt")
    for name, case in RESUMED.items():
        runs = {kind: home / kind / name for kind in ("file", "folder", "alone")}
        for kind in ("file", "folder"):
            train(case, runs[kind], 2, folder=kind == "folder", optimizer=adam())
        while not (runs["alone"] / "end.ckpt").exists():  # of the one process, which works meanwhile
            sleep(0.01)
        for kind, run in runs.items():
            found = go_on(case, run.with_name(f"{name}, on"), 2, run / "end.ckpt", folder=kind == "folder")
            keep(found, home / f"{name}, {kind}.pt")
    try:
        shard(build(CASES["ViT"], adam()), init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "other")))
    except UserError as error:
        (home / "refused.txt").write_text(str(error))
    warnings.simplefilter("default")  # of what the command's libraries say at every start
    few = ["--data.max_train_samples=60", "--data.max_eval_samples=50", "--data.eval_batch_size=20"]
    lightnings = "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy"
    sys.exit(
        main(
            [
                "fit",
                *tiny.FLAGS,
                *few,
                "--trainer.devices=2",
                lightnings,
                f"--trainer.default_root_dir={home / 'command'}",
            ]
        )
    )
