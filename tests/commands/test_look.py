"""`layersim look`: what it measures against a direct reading, what it guesses, leaves out and says, and bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import timm
import torch
import yaml
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from layersim.commands.guesses import guess
from layersim.data.sources import Source
from layersim.report.records import LayerRecord, read_records
from layersim.runs.checkpoints import read_checkpoint
from layersim.runs.models import open_module, read_source
from layersim.similarity import linear_cka
from tests import tiny

Command = Callable[..., Path]
WORDS = ["[PAD]", "[UNK]", *"abcdef"]
ARCHITECTURE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def vit(folder: Path, classes: int, names: list[str] | None = None) -> Path:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **ARCHITECTURE)
    save_for_hf(model, str(folder), {"label_names": names} if names else {}, safe_serialization=True)
    return folder


def bert(folder: Path, *, head: bool = True) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)
    (BertForSequenceClassification if head else BertModel)(config).save_pretrained(folder)
    return tokenizer(folder)


def tokenizer(folder: Path) -> Path:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    inputs = ["input_ids", "attention_mask"]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", eos_token="[UNK]", model_input_names=inputs
    )
    wrapped.save_pretrained(folder)
    return folder


def reviews(path: Path, rows: int = 40, classes: int = 2) -> Path:
    drawn = np.random.default_rng(0).integers(0, 6, (rows, 12))
    lines = [" ".join("abcdef"[letter] for letter in row[: 4 + number % 8]) for number, row in enumerate(drawn)]
    path.write_text("id,review,stars\n" + "".join(f"{n},{line},{n % classes}\n" for n, line in enumerate(lines)))
    return path


def looked(layersim: Command, *args: str) -> LayerRecord:
    """The record of a look that trained nothing and saved no checkpoint."""
    place = layersim("look", *args)
    (record,) = read_records(place / "layers.jsonl")
    assert (place / "report.html").is_file()
    assert not [*place.rglob("*.ckpt")]
    return record


def test_a_run_is_seen_as_its_training_saw_it_last(layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    run = layersim("fit", *tiny.FLAGS, "--experiment=mine")
    capsys.readouterr()
    record = looked(layersim, str(run))
    trained = read_records(run / "layers.jsonl")[-1]
    assert {name: record.quantities[name] for name in trained.quantities} == trained.quantities
    assert {"mean_cosine", "effective_rank"} <= record.quantities.keys()
    said = capsys.readouterr().out
    parameters = sum(each.numel() for each in tiny.module().parameters())
    assert f"{run.parent.name}/{run.name}, 3 layers, {parameters:,} parameters, on cpu" in " ".join(said.split())
    assert "360 images of Digits" in said
    assert "Guessed" not in said
    command = next(line for line in said.splitlines() if line.startswith("  layersim exits"))
    assert command.split()[2:] == [f"--ckpt_path={run.relative_to(Path.cwd())}/checkpoints/last.ckpt", "--risk=0.02"]


def test_a_folder_of_timm_against_a_direct_reading_of_digits_made_large(
    layersim: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = vit(tmp_path / "vit", 10, [str(digit) for digit in range(10)])
    record = looked(layersim, str(folder), "--data=digits", "--max_samples=100")
    module = open_module(read_source(str(folder)))
    from layersim.data import Digits

    data = Digits(resize=True, max_eval_samples=100)
    data.setup()
    data.adapt(module.backbone)
    samples = [data.splits["val"][place] for place in range(100)]
    samples.sort(key=lambda sample: sample["position"])
    with torch.no_grad():
        read = module({"image": torch.stack([sample["image"] for sample in samples])})
    right = read.readout.predictions == torch.tensor([sample["label"] for sample in samples])
    assert record.values("accuracy") == pytest.approx(right.double().mean(dim=1).tolist())
    found = record.quantities["cka"]
    groups = linear_cka(read.features.values, estimator="minibatch", batch_size=found.options["batch_size"])
    assert np.asarray(found.values) == pytest.approx(groups.numpy(), abs=1e-5)
    assert "100 images of Digits" in capsys.readouterr().out


def test_what_nobody_asked_for_says_what_it_cannot_tell(
    layersim: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = looked(layersim, str(vit(tmp_path / "vit", 10)), "--max_samples=64")
    said = " ".join(capsys.readouterr().out.split())
    assert "not what any knows of your images" in said
    assert "accuracy, loss and exits: nobody says that the head's classes are these data's." in said
    assert "accuracy" not in record.quantities
    assert "saturation" in record.quantities


@pytest.mark.parametrize(("classes", "why"), [(2, None), (3, "the data have 3 classes, the head tells 2 others apart")])
def test_texts_are_guessed_and_readings_are_left_out_where_the_classes_are_others(
    layersim: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    classes: int,
    why: str | None,
) -> None:
    folder, path = bert(tmp_path / "bert"), reviews(tmp_path / "r.csv", classes=classes)
    caplog.set_level("INFO")
    record = looked(layersim, str(folder), f"--data={path}", "--max_samples=30")
    said = " ".join(capsys.readouterr().out.split())
    assert f"30 of 40 texts of {path}" in said
    assert "texts in review (--data.text_column)" in said
    assert f"{classes} classes in stars (--data.label_column)" in said
    measured = {"accuracy", "loss", "effective_depth", "exit_curve"} & record.quantities.keys()
    assert measured == (set() if why else {"accuracy", "loss", "effective_depth", "exit_curve"})
    assert (why or "the head's classes are these, in this order: 0, 1") in said
    assert "saturation" in record.quantities
    assert ("--kind=linear" if why else "--kind=tuned") in said
    (directory,) = (tmp_path / "runs/look").iterdir()
    again = layersim("validate", f"--config={directory}/config.yaml", "--trainer.logger=false")
    assert read_records(again / "layers.jsonl")[0].quantities == record.quantities
    alike = [text for text in caplog.messages if "nearly the same features" in text]
    assert all("--model.backbone.pool=mean" in text for text in alike)
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["verb"] == "look"


def test_a_model_without_a_head_is_read_by_the_mean_of_its_tokens(
    layersim: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = bert(tmp_path / "bert", head=False), reviews(tmp_path / "r.csv", rows=12)
    record = looked(layersim, str(folder), f"--data={path}")
    said = " ".join(capsys.readouterr().out.split())
    assert "the mean of a text's tokens (--model.backbone.pool=null: the first one)" in said
    assert "accuracy, loss, exits and saturation: the model has no trained classifier" in said
    assert not {"accuracy", "saturation", "exit_curve"} & record.quantities.keys()
    own, model = PreTrainedTokenizerFast.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    texts = [line.split(",")[1] for line in path.read_text().splitlines()[1:]]
    with torch.no_grad():
        layers = [model(**own(text, return_tensors="pt"), output_hidden_states=True).hidden_states for text in texts]
    means = torch.stack([torch.stack([each.mean(dim=1)[0] for each in of_one[1:]]) for of_one in layers], dim=1)
    expected = linear_cka(means, estimator="debiased").numpy()
    assert np.asarray(record.quantities["cka"].values) == pytest.approx(expected, abs=1e-6)
    (command,) = re.findall(r"layersim (lens --ckpt_path=\S+ --kind=linear .*?) The same", said)
    layersim(*command.split(), "--to=out")
    lens = read_checkpoint("out/lens/linear.ckpt")["layersim"]["config"]
    assert lens["model"]["backbone"]["init_args"]["pool"] == "mean", "what is suggested reads as this did"
    first = looked(layersim, str(folder), f"--data={path}", "--model.backbone.pool=null")
    assert abs(np.asarray(first.quantities["cka"].values) - expected).max() > 1e-5, "the control: another token"


@pytest.mark.parametrize("data", [None, "lines.txt"])
def test_a_language_model_is_known_by_its_folder(
    layersim: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str | None
) -> None:
    torch.manual_seed(0)
    shape = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), **shape)).save_pretrained(tmp_path / "gpt")
    tokenizer(tmp_path / "gpt")
    (tmp_path / "lines.txt").write_text("a b c d e f\n" * 200)
    given = [] if data is None else [f"--data={tmp_path / data}"]
    record = looked(layersim, str(tmp_path / "gpt"), "--max_samples=160", *given)
    said = " ".join(capsys.readouterr().out.split())
    assert "task language-modeling (--model.backbone.task)" in said
    assert (record.unit, record.samples) == ("tokens", 150)  # 10 blocks of 16, whose first tokens nothing predicts
    assert record.values("perplexity")[-1] == pytest.approx(len(WORDS), rel=0.2)  # it was never trained
    assert ("a model that was not trained on code" in said) is (data is None)


def test_images_without_classes_and_a_program(
    layersim: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat").mkdir()
    for shade in range(8):
        PIL.Image.new("RGB", (20, 24), (30 * shade, 90, 10 * shade)).save(tmp_path / f"flat/{shade}.png")
    record = looked(layersim, str(vit(tmp_path / "vit", 4)), f"--data={tmp_path}/flat")
    assert record.samples == 8
    assert "no column of labels found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "the following arguments are required: model"),
        ([""], "or package:PACKAGE/FOLDER, but got none"),
        (["{}/absent"], "Expected a checkpoint"),
        (["vit_tiny_patch16_224"], "say timm:vit_tiny_patch16_224 or transformers:vit_tiny_patch16_224"),
        (["{}"], "holds no config.json"),
        (["{}/program"], r"holds a program \(onnx\), whose layers cannot be read"),
        (["{}/class"], "holds weights for a class of your own, whose layers cannot be read"),
        (["{}/list.yaml"], r"expected a class in its section `backbone`, but got \[1\]"),
        (["{}/data.yaml"], "expected a class in its section `data`, but got 3"),
        (["{}/adapter"], "What it holds is an adapter: merge it into its model"),
        (["{}/trained"], "Perhaps .*/trained/checkpoint-7 is meant"),
        (["{}/own"], "Set the backbone's trust_remote_code: true if you trust"),
        (["{}/bert/model.safetensors"], "Give the folder that it lies in"),
        (["{}/bert", "--data={}/absent.csv"], "no file or folder .*absent.csv"),
        (["{}/bert", "--data={}/two.csv"], "has texts in q and a. Choose --data.text_column"),
        (["{}/bert", "--data={}/r.csv", "--data.label_column=x"], "no column x.*--data.label_column"),
        (["{}/bert", "--data={}/r.csv", "--data.bogus=1"], "Option 'bogus' is not accepted"),
        (["{}/bert", "--data={}/r.csv", "--split=test"], "no split test, only train"),
        (["{}/bert", "--data={}/semicolons.csv"], "single column, 'review;stars', so that ';' seems to divide"),
        (["{}/silent", "--data={}/r.csv"], "silent brings no tokenizer, without which all texts are alike"),
        (["{}/headless", "--data={}/r.csv"], r"1_Pooling/config\.json cannot be read"),
        (["{}/bert", "--data=digits"], "the data are images, but the model reads texts"),
        (["{}/bert", "--data=Text"], "got the class Text. Set --data to the path itself"),
        (["{}/bert", "--data={}/numbers.csv"], "The model reads texts, but .* has none: its columns are x, y"),
        (["{}/vit", "--data={}/r.csv"], "The model reads images, but .* has none: its columns are id, review, stars"),
        (["{}/vit", "--max_samples=3"], "max_samples must be at least 4, got 3"),
        (["{}/vit", "--device=quantum"], "There is no device 'quantum' here"),
        (["{}/vit", "--to={}/bert"], "exists. Choose another --to"),
        (["{}/vit", "--data=recipe:digits/aligned", "--split=train"], "but got train. Change --split"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(
    args: list[str],
    said: str,
    layersim: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # which nobody may ask for
    place = tmp_path / "in"
    (place / "program").mkdir(parents=True)
    (place / "program/layersim.json").write_text('{"format": "onnx"}')
    (place / "class").mkdir()
    (place / "class/layersim.json").write_text('{"format": "stock", "library": "mine"}')
    (place / "list.yaml").write_text("model: {backbone: [1]}\n")
    (place / "data.yaml").write_text("model: {backbone: TimmBackbone}\ndata: 3\n")
    (place / "two.csv").write_text("q,a\n" + "".join(f"a {n},b {n}\n" for n in range(9)))
    (place / "numbers.csv").write_text("x,y\n1,2\n3,4\n")
    bert(place / "bert")
    for name in ("silent", "trained/checkpoint-7"):
        bert(place / name)
    (place / "silent/tokenizer.json").unlink()
    (place / "silent/tokenizer_config.json").unlink()
    (place / "semicolons.csv").write_text("review;stars\n" + "".join(f"a {n};{n % 2}\n" for n in range(9)))
    (place / "adapter").mkdir()
    (place / "adapter/adapter_config.json").write_text("{}")
    (place / "own").mkdir()
    (place / "own/config.json").write_text('{"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"}')
    (place / "own/own.py").write_text("raise SystemExit('ran')")
    rule = bert(place / "headless", head=False) / "1_Pooling/config.json"
    rule.parent.mkdir()
    rule.write_text('{"pooling_mode_cls_token": tru')
    vit(place / "vit", 10)
    reviews(place / "r.csv")
    capsys.readouterr()
    layersim("look", *(word.format(place) for word in args), status=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
    assert not (tmp_path / "runs").exists()


class Reads:
    """A backbone, as far as guessing asks for it."""

    reads_tokens, input_size, num_classes = False, None, 2
    tokenizer_name = "somewhere"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "words {}", "label": "{}%2"}, ("text", "label")),
        ({"sentence1": "a {}", "label": "{}%3", "idx": "{}"}, ("sentence1", "label")),
        ({"review": "long {}", "sentiment": "pos,neg"}, ("review", "sentiment")),
        ({"q": "long {}", "grade": "{}%4"}, ("q", "grade")),  # the only column of few values
        ({"q": "long {}", "year": "{}%4", "grade": "{}%2"}, ("q", None)),  # two of them: none is guessed
        ({"q": "long {}", "id": "{}"}, ("q", None)),
    ],
)
def test_columns_are_guessed_by_name_and_by_what_they_hold(
    columns: dict[str, str], expected: tuple[str, str | None], tmp_path: Path
) -> None:
    def cell(form: str, row: int) -> str:
        if "%" in form:
            return str(row % int(form[-1]))
        return form.split(",")[row % 2] if "," in form else form.format(row)

    rows = [",".join(cell(form, row) for form in columns.values()) for row in range(24)]
    (tmp_path / "t.csv").write_text("\n".join([",".join(columns), *rows]) + "\n")
    found = guess(Source(str(tmp_path / "t.csv")), Reads())  # type: ignore[arg-type]
    options = found.section["init_args"]
    assert (options["text_column"], options["label_column"]) == expected
    assert any("--data.label_column" in told for told in found.told)


def test_rows_without_text_or_label_are_left_out_and_counted(layersim: Command, tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    rows = [["abcdef"[n % 6] + " b" * (n % 5), n % 2] for n in range(20)]
    rows[3][0] = rows[4][1] = ""
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    record = looked(layersim, str(bert(tmp_path / "bert")), f"--data={path}")
    assert (record.samples, record.left_out) == (18, 2)


def test_a_recipe_says_that_its_weights_are_random(layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path("r.yaml")
    options = {"name": "vit_tiny_patch16_224", "num_classes": 10, "img_size": 8, "in_chans": 1}
    backbone = {
        "class_path": "layersim.backbones.TimmBackbone",
        "init_args": {**options, "model_args": tiny.ARCHITECTURE},
    }
    data = {"class_path": "layersim.data.Digits", "init_args": {"max_eval_samples": 40}}
    recipe.write_text(yaml.safe_dump({"model": {"backbone": backbone}, "data": data}))
    record = looked(layersim, "r.yaml", "--split=val", "--max_samples=50")
    assert "Weights  random: nothing is trained yet" in capsys.readouterr().out
    assert record.samples == 50


def test_validate_asks_for_labels_before_anything_is_measured(
    layersim: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model.backbone=TransformersBackbone", f"--model.backbone.name_or_path={bert(tmp_path / 'bert')}"]
    model.append("--model.backbone.task=classification")
    data = ["--data=Text", f"--data.path={reviews(tmp_path / 'r.csv')}", "--data.text_column=review"]
    flags = [*model, *data, "--data.val_split=train", "--data.label_column=null", "--trainer.logger=false"]
    layersim("validate", *flags, status=2)
    said = capsys.readouterr().err
    assert "have no labels, which LayerAccuracyMonitor and ExitCurveMonitor ask for" in said
    without = said.partition("--without=")[2].strip().rstrip(".")
    run = layersim("validate", *flags, f"--without={without}")
    (record,) = read_records(run / "layers.jsonl")
    assert {"saturation", "cka"} <= record.quantities.keys()
    assert "accuracy" not in record.quantities


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("validate", []),
        ("test", []),
        ("exits", ["--risk=0.5"]),
        ("export", ["--tolerance=0.1", "--to=out"]),
        ("lens", []),
    ],
)
def test_a_head_that_numbers_the_classes_otherwise_measures_nothing(
    verb: str,
    options: list[str],
    layersim: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = bert(tmp_path / "bert")
    path = Path(reviews(tmp_path / "r.csv"))
    path.write_text(re.sub(r",(\d)$", lambda star: ",Low" if star[1] == "0" else ",high", path.read_text(), flags=re.M))
    data = ["--data=Text", f"--data.path={path}", "--data.text_column=review", "--data.label_column=stars"]
    data += ["--data.val_fraction=0.5", "--data.test_split=train"]
    name = ["--model.backbone=TransformersBackbone", f"--model.backbone.name_or_path={folder}"]
    name += ["--model.backbone.task=classification"]
    model = [f"--ckpt_path=transformers:{folder}", "--steps=1"] if verb == "lens" else name
    config = json.loads((folder / "config.json").read_text())

    def names(first: str, second: str) -> None:
        named = {"id2label": {"0": first, "1": second}, "label2id": {first: 0, second: 1}}
        (folder / "config.json").write_text(json.dumps(config | named))

    names("HIGH", "LOW")
    layersim(verb, *model, *data, *options, status=2)
    assert (
        "error: Class 0 of the head is HIGH, of the data Low: they are the same in another order, and right"
        in capsys.readouterr().err
    )
    names("LOW", "HIGH")  # the control
    layersim(verb, *model, *data, *options)
    if verb == "validate":
        names("few", "many")
        layersim(verb, *model, *data, *options)
        assert "Class 0 of the head is few, of the data Low." in caplog.text
