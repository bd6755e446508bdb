"""Stock checkpoints: the library alone loads them, and its logits are the readout."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from timm.data import resolve_model_data_config
from tokenizers import Tokenizer, models
from torch import nn

from layersim.backbones import Lora, TimmBackbone, TransformersBackbone
from layersim.backbones.base import Backbone
from layersim.backbones.tokens import predicting_tokens
from layersim.errors import UserError
from layersim.export import exporting, transformers_library
from layersim.export.exporting import export_as
from layersim.export.serving import Serving
from layersim.export.truncation import library_of, readout_without
from layersim.heads import Head, SharedHead
from layersim.runs.models import open_module, read_source
from tests.backbones import test_vision, tiny_transformers
from tests.backbones.tiny_transformers import CAUSAL, CLASSIFIERS
from tests.export.exported import batch, readout, separate

NAMES = ["a", "b", "c", "d", "e", "f", "g"]

FRESH = {
    "vit": ("ViT, class token", "shared", 2),
    "deit": ("DeiT", "separate", 2),
    "deit distilled": ("DeiT, distilled", "separate", 1),
    "average pooling": ("ViT, average pooling with fc_norm", "shared", 2),
    "registers": ("DINOv2 with registers", "separate", 2),
    "beit": ("BEiT", "shared", [0, 2]),
    "eva": ("EVA-02", "shared", 2),
    "bert": ("BERT", "separate", 2),
    "llama": ("Llama", "shared", [0, 2]),
    "gpt2": ("GPT-2", "shared", 2),
}

LOADS_THEM_ALL = textwrap.dedent("""
    import os, pathlib, sys, torch
    for folder in sys.argv[1:]:
        os.chdir(folder)
        code = pathlib.Path("README.md").read_text().split("```python\\n")[1].split("```")[0]
        loaded = {}
        exec(code, loaded)
        with torch.no_grad():
            output = loaded["model"](**torch.load("../inputs-" + pathlib.Path(folder).name))
        output = output if isinstance(output, torch.Tensor) else output.logits
        torch.save(output, "../logits-" + pathlib.Path(folder).name)
    assert not [name for name in sys.modules if name.startswith("layersim")]
""")


def build(family: str) -> Backbone:
    if family in test_vision.FAMILIES:
        return test_vision.build(*test_vision.FAMILIES[family])
    if family == "GPT-2":
        return tiny_transformers.build(CAUSAL[family], "language-modeling")
    return tiny_transformers.build(CLASSIFIERS[family])


def loaded(folder: Path) -> Any:
    """A transformers export, by the class that its configuration names."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder)


def logits(backbone: Backbone, model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return library_of(backbone).logits(model, batch(backbone))


def test_a_fresh_process_without_layersim_gives_the_readouts(tmp_path: Path) -> None:
    """With the very lines that each export's README shows."""
    expected = {}
    for name, (family, kind, layers) in FRESH.items():
        backbone = build(family)
        head: Head = separate(backbone) if kind == "separate" else SharedHead(backbone).eval()
        export_as("stock", backbone, head, layers, tmp_path / name)
        torch.save(backbone.inputs(batch(backbone)), tmp_path / f"inputs-{name}")
        if isinstance(layers, int):
            expected[name] = readout(backbone, head, layers - 1)
        else:
            expected[name] = readout_without(backbone, head, layers, batch(backbone))
    folders = [str(tmp_path / name) for name in FRESH]
    subprocess.run([sys.executable, "-c", LOADS_THEM_ALL, *folders], cwd=tmp_path, check=True, capture_output=True)
    for name, wanted in expected.items():
        found = torch.load(tmp_path / f"logits-{name}")
        if name == "gpt2":
            found = found[batch(build("GPT-2"))["attention_mask"] > 0]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_from_pretrained_loads_every_family(family: str, tmp_path: Path) -> None:
    backbone = tiny_transformers.build(CLASSIFIERS[family])
    head = separate(backbone)
    export_as("stock", backbone, head, 2, tmp_path / "two", serving=Serving(NAMES))
    model = loaded(tmp_path / "two")
    torch.testing.assert_close(logits(backbone, model), readout(backbone, head, 1), rtol=1e-5, atol=1e-5)
    assert model.config.num_hidden_layers == 2
    assert model.config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("family", CAUSAL)
def test_from_pretrained_loads_every_language_model(family: str, tmp_path: Path) -> None:
    backbone = tiny_transformers.build(CAUSAL[family], "language-modeling")
    for head in (SharedHead(backbone).eval(), separate(backbone)):
        export_as("stock", backbone, head, 2, tmp_path / type(head).__name__)
        model = loaded(tmp_path / type(head).__name__)
        torch.testing.assert_close(logits(backbone, model), readout(backbone, head, 1), rtol=1e-5, atol=1e-5)


def test_a_language_model_without_a_block_still_generates_with_its_cache(tmp_path: Path) -> None:
    """Each block keeps keys and values under its own number: a number that is not there would fail or mix them up."""
    backbone = tiny_transformers.build(CAUSAL["Llama"], "language-modeling")
    export_as("stock", backbone, SharedHead(backbone).eval(), [0, 2], tmp_path / "without")
    model = loaded(tmp_path / "without")
    prompt = torch.tensor([[7, 8, 9]])
    found, plain = (
        model.generate(prompt, max_new_tokens=5, do_sample=False, use_cache=cached, pad_token_id=0)
        for cached in (True, False)
    )
    assert torch.equal(found, plain)


def test_timm_opens_the_folder_by_its_own_scheme(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        num_classes=7,
        img_size=(16, 32),
        in_chans=1,
        model_args=test_vision.SMALL | {"drop_path_rate": 0.1},
    ).eval()
    head = SharedHead(backbone).eval()
    nn.init.normal_(backbone.model.head.weight)
    to = export_as("stock", backbone, head, 2, tmp_path / "with a space", serving=Serving(NAMES))
    model = timm.create_model(f"local-dir:{to}", pretrained=True).eval()
    torch.testing.assert_close(logits(backbone, model), readout(backbone, head, 1), rtol=1e-5, atol=1e-5)
    found = resolve_model_data_config(model)
    for key in ("input_size", "mean", "std", "interpolation"):
        assert list(found[key]) == list(backbone.data_config[key])
    config = json.loads((to / "config.json").read_text())
    assert config["model_args"]["depth"] == 2
    assert config["label_names"] == NAMES


def test_the_whole_model(tmp_path: Path) -> None:
    backbone = build("ViT, class token")
    to = export_as("stock", backbone, SharedHead(backbone).eval(), 3, tmp_path / "whole")
    model = timm.create_model(f"local-dir:{to}", pretrained=True).eval()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in backbone.model.state_dict().items())
    assert "all 3 layers" in (to / "README.md").read_text()


def test_the_record_counts_layers_from_one(tmp_path: Path) -> None:
    backbone = build("BERT")
    to = export_as("stock", backbone, SharedHead(backbone).eval(), [0, 2], tmp_path / "export")
    record = json.loads((to / "layersim.json").read_text())
    assert record["layers"] == [1, 3]
    assert record["of"] == 3
    assert record["format"] == "stock"
    assert record["versions"]["transformers"] == transformers.__version__
    assert "# BertForSequenceClassification, 2 of 3 layers (1, 3)\n" in (to / "README.md").read_text()


def test_an_export_that_stands_there_is_kept_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build("ViT, class token")
    head = SharedHead(backbone).eval()
    to = export_as("stock", backbone, head, 1, tmp_path / "export")
    with monkeypatch.context() as patch:
        patch.delattr(exporting, "truncate")
        with pytest.raises(UserError, match=r"exists and is kept.*--overwrite"):
            export_as("stock", backbone, head, 2, to)
    export_as("stock", backbone, head, 2, to, overwrite=True)
    assert json.loads((to / "layersim.json").read_text())["layers"] == [1, 2]


def test_a_failure_while_writing_leaves_the_old_export_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after the weights; then the weights do not read back as they were written."""
    backbone = build("ViT, class token")
    head = SharedHead(backbone).eval()
    to = export_as("stock", backbone, head, 1, tmp_path / "export")
    before = (to / "model.safetensors").read_bytes()

    def full(*_: object) -> str:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "readme", full)
        for place, overwrite in ((to, True), (tmp_path / "new", False)):
            with pytest.raises(OSError, match="No space left"):
                export_as("stock", backbone, head, 2, place, overwrite=overwrite)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "agree", lambda *_, **__: False)
        with pytest.raises(UserError, match="timm reads another model from the export than was written"):
            export_as("stock", backbone, head, 2, tmp_path / "new")
    assert os.listdir(tmp_path) == ["export"]
    assert (to / "model.safetensors").read_bytes() == before


def test_class_names_of_another_number_are_refused(tmp_path: Path) -> None:
    backbone = build("ViT, class token")
    with pytest.raises(UserError, match="names of 7 classes, but got 2"):
        export_as("stock", backbone, SharedHead(backbone), 2, tmp_path / "export", serving=Serving(["a", "b"]))
    assert not list(tmp_path.iterdir())
    names: Any = np.array(list("abcdefg"))
    folder = export_as("stock", backbone, SharedHead(backbone), 2, tmp_path / "export", serving=Serving(names))
    assert json.loads((folder / "layersim.json").read_text())["classes"] == names.tolist()


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_adapters_are_merged(tmp_path: Path, name: str) -> None:
    pytest.importorskip("peft", reason="needs the extra `lora`")
    backbone = tiny_transformers.build(CAUSAL[name], "language-modeling", lora=Lora(r=2, alpha=6.0))
    folder = export_as("stock", backbone, SharedHead(backbone).eval(), 2, tmp_path / "cut")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert not [name for name in loaded.state_dict() if "lora" in name]
    inputs = batch(backbone)
    with torch.no_grad():
        found = predicting_tokens(inputs)(loaded(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits)
    torch.testing.assert_close(found, readout(backbone, SharedHead(backbone).eval(), 1), rtol=1e-5, atol=1e-5)


def test_a_head_wider_than_its_model_is_written_in_the_models_precision(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra `lora`")
    torch.manual_seed(0)
    options = {"task": "language-modeling", "pretrained": False, "config_args": CAUSAL["Llama"], "dtype": "bfloat16"}
    backbone = TransformersBackbone(**options, lora=Lora(r=2)).eval()
    folder = export_as("stock", backbone, SharedHead(backbone).eval(), 2, tmp_path / "cut")
    written = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert {weight.dtype for weight in written.parameters()} == {torch.bfloat16}
    assert torch.equal(written.lm_head.weight, backbone.model.lm_head.weight.bfloat16())


def from_folder(folder: Path, **options: Any) -> TransformersBackbone:
    """A backbone of BERT's weights in a folder."""
    if not folder.exists():
        build("BERT").model.save_pretrained(folder)
    return TransformersBackbone(str(folder), task="classification", **options).eval()


def words(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def test_the_tokenizer_beside_the_weights_comes_along(tmp_path: Path) -> None:
    backbone = from_folder(tmp_path / "source")
    alone = export_as("stock", backbone, SharedHead(backbone).eval(), 2, tmp_path / "alone")
    assert not list(alone.glob("*token*"))
    words(tmp_path / "source")
    to = export_as("stock", backbone, SharedHead(backbone).eval(), 2, tmp_path / "export")
    assert transformers.AutoTokenizer.from_pretrained(to).convert_tokens_to_ids(["two", "one"]) == [2, 1]


def test_a_tokenizer_that_cannot_be_opened_is_not_left_out(tmp_path: Path) -> None:
    backbone = from_folder(tmp_path / "source")
    words(tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"The tokenizer of .*source, which belongs in the export, cannot be opened"):
        export_as("stock", backbone, SharedHead(backbone).eval(), 2, tmp_path / "export")
    assert os.listdir(tmp_path) == ["source"]


def test_the_tokenizer_is_of_the_models_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Hub:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            asked.append((name, options))
            raise OSError("no such revision")

    backbone = from_folder(tmp_path / "source", revision="v1.2", trust_remote_code=True)
    backbone.tokenizer_name = "someone/model"
    monkeypatch.setattr(transformers_library.transformers, "AutoTokenizer", Hub)
    with pytest.raises(UserError, match=r"The tokenizer of someone/model.*no such revision"):
        export_as("stock", backbone, SharedHead(backbone).eval(), 2, tmp_path / "export")
    assert asked == [("someone/model", {"revision": "v1.2", "trust_remote_code": True})]


def test_an_export_is_opened_with_its_own_channels(tmp_path: Path) -> None:
    small = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    backbone = TimmBackbone("vit_tiny_patch16_224", num_classes=3, img_size=8, in_chans=1, model_args=small).eval()
    folder = export_as("stock", backbone, SharedHead(backbone).eval(), 2, tmp_path / "grey")
    opened = open_module(read_source(str(folder)), device="cpu").backbone
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(opened({"image": image}).values, backbone({"image": image}).values)
