import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from layersim.objectives import Aligned
from layersim.report.page import write_page
from layersim.report.secrets import MASK, masked
from layersim.runs.stored import stored_sections
from tests import tiny
from tests.report.test_compare import make_run, record

SECRET = "s3cretvalue0123456789"
SEEN: list[str] = []


class KeyedObjective(Aligned):
    def __init__(self, token: str) -> None:
        super().__init__()
        SEEN.append(token)


class KeyedCallback(Callback):
    def __init__(self, api_key: str, note: str) -> None:
        SEEN.append(api_key)


@pytest.mark.parametrize(
    "text",
    [
        f"api_key: {SECRET}",
        f"  init_args:\n    token: {SECRET}\n",
        f"- {{wandb_api_key: '{SECRET}', x: 1}}",
        f'{{"password": "{SECRET}"}}',
        f"layersim fit --trainer.logger.api_key={SECRET} --x=1",
        f"layersim fit --trainer.logger.init_args.token {SECRET} --x=1",
        f"passphrase: my {SECRET} of words {SECRET}\nx: 1",
        f"passphrase: 'my {SECRET}: of words'",
        f"note: hf_{SECRET}",
        f"url: https://me:{SECRET}@host/x",
        f"ghp_{SECRET}",
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    found = masked(text)
    assert SECRET not in found
    assert MASK in found
    if not text.startswith("layersim"):
        yaml.safe_load(found)


@pytest.mark.parametrize(
    "text",
    [
        "eos_token: </s>",
        "reads_tokens: true",
        "token: null",
        "max_tokens: 5",
        "tokenizer: bert",
        "revision: 0123456789012345678901234567890123456789",
        "monitor: val/accuracy",
        "token:\n  inner: 1",
    ],
)
def test_what_does_not_is_left(text: str) -> None:
    assert masked(text) == text


def test_no_file_of_a_run_has_a_planted_secret(layersim: Callable[..., Path], tmp_path: Path) -> None:
    here = "tests.report.test_secrets"
    options = f"{{api_key: {SECRET}, note: hf_{SECRET}}}"
    keyed = f"--trainer.callbacks+={{class_path: {here}.KeyedCallback, init_args: {options}}}"
    objective = [f"--model.objective={here}.KeyedObjective", f"--model.objective.token={SECRET}"]
    directory = layersim("fit", *tiny.FLAGS, "--trainer.limit_train_batches=1", keyed, *objective)
    checkpoint = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["objective"]["init_args"]["token"] == MASK
    assert "token" not in stored_sections(checkpoint, "x")["model"]["objective"]["init_args"]
    found = [path for path in directory.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert found == []
    config = (directory / "config.yaml").read_text()
    assert all(f"{option}: {MASK}" in config for option in ("token", "api_key", "note"))
    assert SEEN == [SECRET, SECRET], "the run itself had them"


def test_names_are_escaped_wherever_the_page_has_them(tmp_path: Path) -> None:
    plant = "<script>planted()</script>"
    run = make_run(tmp_path / "x1", record(**{plant: record().quantities["accuracy"]}))
    config = {"experiment": plant, "model": {"objective": {"class_path": plant, "init_args": {plant: plant}}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"password": SECRET}))
    (run / "environment.json").write_text(json.dumps({plant: plant, "parameters": {plant: plant}}))
    other = make_run(tmp_path / "x2", record(), experiment="other")
    for runs in ([run], [run, other]):
        write_page(runs, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert plant not in page
        assert "&lt;script&gt;planted()" in page
        assert SECRET not in page
        assert re.search(r"\\u003cscript>planted\(\)", page), "the charts' data have the name too"
