"""ONNX files that compute no layer behind the one at which the last sample left."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.exits import Confidence, EarlyExit, Entropy, Patience, Policy, Similarity, exit_table
from layersim.export import export_leaving
from layersim.heads import Head, SharedHead
from layersim.outputs import LayerFeatures
from tests.backbones import test_vision, tiny_transformers
from tests.export.exported import separate

onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CASES: list[tuple[str, Policy, bool]] = [
    ("ViT, class token", Patience(), True),
    ("DeBERTa-v2 with a convolution" if "LAYERSIM_LONG" in os.environ else "BERT", Entropy(), True),
    ("GPT-2", Similarity(), False),
]
"""The family, the policy, whether heads are separate."""


def built(family: str, heads: bool) -> tuple[Backbone, Head]:
    if family in test_vision.FAMILIES:
        backbone: Backbone = test_vision.build(*test_vision.FAMILIES[family])
    else:
        backbone = tiny_transformers.build(tiny_transformers.CLASSIFIERS[family])
    return backbone, separate(backbone) if heads else SharedHead(backbone).eval()


def drawn(backbone: Backbone, samples: int) -> dict[str, Tensor]:
    """Inputs of so many samples, texts of 1 … 9 tokens."""
    generator = torch.Generator().manual_seed(5)
    if backbone.input_size:
        return {"image": torch.randn(samples, *backbone.input_size, generator=generator)}
    lengths = torch.randint(1, 10, (samples, 1), generator=generator)
    mask = (torch.arange(9) < lengths).long()
    given = {"input_ids": torch.randint(5, 50, (samples, 9), generator=generator) * mask, "attention_mask": mask}
    types = getattr(backbone.model.config, "type_vocab_size", 0)
    return given | ({"token_type_ids": torch.zeros_like(mask)} if types > 1 else {})


def early_exit(family: str, policy: Policy, heads: bool, inputs: int = 400) -> tuple[EarlyExit, dict[str, Tensor]]:
    """Exits at the median score of the first layer that gives any, behind temperatures, so that some leave and some
    do not."""
    backbone, head = built(family, heads)
    given = drawn(backbone, inputs)
    temperatures = torch.tensor([0.5, 2.0, 1.0])
    with torch.no_grad():
        features = LayerFeatures(backbone(given).values, torch.zeros(inputs, dtype=torch.int64))
    scores = exit_table(head, features, policy, temperatures).scores
    threshold = (
        2.0 if policy.name == "patience" else next(row for row in scores if row.isfinite().all()).median().item()
    )
    return EarlyExit(backbone, head, policy, threshold, temperatures), given


def batches(given: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    parts = {name: tensor.split(size) for name, tensor in given.items()}
    return (dict(zip(parts, rows, strict=True)) for rows in zip(*parts.values(), strict=True))


@pytest.mark.parametrize(("family", "policy", "heads"), CASES)
def test_predictions_and_exit_layers_are_those_of_pytorch(
    family: str, policy: Policy, heads: bool, tmp_path: Path
) -> None:
    """One by one, and in batches whose samples leave at different layers. Scores at the threshold, to rounding, may
    fall on either side."""
    leaves, given = early_exit(family, policy, heads)
    folder = export_leaving(leaves, tmp_path / "export")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    expected = leaves(given)
    assert len(expected.exit_layers.unique()) > 1
    for size in (1, 7):
        told = [session.run(None, {name: rows.numpy() for name, rows in one.items()}) for one in batches(given, size)]
        logits, layers = (np.concatenate(parts) for parts in zip(*told, strict=True))
        same = layers == expected.exit_layers.numpy() + 1
        assert same.mean() > 0.99
        np.testing.assert_allclose(logits[same], expected.logits.numpy()[same], rtol=1e-4, atol=1e-5)


def test_layers_that_nobody_needs_are_not_computed(tmp_path: Path) -> None:
    """By the file's own record of the operators that ran: half the matrix products and less where all leave at once."""
    leaves, given = early_exit("ViT, class token", Confidence(), False)
    folder = export_leaving(leaves, tmp_path / "export")
    left = leaves(given).exit_layers
    counts = []
    for layer in (0, 2):
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / f"profile-{layer}")
        session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        _, layers = session.run(None, {"image": given["image"][left == layer].numpy()})
        assert layers.max() == layer + 1
        ran = json.loads(Path(session.end_profiling()).read_text())
        names = [event["args"]["op_name"] for event in ran if event.get("cat") == "Node" and "op_name" in event["args"]]
        counts.append(sum("MatMul" in name for name in names))
    assert 0 < counts[0] < 0.5 * counts[1]


def test_the_readme_serves_it_without_torch(tmp_path: Path) -> None:
    leaves, given = early_exit("ViT, class token", Confidence(), False, inputs=16)
    folder = export_leaving(leaves, tmp_path / "export")
    np.save(tmp_path / "image.npy", given["image"].numpy())
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    program = "\n".join(
        [
            "import sys, numpy",
            "sys.modules |= dict.fromkeys(('torch', 'layersim', 'timm', 'transformers'))  # cannot be imported",
            f"image = numpy.load({str(tmp_path / 'image.npy')!r})",
            code,
            "print(classes.tolist(), exit_layers.tolist())",
        ]
    )
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    expected = leaves(given)
    assert said.strip() == f"{expected.predictions.tolist()} {(expected.exit_layers + 1).tolist()}"
    record = json.loads((folder / "layersim.json").read_text())
    assert record["exits"] == {"policy": "confidence", "threshold": leaves.threshold}


def test_a_threshold_of_scores_under_autocast_is_refused(tmp_path: Path) -> None:
    leaves, _ = early_exit("ViT, class token", Confidence(), False, inputs=16)
    leaves.autocast = torch.bfloat16
    with pytest.raises(UserError, match=r"under autocast to torch.bfloat16.*--trainer.precision=32-true"):
        export_leaving(leaves, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
