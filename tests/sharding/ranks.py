"""What each of two processes does: it trains every case on a sharded model, told its rank by LOCAL_RANK, as Lightning's
own launcher tells it."""

import json
import os
import warnings
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from layersim.backbones import TransformersBackbone
from layersim.commands.console import quiet
from layersim.errors import UserError
from layersim.module import LayerwiseModule
from layersim.sharding import shard
from tests import tiny
from tests.reliability.children import command
from tests.sharding.cases import CASES, RESUMED, adam, build, go_on, train


def keep(found: dict[str, Any], path: Path) -> None:
    if os.environ["LOCAL_RANK"] == "0":
        torch.save(found, path)


def loaded(folder: Path) -> dict[str, int]:
    """How many weights of a stock model lie in its file on the disk, and not in memory, before it is sharded and after;
    and how many this process then holds of how many."""
    if os.environ["LOCAL_RANK"] == "0":
        build(CASES["Llama, untied, alternating"], adam()).backbone.model.save_pretrained(folder)
    distributed.barrier()
    backbone = TransformersBackbone(str(folder), task="language-modeling")
    module = LayerwiseModule(backbone)
    file = str(folder / "model.safetensors")
    maps = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if file in line]
    places = [range(int(start, 16), int(end, 16)) for start, end in maps]
    mapped = sum(each.numel() for each in module.parameters() if any(each.data_ptr() in place for place in places))
    shard(module, init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))
    held = [each.to_local().numel() for each in module.parameters() if isinstance(each, DTensor)]
    return {
        "mapped": mapped,
        "held": sum(held),
        "all": sum(each.numel() for each in module.parameters()),
        "left": int(file in Path("/proc/self/maps").read_text()),
    }


def train_all(home: Path) -> None:
    """Every case, into a folder."""
    warnings.simplefilter("error")
    # a run that goes on is kept elsewhere, as it is compared
    warnings.filterwarnings("ignore", "The dirpath has changed")
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
    (home / f"memory_{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(loaded(home / "stock")))
    try:
        shard(build(CASES["ViT"], adam()), init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "other")))
    except UserError as error:
        (home / "refused.txt").write_text(str(error))
    warnings.simplefilter("default")  # of what the command's libraries say at every start
    few = ["--data.max_train_samples=60", "--data.max_eval_samples=50", "--data.eval_batch_size=20"]
    lightnings = "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy"
    kept = f"--trainer.default_root_dir={home / 'command'}"
    command(["fit", *tiny.FLAGS, *few, "--trainer.devices=2", lightnings, kept])
