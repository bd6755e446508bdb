"""torch.export archives and ONNX files of truncated models, on batches of other sizes than they were traced on."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersim.backbones import TransformersBackbone
from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.export import exporting, programs
from layersim.export.exporting import export_as
from layersim.export.truncation import library_of, truncate
from layersim.heads import Head, LinearProbes, SharedHead, TunedLens
from tests.backbones import test_vision, tiny_transformers
from tests.backbones.tiny_transformers import CLASSIFIERS, ENCODERS
from tests.export.exported import separate

RAW = partial(SharedHead, norm="none")


def build(family: str) -> tuple[Backbone, Head, dict[str, Tensor]]:
    """A backbone, separate heads, and inputs of 5 samples; texts of 9 tokens, padded, of two sentences each."""
    if family in test_vision.FAMILIES:
        vision = test_vision.build(*test_vision.FAMILIES[family])
        return vision, separate(vision), {"image": torch.randn(5, *vision.input_size)}
    backbone = tiny_transformers.build(CLASSIFIERS[family])
    mask = (torch.arange(9) < torch.tensor([9, 4, 6, 9, 7]).unsqueeze(1)).long()
    inputs = {"input_ids": torch.randint(5, 50, (5, 9)) * mask, "attention_mask": mask}
    if family == "BERT":
        inputs["token_type_ids"] = (torch.arange(9) > 2).long().expand(5, 9) * mask
    return backbone, separate(backbone), inputs


def readout(backbone: Backbone, head: Head, inputs: dict[str, Tensor], layer: int) -> Tensor:
    with torch.no_grad():
        return head.logits(backbone(inputs, [layer]).values, [layer])[0]


@pytest.mark.parametrize("family", ["ViT, class token", "BERT"])
def test_a_torch_archive_gives_the_readout(family: str, tmp_path: Path) -> None:
    backbone, head, inputs = build(family)
    to = export_as("torch", backbone, head, 2, tmp_path / "export")
    found: dict[str, Any] = dict(inputs)
    code = (to / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("model.pt2", str(to / "model.pt2")), found)
    torch.testing.assert_close(found["logits"], readout(backbone, head, inputs, 1), rtol=1e-5, atol=1e-5)
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    torch.testing.assert_close(found["model"](**one), readout(backbone, head, one, 1), rtol=1e-5, atol=1e-5)
    assert json.loads((to / "layersim.json").read_text())["format"] == "torch"


@pytest.mark.parametrize("family", ["ViT, class token", "ViT, average pooling with fc_norm", "GPT-2"])
@pytest.mark.parametrize("make", [TunedLens, LinearProbes, partial(LinearProbes, features="normed"), RAW])
def test_what_no_stock_model_reads_a_program_does(make: Any, family: str, tmp_path: Path) -> None:
    """A map before the norm, and no norm at all; in a stock model they are refused, but where the norm stays."""
    backbone, _, inputs = build(family)
    head = make(backbone).eval()
    own = head.maps if isinstance(head, TunedLens) else head.parts_at(1)[1]
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    expected = readout(backbone, head, inputs, 1)
    model = truncate(backbone, head, 2, stock=False)
    torch.testing.assert_close(library_of(backbone).output(model, inputs), expected, rtol=1e-4, atol=1e-4)
    if getattr(head, "features", "raw") == "raw":
        with pytest.raises(UserError, match="reads layer 2 raw or through a map, which no stock model does"):
            truncate(backbone, head, 2)
    if (make, family) == (TunedLens, "ViT, class token"):
        found = torch.export.load(export_as("torch", backbone, head, 2, tmp_path / "export") / "model.pt2").module()(
            **inputs
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_map_has_no_place_where_the_model_has_no_norm() -> None:
    backbone, _, _ = build("BERT")
    with pytest.raises(
        UserError, match="The final norm or the classifier of BertForSequenceClassification is no single part"
    ):
        truncate(backbone, TunedLens(backbone), 2, stock=False)
    with pytest.raises(UserError, match="in whose place the head's, of weight, bias, cannot stand"):
        truncate(backbone, LinearProbes(backbone, "normed"), 2)


@pytest.mark.parametrize("family", ["ViT, class token", "BERT"])
def test_onnxruntime_gives_the_readout(family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    backbone, head, inputs = build(family)
    to = export_as("onnx", backbone, head, 2, tmp_path / "export")
    found: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
    code = (to / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("model.onnx", str(to / "model.onnx")), found)
    expected = readout(backbone, head, inputs, 1)
    torch.testing.assert_close(torch.from_numpy(found["logits"]), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(torch.from_numpy(found["logits"]), readout(backbone, head, inputs, 2), atol=1e-2)


def test_onnx_without_its_packages_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "onnxscript" else object())
    backbone, head, _ = build("ViT, class token")
    with pytest.raises(UserError, match=r"needs onnxscript, not installed here: pip install 'layersim\[onnx\]'"):
        export_as("onnx", backbone, head, 2, tmp_path / "export")


def test_onnx_of_bfloat16_is_refused_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda name: object())
    monkeypatch.delattr(exporting, "truncate")
    options = {"task": "classification", "pretrained": False, "config_args": ENCODERS["BERT"], "dtype": "bfloat16"}
    backbone = TransformersBackbone(**options)
    with pytest.raises(UserError, match=r"no bfloat16.*dtype to float32"):
        export_as("onnx", backbone, SharedHead(backbone), 2, tmp_path / "export")


def test_a_model_that_cannot_be_followed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, _, _ = build("ViT, class token")

    class Chooses(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.sum(dim=(1, 2)) if image.sum() > 0 else image.mean(dim=(1, 2))

    monkeypatch.setattr(exporting, "truncate", lambda *_, **__: Chooses())
    with pytest.raises(UserError, match=r"torch.export cannot follow Chooses: .*Export a stock checkpoint instead"):
        export_as("torch", backbone, SharedHead(backbone), 2, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_a_program_that_says_something_else_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, head, _ = build("ViT, class token")
    archive = exporting.torch_archive
    monkeypatch.setattr(exporting, "torch_archive", lambda *args: [archive(*args)[0] + 1e-2])
    with pytest.raises(UserError, match=r"reads another model .*differ by 1\.0e-02.*Export a stock checkpoint instead"):
        export_as("torch", backbone, head, 2, tmp_path / "export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "takes"), [("BERT", True), ("ALBERT", True), ("DistilBERT", False)])
def test_models_that_tell_sentences_of_a_pair_apart_take_their_types(family: str, takes: bool) -> None:
    example = programs.example(tiny_transformers.build(ENCODERS[family]), 2)
    assert ("token_type_ids" in example) is takes
    assert {tuple(tensor.shape) for tensor in example.values()} == {(4, 8)}
