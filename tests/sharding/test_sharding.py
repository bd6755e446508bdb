"""A sharded model on two real processes against the whole one on one: the same numbers, whatever is trained."""

import io
import json
import shutil
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed

from layersim.backbones import TimmBackbone
from layersim.errors import UserError
from layersim.runs.checkpoints import read_checkpoint
from layersim.runs.whole_checkpoints import WholeShards, _Plain, is_whole
from layersim.sharding import refuse_other_sharding
from tests.processes import PATIENCE, last_record
from tests.reliability.children import Child
from tests.sharding.cases import CASES, RESUMED, adam, go_on, train
from tests.sharding.ranks import train_all

Found = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
"""A run that goes on is kept elsewhere, as it is compared."""


@dataclass(frozen=True)
class Both:
    """What all cases came to on one process, this one, and on two; and the folder of their runs."""

    one: dict[str, Found]
    two: dict[str, Found]
    home: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    home = tmp_path_factory.mktemp("sharded")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [
        Child(home / f"rank_{rank}.txt", train_all, home, environment=meeting | {"LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        one = {name: train(case, home / "one" / name, 1) for name, case in CASES.items()}
        for name, case in RESUMED.items():  # the others wait for these files
            train(case, home / "alone" / name, 1, optimizer=adam())
            one[name] = go_on(case, home / "alone, on" / name, 1, home / "alone" / name / "end.ckpt")
        ended = [rank.wait(PATIENCE) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert ended == [0, 0], ranks[0].said[-4000:]
    return Both(one, {path.stem: torch.load(path, weights_only=True) for path in home.glob("*.pt")}, home)


def check(what: str, found: Found, expected: Found, tolerance: float = 1e-5) -> None:
    """Tensors by name: `weights` or `gradients`."""
    assert found[what].keys() == expected[what].keys()
    for key, value in expected[what].items():
        torch.testing.assert_close(found[what][key], value, rtol=tolerance, atol=tolerance / 10, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_a_sharded_training_is_one_processs(both: Both, name: str) -> None:
    """Of plain SGD, whose shares of a step are unequal: losses, gradients, weights; features; what is measured."""
    one, two, tolerance = both.one[name], both.two[name], CASES[name].tolerance
    assert two["losses"] == pytest.approx(one["losses"], rel=tolerance)
    assert len(set(one["losses"])) == len(one["losses"]) > 1, "the control: it trains"
    check("gradients", two, one, tolerance)
    check("weights", two, one, tolerance)
    torch.testing.assert_close(two["features"], one["features"], rtol=tolerance, atol=tolerance)
    first, second = (json.loads(found["record"]) for found in (one, two))
    assert (second["samples"], second["step"]) == (first["samples"], first["step"])
    if tolerance > 1e-5:
        return
    assert torch.equal(two["predictions"], one["predictions"])
    for quantity, told in first["quantities"].items():
        exact = quantity in ("saturation", "accuracy", "effective_depth", "best_layer")
        values = [torch.tensor(each["values"]).double() for each in (second["quantities"][quantity], told)]
        torch.testing.assert_close(*values, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-5, msg=quantity)


@pytest.mark.parametrize("name", [name for name in CASES if "frozen" not in name])
def test_the_head_is_gathered_once_a_step(both: Both, name: str) -> None:
    """It is of the module's own group (""), which the evaluation before the first step has left whole; a block is
    gathered forwards and backwards; gradients are summed once."""
    counted = both.two[name]["counted"]
    assert [step.pop("", 0) for step in counted] == [0, 1, 1]
    for step in counted:
        gradients = {key: step.pop(key) for key in list(step) if key.endswith(" (gradients)")}
        assert set(gradients.values()) == {1}
        assert set(step.values()) == {2}
        assert sum("layer" in key or "blocks" in key or ".h." in key for key in step) >= 2


@pytest.mark.parametrize("kind", ["file", "folder", "alone"])
@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_go_on_from_any_checkpoint(both: Both, name: str, kind: str) -> None:
    """From two processes' file or folder, or from one process's file, with another learning rate than it tells."""
    two, one = both.two[f"{name}, {kind}"], both.one[name]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    check("weights", two, one)


@pytest.mark.parametrize("name", RESUMED)
def test_one_process_goes_on_from_two(both: Both, name: str, tmp_path: Path) -> None:
    """From a file with the whole model; from a folder with one that is spread over a single process."""
    check("weights", go_on(RESUMED[name], tmp_path / "file", 1, both.home / "file" / name / "end.ckpt"), both.one[name])
    try:
        folder = both.home / "folder" / name / "end.ckpt"
        found = go_on(RESUMED[name], tmp_path / "folder", 1, folder, sharded=True)
    finally:
        distributed.destroy_process_group()
    check("weights", found, both.one[name])


@pytest.mark.parametrize("name", RESUMED)
def test_a_folder_reads_as_a_file_does(both: Both, name: str) -> None:
    file, folder = (read_checkpoint(both.home / kind / name / "end.ckpt") for kind in ("file", "folder"))
    assert folder.keys() == file.keys()
    for key, value in file["state_dict"].items():
        assert torch.equal(folder["state_dict"][key], value)
    shapes = read_checkpoint(both.home / "folder" / name / "end.ckpt", shapes_only=True)["state_dict"]
    assert {key: value.shape for key, value in shapes.items()} == {
        key: value.shape for key, value in file["state_dict"].items()
    }
    assert all(value.is_meta for value in shapes.values())


def test_the_command_reads_what_a_sharded_run_has_saved(
    both: Both, layersim: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """By Lightning's strategy with its defaults, and all default callbacks."""
    (run,) = (both.home / "command").glob("*/*/")
    given = ("--ckpt_path", str(run / "checkpoints/last.ckpt"))
    assert (run / "checkpoints/last.ckpt").is_dir()
    quiet = ("--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false")
    trained, read = last_record(run), last_record(layersim("validate", *given, *quiet))
    assert read["accuracy"] == trained["accuracy"]
    assert read["loss"] == pytest.approx(trained["loss"], rel=1e-5)
    assert (layersim("exits", *given, *quiet, "--risk=0.5", "--measure_speed=false") / "exits.json").is_file()
    layersim("export", *given, "--layers=2", "--to=exported")
    assert TimmBackbone("local-dir:exported", pretrained=True).num_layers == 2
    capsys.readouterr()
    sharded = "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy"
    layersim("exits", *given, *quiet, sharded, "--risk=0.5", status=2)
    assert "Set --measure_speed=false, or leave --trainer.strategy out" in capsys.readouterr().err
    layersim("fit", *given, *quiet, status=2)
    assert "is a sharded model's, whose training goes on with --trainer.strategy" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stock_models_weights_are_in_memory_only_as_shards(both: Both, rank: int) -> None:
    """Before, they lie in the file, which the system reads where they are looked at and drops where memory is short."""
    found = json.loads((both.home / f"memory_{rank}.json").read_text())
    assert found["mapped"] == found["all"]
    assert found["held"] == found["all"] // 2
    assert not found["left"], "the file is let go"


def test_tensor_parallelism_is_refused(both: Both) -> None:
    refused = (both.home / "refused.txt").read_text()
    assert "Set --trainer.strategy.init_args.data_parallel_size=2 and tensor_parallel_size=1" in refused


@pytest.fixture
def folder(both: Both, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(both.home / "folder" / "GPT-2, groups" / "end.ckpt", tmp_path / "end.ckpt")


def test_a_damaged_folder_is_refused(folder: Path) -> None:
    part = folder / "__1_0.distcp"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: files in it are missing or changed"):
        read_checkpoint(folder)
    part.unlink()
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(folder)
    for sums in (b"", b"{", b"\xff", b"3", b"[]", b"{}", b'{"a":' * 3000, b'{"meta.pt": "0"}'):
        (folder / "sha256.json").write_bytes(sums)
        with pytest.raises(UserError, match="is damaged"):
            read_checkpoint(folder)
    shutil.copytree(folder, whole := folder.with_name("whole.ckpt"))
    (whole / "sha256.json").unlink()  # as Lightning alone writes it
    (whole / "meta.pt").unlink()  # the last that it writes
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(whole)


def test_a_folder_runs_no_code(folder: Path) -> None:
    (folder / "sha256.json").unlink()
    (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(UserError, match=r"unsafe to load\): \.metadata names os\.system"):
        read_checkpoint(folder)
    assert not Path("ran").exists()


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_are_read_as_any_python_writes_them(module: str) -> None:
    assert _Plain(io.BytesIO(f"c{module}\nPosixPath\n(Vfolder\ntR.".encode())).load() == Path("folder")


def test_a_save_that_is_cut_short_leaves_the_older_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: object, checkpoint: object, path: Path, storage_options: object) -> None:
        path.mkdir()
        (path / "meta.pt").write_bytes(b"new")
        if not whole:
            raise OSError("cut")
        (path / ".metadata").write_bytes(b"new")

    monkeypatch.setattr(ModelParallelStrategy, "save_checkpoint", cut)
    monkeypatch.setattr(WholeShards, "is_global_zero", True)
    monkeypatch.setattr(WholeShards, "global_rank", 0)
    whole, strategy = False, WholeShards()
    with pytest.raises(OSError, match="cut"):
        strategy.save_checkpoint({}, folder)
    assert is_whole(folder)
    assert (folder / "__1_0.distcp").exists()
    whole = True
    strategy.save_checkpoint({}, folder)
    assert is_whole(folder)
    assert {path.name for path in folder.iterdir()} == {".metadata", "meta.pt", "sha256.json"}
    assert [*folder.parent.iterdir()] == [folder], "nothing is left beside it"


@pytest.mark.parametrize(
    ("strategy", "refused"),
    [
        ("fsdp", True),
        ("fsdp_cpu_offload", True),
        (Namespace(class_path="lightning.pytorch.strategies.FSDPStrategy"), True),
        ("deepspeed_stage_3_offload", True),
        (Namespace(class_path="lightning.pytorch.strategies.DeepSpeedStrategy", init_args={"stage": 3}), True),
        (Namespace(class_path="lightning.pytorch.strategies.DeepSpeedStrategy", init_args={"stage": 2}), False),
        (Namespace(class_path="lightning.pytorch.strategies.ModelParallelStrategy"), False),
        ("deepspeed_stage_2", False),
        ("ddp", False),
    ],
)
def test_other_ways_to_spread_parameters_are_refused(strategy: Any, refused: bool) -> None:
    name = r"--trainer\.strategy\.class_path=lightning\.pytorch\.strategies\.ModelParallelStrategy"
    with pytest.raises(UserError, match=name) if refused else nullcontext():
        refuse_other_sharding(strategy)
