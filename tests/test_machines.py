"""Two machines, one or two processes each, against one process: the same numbers, over a network between them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from layersim.__main__ import main
from layersim.report.records import read_records
from tests import tiny
from tests.machines import CAN, NEEDS, Machine, free_port, on_machine, run_on, two_machines
from tests.processes import PATIENCE
from tests.reliability.children import Child

pytestmark = [
    pytest.mark.skipif(not CAN, reason=NEEDS),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # a resumed run has a directory of its own
]
Pair = tuple[Machine, Machine]


@pytest.fixture(scope="module")
def machines() -> Iterator[Pair]:
    with two_machines() as pair:
        yield pair


def fit(root: Path, batch: int, *more: str) -> list[str]:
    """Two epochs by plain SGD, whose steps are its gradients; 151 validation samples, which nothing divides."""
    options = ["--model.optimizer=SGD", "--model.optimizer.lr=0.05", f"--data.batch_size={batch}"]
    options += ["--trainer.max_epochs=2", "--trainer.limit_train_batches=6", "--data.max_eval_samples=151"]
    return ["fit", *tiny.FLAGS, *options, f"--trainer.default_root_dir={root}", *more]


def only(root: Path, *others: Path) -> Path:
    (run,) = {path.parent for path in root.glob("default/*/config.yaml")} - {*others}
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process comes to."""
    root = tmp_path_factory.mktemp("whole")
    assert main(fit(root, 80)) == 0
    return only(root)


def alike(run: Path, whole: Path) -> None:
    """Counts equal exactly, all else to a hundred-thousandth."""
    one, other = (torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for path in (run, whole))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)
    records = [read_records(path / "layers.jsonl") for path in (run, whole)]
    assert len(records[0]) == len(records[1]) == 2
    for mine, theirs in zip(*records, strict=True):
        for name, quantity in theirs.quantities.items():
            for value, expected in zip(flat(mine.quantities[name].values), flat(quantity.values), strict=True):
                exact = name in ("accuracy", "saturation", "effective_depth", "best_layer")
                assert value == (expected if exact else pytest.approx(expected, rel=1e-5, abs=1e-6)), name


def flat(values: object) -> list[object]:
    return [inner for value in values for inner in flat(value)] if isinstance(values, list | tuple) else [values]


def test_machines_with_folders_of_their_own_fit_validate_and_resume(
    machines: Pair, whole: Path, tmp_path: Path
) -> None:
    """Only the first writes a run; the second has no more than the checkpoint, where it is told to look."""
    first, second = (tmp_path / name for name in ("first", "second"))
    ends = run_on(machines, tmp_path / "fit", (fit(first, 40), fit(second, 40)))
    assert [status for status, _ in ends] == [0, 0], ends
    alike(only(first), whole)
    assert not [*second.rglob("*.*")]
    begun = only(first) / "checkpoints" / "last.ckpt"
    copied = shutil.copy(begun, tmp_path / "copied.ckpt")
    words = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.default_root_dir"]
    validated = (
        ["validate", f"--ckpt_path={begun}", *words, str(first / "more")],
        ["validate", f"--ckpt_path={copied}", *words, str(second / "more")],
    )
    ends = run_on(machines, tmp_path / "validate", validated)
    assert [status for status, _ in ends] == [0, 0], ends
    (record,) = read_records(next((first / "more").rglob("layers.jsonl")))
    assert (
        record.quantities["accuracy"].values == read_records(whole / "layers.jsonl")[-1].quantities["accuracy"].values
    )


def test_machines_with_a_shared_folder_go_on_within_an_epoch(machines: Pair, whole: Path, tmp_path: Path) -> None:
    step = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=step"]
    step += ["--trainer.callbacks.every_n_train_steps=4", "--trainer.callbacks.save_top_k=-1"]
    words = fit(tmp_path / "runs", 20, *step)
    ends = run_on(machines, tmp_path / "fit", (words, words), each=2)
    assert [status for status, _ in ends] == [0] * 4, ends
    run = only(tmp_path / "runs")
    alike(run, whole)
    for path in run.glob("checkpoints/*.ckpt"):
        if path.name != "step.ckpt":
            path.unlink()
    again = ["fit", f"--resume={run}", "--data.batch_size=40"]  # four processes began, two go on
    ends = run_on(machines, tmp_path / "resume", (again, again))
    assert [status for status, _ in ends] == [0, 0], ends
    alike(only(tmp_path / "runs", run), whole)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--data.val_fraction=0.3", "number of train samples than rank 0 on machine-0: 1257, and 1437"),
        ("--seed_everything=1", "--seed_everything than rank 0 on machine-0: 1, and 0"),
        ("--model.optimizer.lr=0.1", "--model.optimizer.init_args.lr than rank 0 on machine-0: 0.1, and 0.05"),
        ("--trainer.limit_train_batches=5", "--trainer.limit_train_batches than rank 0 on machine-0: 5, and 6"),
    ],
)
def test_a_machine_that_differs_is_named(option: str, told: str, machines: Pair, tmp_path: Path) -> None:
    words = fit(tmp_path / "runs", 40)
    (status, said), (other, _) = run_on(machines, tmp_path / "fit", (words, [*words, option]))
    assert (status, other) == (2, 2)
    assert "the processes of a run must be alike, but rank 1 on machine-1 has another" in said
    assert told in said
    assert said.count("layersim: error: ") == 1
    assert not [*(tmp_path / "runs").rglob("*.ckpt")]


def test_a_rendezvous_that_nobody_joins(machines: Pair, tmp_path: Path) -> None:
    ddp = ["--trainer.strategy.class_path=lightning.pytorch.strategies.DDPStrategy"]
    ddp += ["--trainer.strategy.init_args.timeout=0:00:03", "--trainer.num_nodes=2", "--trainer.devices=1"]
    told = machines[0].environment(free_port(), 0, 1)
    alone = (machines[0].namespace, machines[0].name, [*fit(tmp_path / "runs", 40), *ddp])
    child = Child(tmp_path / "said", on_machine, *alone, environment=told)
    assert child.wait() == 2
    error = child.said.partition("layersim: error: ")[2]
    assert error.removeprefix("rank 0: ").startswith(
        f"The run's 2 processes did not come together at {told['MASTER_ADDR']}:{told['MASTER_PORT']}"
    )
    assert "Traceback" not in child.said


@pytest.mark.skipif(
    not os.environ.get("LAYERSIM_LONG"), reason="`make test-long`: six starts of Python on each machine"
)
@pytest.mark.parametrize("each", [1, 2])
def test_torchrun_over_the_network(each: int, machines: Pair, whole: Path, tmp_path: Path) -> None:
    def torchrun(*words: str) -> None:
        port = free_port()
        started = []
        for machine in machines:
            endpoint = f"{machines[0].address}:{port}"
            command = ["ip", "netns", "exec", machine.namespace, sys.executable, "-m", "torch.distributed.run"]
            command += [
                "--nnodes=2",
                f"--nproc-per-node={each}",
                f"--node-rank={machine.number}",
                "--rdzv-backend=c10d",
            ]
            command += [f"--rdzv-endpoint={endpoint}", f"--local-addr={machine.address}"]
            command += [f"--rdzv-conf=is_host={1 - machine.number}", "-m", "layersim", *words]
            command += [f"--trainer.devices={each}", "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": machine.link, "OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen(command, env=environment))
        assert [process.wait(PATIENCE) for process in started] == [0, 0]

    root = tmp_path / "runs"
    torchrun(*fit(root, 80 // (2 * each)))
    run = only(root)
    alike(run, whole)
    (run / "checkpoints" / "last.ckpt").unlink()
    torchrun("fit", f"--resume={run}")
    alike(only(root, run), whole)
    last = only(root, run) / "checkpoints" / "last.ckpt"
    torchrun("validate", f"--ckpt_path={last}", f"--trainer.default_root_dir={root}/more")


SRUN = """#!/bin/bash
for task in 0 1; do
  SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" & started+=($!)
done
status=0
for task in "${started[@]}"; do wait "$task" || status=$?; done
exit $status
"""


@pytest.mark.skipif(not os.environ.get("LAYERSIM_LONG"), reason="`make test-long`: Python starts twice")
def test_slurm_s_script_as_the_docs_have_it(whole: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    (script,) = re.findall(r"^# train.sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "train.sh").write_text(script.replace("--trainer.devices=4", "--trainer.devices=1"))
    (tmp_path / "RECIPE.yaml").write_text("seed_everything: 0\n")
    for name, text in {"srun": SRUN, "layersim": f'#!/bin/bash\nexec {sys.executable} -m layersim "$@"\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"JOB_ID": "4071", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "JOB_NAME": "train"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in job.items()}
    environment |= {"SLURM_NODELIST": "127.0.0.1", "PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    words = ["bash", "train.sh", *fit(tmp_path / "runs", 40)[1:]]
    done = subprocess.run(words, cwd=tmp_path, env=environment, timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    alike(only(tmp_path / "runs"), whole)
