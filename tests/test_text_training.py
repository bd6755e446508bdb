"""Text through the command: a byte-level language model and a sentence classifier, trained and measured."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layersim import Aligned, LayerwiseModule
from layersim.backbones import TransformersBackbone
from layersim.data import StdlibCode
from layersim.report.records import read_records
from tests.measured import measured

COMMON = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
    "--model.backbone=TransformersBackbone",
    "--model.backbone.pretrained=false",
]
GPT = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 258, "n_positions": 64}


def record(directory: Path) -> dict:  # type: ignore[type-arg]
    return measured(directory)[-1]


def test_a_language_model_on_the_standard_library(
    layersim: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = layersim(
        "fit",
        *COMMON,
        "--model.backbone.task=language-modeling",
        f"--model.backbone.config_args={json.dumps(GPT | {'pad_token_id': 257})}",
        "--model.optimizer=AdamW",
        "--model.optimizer.lr=0.003",
        "--data=StdlibCode",
        "--data.block_size=64",
        "--data.max_files=12",
        "--data.max_train_samples=640",
        "--data.max_eval_samples=40",
        "--data.batch_size=16",
    )
    found = record(directory)
    assert 40 < found["samples"] <= 40 * 63, "samples are predicted tokens, one fewer a block than it has tokens"
    assert sum(found["saturation"]) == found["samples"]
    assert found["unit"] == "tokens"
    told = read_records(directory / "layers.jsonl")[-1].quantities
    assert told["behind_best"].interval is None, "tokens of one text depend on each other"
    with (directory / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["val/perplexity"]][-1]
    perplexities = [float(logged[f"val/perplexity/layer_{layer:02d}"]) for layer in (1, 2, 3)]
    assert perplexities == pytest.approx([math.exp(loss) for loss in found["loss"]], rel=1e-5)
    assert float(logged["val/perplexity"]) == perplexities[-1]
    printed = capsys.readouterr().out
    assert f"{found['samples']} tokens" in printed
    assert "perplexity" in printed
    assert (directory / "figures" / "val-layer_perplexity-epoch-0000.png").is_file()
    assert all(loss < math.log(258) - 1 for loss in found["loss"]), "every layer predicts better than chance"


def test_all_of_a_language_models_numbers_leave_padding_out() -> None:
    """The same tokens, in ragged padded batches and one by one."""
    torch.manual_seed(0)
    module = LayerwiseModule(
        TransformersBackbone(pretrained=False, task="language-modeling", config_args=GPT | {"pad_token_id": 257}),
        Aligned(),
    ).eval()
    data = StdlibCode(block_size=48, max_files=3, boundaries="separate", max_eval_samples=9, eval_batch_size=4)
    data.check(module.backbone)
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for batch in data.val_dataloader():
        with torch.no_grad():
            output = module(batch)
        tokens = output.features.values.shape[1]
        assert tokens == int((batch["attention_mask"].sum(1) - 1).sum())
        assert len(output.features.position.unique()) == tokens
        sums += output.readout.losses.double() * tokens
        count += tokens
    alone = torch.zeros(3, dtype=torch.float64)
    for batch in data.val_dataloader():
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            kept = ids[mask > 0].unsqueeze(0)
            states = module.backbone.model.transformer(kept, output_hidden_states=True).hidden_states
            norm = module.backbone.model.transformer.ln_f
            for layer, state in enumerate([norm(states[1]), norm(states[2]), states[3]]):
                logits = module.backbone.model.lm_head(state[0, :-1])
                alone[layer] += torch.nn.functional.cross_entropy(logits, kept[0, 1:], reduction="sum").double()
    torch.testing.assert_close(sums / count, (alone / count).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["SharedHead", "SeparateHeads"])
def test_a_sentence_classifier_on_a_table(head: str, layersim: Callable[..., Path], tmp_path: Path) -> None:
    rows = ["text\tlabel"] + [f"{'good' if n % 2 else 'bad'} film number {n}\t{'ab'[n % 2]}" for n in range(80)]
    (tmp_path / "reviews.tsv").write_text("\n".join(rows) + "\n")
    bert = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    directory = layersim(
        "fit",
        *COMMON,
        "--trainer.max_epochs=8",
        f"--model.head={head}",
        "--model.backbone.task=classification",
        "--model.backbone.num_classes=2",
        f"--model.backbone.config_args={json.dumps({'model_type': 'bert', 'vocab_size': 258, **bert})}",
        "--model.optimizer=AdamW",
        "--model.optimizer.lr=0.01",
        "--data=Text",
        "--data.path=reviews.tsv",
        "--data.tokenizer=bytes",
        "--data.val_fraction=0.25",
        "--data.batch_size=8",
    )
    assert record(directory)["accuracy"][-1] == 1.0
    names = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    assert ["a", "b"] in [value for state in names.values() if isinstance(state, dict) for value in state.values()]


def test_a_vocabulary_that_is_too_small_is_told(
    layersim: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "x\t0\ny\t1\n" * 20)
    small = {"model_type": "bert", "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "intermediate_size": 16}
    layersim(
        "fit",
        *COMMON,
        "--model.backbone.task=classification",
        "--model.backbone.num_classes=2",
        f"--model.backbone.config_args={json.dumps(small)}",
        "--data=Text",
        "--data.path=t.tsv",
        "--data.tokenizer=bytes",
        status=2,
    )
    assert "vocabulary has tokens 0..99, but the train data has 256" in capsys.readouterr().err
