"""Nothing that a checkpoint names runs code, unless it is typed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from layersim.__main__ import main
from layersim.commands.preflight import with_checkpoint
from layersim.errors import UserError
from layersim.runs.models import read_source
from layersim.runs.stored import stored_sections

Command = Callable[..., Path]
CODE = """from pathlib import Path
Path({place!r}).write_text("ran")
from transformers import BertConfig, BertForSequenceClassification
class XConfig(BertConfig):
    model_type = "x"
class XModel(BertForSequenceClassification):
    config_class = XConfig
class Mine: ...
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkpoint of a model in a folder with code, and the file that the code writes when it runs."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    for cache in ("dynamic_module_utils", "utils.hub"):
        monkeypatch.setattr(f"transformers.{cache}.HF_MODULES_CACHE", str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which transformers adds its cache
    (folder / "modeling_x.py").write_text(CODE.format(place=str(ran)))
    mapped = {"AutoConfig": "modeling_x.XConfig", "AutoModelForSequenceClassification": "modeling_x.XModel"}
    (folder / "config.json").write_text(json.dumps({"auto_map": mapped, "model_type": "x"}))
    options = {"name_or_path": str(folder), "task": "classification", "pretrained": False, "trust_remote_code": True}
    return checkpoint_of("layersim.backbones.TransformersBackbone", options, tmp_path / "planted.ckpt"), ran


def checkpoint_of(backbone: str, options: dict[str, Any], path: Path) -> Path:
    model = {"backbone": {"class_path": backbone, "init_args": options}, "_instantiator": "os.system"}
    data = {"class_path": "layersim.data.Digits", "init_args": {}}
    torch.save({"state_dict": {}, "hyper_parameters": model, "layersim": {"config": {"data": data}}}, path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "--ckpt_path"],
        ["fit", "--data=layersim.data.Digits", "--ckpt_path"],
        ["exits", "--ckpt_path"],
        ["export", "--to=out", "--ckpt_path"],
        ["similarity", "--to=out", "--b=timm:vit_tiny_patch16_224", "--a"],
        ["transfer", "--to=out", "--ckpt_path"],
        ["lens", "--to=out", "--ckpt_path"],
    ],
)
def test_a_checkpoints_trust_runs_nothing_and_one_line_says_what_to_type(
    words: list[str], planted: tuple[Path, Path], layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path, ran = planted
    with pytest.warns(
        UserWarning, match="planted.ckpt asks for trust_remote_code, which counts only where it is typed"
    ):
        layersim(*words, str(path), status=2)
    assert "Set the backbone's trust_remote_code: true if you trust" in capsys.readouterr().err
    assert not ran.exists()


def test_what_is_typed_runs(planted: tuple[Path, Path], layersim: Command, tmp_path: Path) -> None:
    """The control: the plant works."""
    path, ran = planted
    flag = "--model.backbone.init_args.trust_remote_code=true"
    layersim("validate", f"--ckpt_path={path}", flag, status=2)  # weights that do not fit
    assert ran.read_text() == "ran"
    (tmp_path / "own.yaml").write_text("model: {backbone: {init_args: {trust_remote_code: true}}}")
    words = with_checkpoint(["validate", "--config=own.yaml", f"--ckpt_path={path}"])
    assert "trust" not in words[2], "the recipe says it, not the checkpoint"


def test_trust_is_left_out_at_any_depth() -> None:
    deep = {"layersim": {"config": {"data": {"init_args": {"readers": [{"trust_remote_code": True, "name": "a"}]}}}}}
    with pytest.warns(UserWarning, match=r"--data\.init_args\.readers\.trust_remote_code=true"):
        found = stored_sections(deep, "x.ckpt")
    assert found == {"model": {}, "data": {"init_args": {"readers": [{"name": "a"}]}}}


def test_a_class_of_the_working_directory_is_imported_where_it_is_typed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as `python -m` has it
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "planted_x.py").write_text(CODE.format(place=str(tmp_path / "ran")))
    path = checkpoint_of("planted_x.Mine", {}, tmp_path / "planted.ckpt")
    with pytest.raises(UserError, match=r"names the class planted_x\.Mine, .*--model\.backbone=planted_x\.Mine or a"):
        read_source(str(path))
    assert main(["validate", "--ckpt_path", str(path)]) == 2
    assert not (tmp_path / "ran").exists()
    words = with_checkpoint(["validate", "--model.backbone=planted_x.Mine", "--ckpt_path", str(path)])
    assert "planted_x.Mine" in words[2]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert read_source(str(path)).model["backbone"]["class_path"] == "planted_x.Mine"


@pytest.mark.parametrize(
    ("backbone", "options", "fetched"),
    [
        ("TimmBackbone", {"name": "vit_tiny_patch16_224", "pretrained": True}, {"pretrained": False}),
        ("TimmBackbone", {"name": "vit_tiny_patch16_224", "checkpoint_path": "x.pth"}, {"checkpoint_path": None}),
        ("TransformersBackbone", {"name_or_path": "a/b", "task": "classification"}, {"pretrained": False}),
    ],
)
def test_a_checkpoint_fetches_no_weights_but_its_own(
    backbone: str, options: dict[str, Any], fetched: dict[str, Any], tmp_path: Path
) -> None:
    path = checkpoint_of(f"layersim.backbones.{backbone}", options, tmp_path / "x.ckpt")
    typed = "--model.backbone.init_args.pretrained=true"
    verb, flag, stored, *words = with_checkpoint(["validate", f"--ckpt_path={path}", typed])
    assert yaml.safe_load(stored)["model"]["backbone"]["init_args"] == options | fetched
    assert (verb, flag, words[-1]) == ("validate", "--config", typed), "what is typed comes later, and wins"
    assert read_source(str(path)).model["backbone"]["init_args"] == options | fetched
