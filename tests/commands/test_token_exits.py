"""`layersim exits` on a small language model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from layersim.__main__ import main
from layersim.backbones import TransformersBackbone
from layersim.commands.exit_request import Texts
from layersim.commands.exits import calibrate_exits
from layersim.data import StdlibCode
from layersim.errors import UserError
from layersim.exits import TokenExit
from layersim.module import LayerwiseModule
from tests import tiny

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.accelerator=cpu"]
FAMILY = (
    "{model_type: llama, num_hidden_layers: 3, hidden_size: 16, intermediate_size: 24, num_attention_heads: 2, "
    "max_position_embeddings: 32, vocab_size: 258, pad_token_id: 257, bos_token_id: 256, eos_token_id: 256}"
)
FEW = ["--texts.number=40", "--texts.prompt=8", "--texts.new=4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    model = [
        "--model.backbone=layersim.backbones.TransformersBackbone",
        "--model.backbone.task=language-modeling",
        "--model.backbone.pretrained=false",
        f"--model.backbone.config_args={FAMILY}",
    ]
    data = ["--data=layersim.data.StdlibCode", "--data.max_files=6", "--data.block_size=32"]
    steps = [
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=4",
        "--trainer.limit_val_batches=1",
        f"--trainer.default_root_dir={root}",
    ]
    assert main(["fit", *QUIET, *model, *data, *steps]) == 0
    (path,) = root.rglob("last.ckpt")
    return path


def test_a_language_models_tokens_are_promised_and_timed(
    layersim: Callable[..., Path], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--risk=0.2", "--texts.exit_layers=[2]", "--texts.kv=copied", "--trainer.limit_val_batches=1"]
    directory = layersim("exits", f"--ckpt_path={checkpoint}", *QUIET, *FEW, *flags)

    report = json.loads((directory / "token_exits.json").read_text())
    found = report["calibration"]
    assert (found["texts"], found["prompt_tokens"], found["new_tokens"], found["layers"]) == (40, 8, 4, 3)
    assert (found["exit_layers"], found["kv"], found["risk"]) == ([2], "copied", "disagreement")
    assert sum(found["exits"]) == 40 * 4
    assert found["exits"][0] == 0
    mean = sum(layer * count for layer, count in enumerate(found["exits"], start=1)) / 160
    assert found["mean_exit_layer"] == pytest.approx(mean)
    assert found["bound"] <= 0.2
    assert [speed["batch_size"] for speed in report["speed"]] == [1, 16]
    assert (directory / "layers.jsonl").exists(), "the layers are measured on the way"
    said = " ".join(capsys.readouterr().out.split())
    assert "With probability 0.95 over the draw of these 40 texts" in said


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--budget=0.5", "--budget is for classifiers"),
        ("--method=crc", "--method is for classifiers"),
        ("--plan", "--plan is for classifiers"),
        ("--risk=0.1,0.2", "one --risk is promised"),
        ("--risk_of=error", "disagreement, loss or continuation"),
        ("--texts.new=0", "texts.new must be at least 1, got 0"),
        ("--texts.exit_layers=[9]", "exit_layers of 1 … 2, but got 9"),
        ("--texts.prompt=90", "takes up to 32 tokens"),
        ("--risk=0.01", "at least 401 texts"),
    ],
)
def test_what_is_not_for_language_models_is_refused(
    layersim: Callable[..., Path], checkpoint: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    layersim("exits", f"--ckpt_path={checkpoint}", *QUIET, *FEW, "--risk=0.2", flag, status=2)
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_texts_are_written_in_the_trainers_precision_and_training_goes_on(
    precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = TransformersBackbone(task="language-modeling", pretrained=False, config_args=yaml.safe_load(FAMILY))
    model = LayerwiseModule(backbone).train()
    training = [part.training for part in model.modules()]
    trainer = Trainer(
        default_root_dir=tmp_path, precision=precision, limit_val_batches=1, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    seen: list[bool] = []
    written = TokenExit.generate

    def generate(exits: TokenExit, *args: Any, **options: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return written(exits, *args, **options)

    monkeypatch.setattr(TokenExit, "generate", generate)
    data = StdlibCode(max_files=6, block_size=32, batch_size=8)
    texts = Texts(number=40, prompt=8, new=4)
    report = calibrate_exits(model, data, trainer, risk=0.3, texts=texts, measure_speed=False)
    assert report.precision == precision
    assert set(seen) == {precision == "bf16-mixed"}
    assert [part.training for part in model.modules()] == training


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"policy": "foo"}, "policy: expected one of confidence, .*similarity, got 'foo'"),
        ({"method": "foo"}, "method: expected one of crc, ltt, ucb, got 'foo'"),
        ({"method": "foo", "budget": 0.5}, "method: expected one of crc, ltt, ucb, got 'foo'"),
        ({"risk_of": "bar"}, "risk_of: expected one of .*error.*got 'bar'"),
        ({"split": "train"}, "split: expected one of val, test, got 'train'"),
    ],
)
def test_a_choice_that_is_none_is_refused_with_the_choices(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        calibrate_exits(tiny.module(), tiny.digits(), measure_speed=False, **option)
