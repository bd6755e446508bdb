"""A language model on two real processes against one, where the processes hold unequal numbers of tokens."""

import json
from pathlib import Path

import pytest
import torch

from tests.processes import last_record, run_command

GPT = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 258, "n_positions": 64}
GPT |= {"pad_token_id": 257} | dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0)
FLAGS = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
    "--model.backbone=TransformersBackbone",
    "--model.backbone.pretrained=false",
    "--model.backbone.task=language-modeling",
    f"--model.backbone.config_args={json.dumps(GPT)}",
    "--data=LanguageModeling",
    "--data.tokenizer=bytes",
    "--data.block_size=64",
    "--data.boundaries=separate",  # a block is a document
    "--data.val_fraction=0.18",  # 45 documents of 250
    "--data.eval_batch_size=8",  # 8, 8, 8, 8, 8, 5: one process reads 24 documents, the other 21
]


def documents(root: Path) -> str:
    return f"--data.path={root / 'documents.jsonl'}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 250 documents of 4 to 50 bytes."""
    root = tmp_path_factory.mktemp("ddp-text")
    rows = [{"text": "".join(chr(97 + n * k % 23) for k in range(4 + n * 7 % 47))} for n in range(250)]
    (root / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def trained(root: Path) -> tuple[Path, Path]:
    """The same epoch of plain SGD, 15 steps of 14 documents (the last of 9), on one process and on two."""
    flags = [*FLAGS, documents(root), "--trainer.max_epochs=1", "--model.optimizer=SGD", "--model.optimizer.lr=0.5"]
    one = run_command("fit", 1, root, *flags, "--data.batch_size=14")
    return one, run_command("fit", 2, root, *flags, "--data.batch_size=7")


def test_gradients_are_weighed_by_tokens(trained: tuple[Path, Path]) -> None:
    one, two = (
        torch.load(directory / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for directory in trained
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_measured_on_tokens_is_the_same(trained: tuple[Path, Path], root: Path) -> None:
    """From one checkpoint: integers and shares exactly, sums of floating numbers to a millionth."""
    checkpoint = f"--ckpt_path={trained[0] / 'checkpoints/last.ckpt'}"
    measures = {
        "cosine": {"class_path": "layersim.similarity.CosineSimilarity", "init_args": {"max_samples": 500}},
        "cka": {
            "class_path": "layersim.similarity.LinearCKA",
            "init_args": {"estimator": "debiased", "max_samples": 500},
        },
        "minibatch": {"class_path": "layersim.similarity.LinearCKA", "init_args": {"batch_size": 16}},
    }
    callbacks = [
        {"class_path": "callbacks.LayerAccuracyMonitor"},
        {"class_path": "callbacks.SaturationMonitor"},
        {"class_path": "callbacks.SimilarityHeatmaps", "init_args": {"measures": measures}},
        {"class_path": "callbacks.RunRecorder"},
    ]
    flags = [*FLAGS, documents(root), checkpoint, f"--trainer.callbacks={json.dumps(callbacks)}"]
    one, two = (last_record(run_command("validate", processes, root, *flags)) for processes in (1, 2))
    assert one["samples"] == sum(4 + n * 7 % 47 for n in range(205, 250))  # bytes, each predicting the next or the end
    for key in ("samples", "saturation", "accuracy"):
        assert one[key] == two[key], key
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    for measure in measures:
        torch.testing.assert_close(
            torch.tensor(two[measure], dtype=torch.float64),
            torch.tensor(one[measure], dtype=torch.float64),
            rtol=0,
            atol=1e-6,
        )
