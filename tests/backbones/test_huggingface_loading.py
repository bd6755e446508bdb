"""Opening transformers models from folders, names and configurations, and what is said where that fails."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from torch import nn

from layersim.backbones import TransformersBackbone
from layersim.data import Images
from layersim.errors import UserError
from tests.backbones.tiny_transformers import CLASSIFIERS, ENCODER, IMAGES, VISION, L, batch_for, build, read, stock

TINY_T5 = {"model_type": "t5", "d_model": 24, "num_layers": 1, "num_heads": 2, "d_ff": 32, "d_kv": 12, "vocab_size": 50}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of seven classes."""
    folder = tmp_path_factory.mktemp("classifier")
    build(CLASSIFIERS["BERT"]).model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT without classifier, as pretraining leaves it."""
    folder = tmp_path_factory.mktemp("base")
    build(CLASSIFIERS["BERT"]).model.bert.save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> TransformersBackbone:
    return TransformersBackbone(str(folder), **{"task": "classification", **options})


def test_a_folders_weights_are_loaded_in_training_mode(classifier: Path) -> None:
    """transformers hands them over in evaluation mode, which Lightning would keep: dropout would stay off."""
    loaded, source = load(classifier), build(CLASSIFIERS["BERT"])
    assert loaded.num_classes == 7
    assert all(module.training for module in loaded.modules())
    batch = batch_for(source)
    torch.testing.assert_close(read(loaded.eval(), batch)[-1], stock(source, batch), rtol=1e-5, atol=1e-5)


def test_a_folder_may_be_a_path(classifier: Path) -> None:
    loaded = TransformersBackbone(classifier, task="classification")  # type: ignore[arg-type]
    assert loaded.name == str(classifier)
    torch.testing.assert_close(loaded.state_dict(), load(classifier).state_dict(), rtol=0, atol=0)


def test_without_pretrained_a_folder_gives_the_architecture_alone(classifier: Path) -> None:
    fresh = load(classifier, pretrained=False, num_classes=4, config_args={"num_hidden_layers": 2})
    assert (fresh.num_layers, fresh.num_classes) == (2, 4)
    trained = load(classifier).model.bert.embeddings.word_embeddings.weight
    assert not torch.allclose(fresh.model.bert.embeddings.word_embeddings.weight, trained)


def test_a_new_classifier_is_told(base: Path) -> None:
    with pytest.warns(UserWarning, match=r"has no trained classifier\.bias, classifier\.weight: they start at random"):
        backbone = load(base, num_classes=5)
    assert backbone.num_classes == 5
    source = build(CLASSIFIERS["BERT"])
    batch = batch_for(source)
    torch.testing.assert_close(backbone.eval()(batch).values, source(batch).values, rtol=1e-5, atol=1e-5)


def test_a_classifier_of_another_number_of_classes_is_drawn_anew(classifier: Path) -> None:
    with pytest.warns(UserWarning, match=r"no trained classifier\.bias, classifier\.weight") as told:
        backbone = load(classifier, num_classes=5)
    assert len(told) == 1
    assert backbone.classifier[-1].weight.shape == (5, 24)  # type: ignore[index]
    whole = load(classifier)
    batch = batch_for(whole)
    torch.testing.assert_close(backbone.eval()(batch).values, whole.eval()(batch).values)


@pytest.mark.parametrize(
    ("family", "size", "tokens"), [("ViT", (12, 16), 13), ("ViT", (4, 4), 2), ("DINOv2", (16, 16), 17)]
)
def test_another_image_size_resamples_the_positions(
    tmp_path: Path, family: str, size: tuple[int, int], tokens: int
) -> None:
    """The same logits as the family's own interpolation of its positions gives, at each call."""
    source = build(IMAGES[family])
    source.model.save_pretrained(tmp_path)
    table = rf"embeddings\.position_embeddings taken from \(1, 5, 24\) to \(1, {tokens}, 24\)"
    with pytest.warns(UserWarning, match=table) as told:
        backbone = load(tmp_path, config_args={"image_size": list(size)}).eval()
    assert len(told) == 1
    assert backbone.input_size == (3, *size)
    batch = batch_for(backbone)
    options = {"interpolate_pos_encoding": True} if family == "ViT" else {}
    with torch.no_grad():
        expected = source.model(pixel_values=batch["image"], **options).logits
    torch.testing.assert_close(read(backbone, batch)[-1], expected, rtol=1e-4, atol=1e-5)


def test_other_channels_fold_the_first_layer(tmp_path: Path) -> None:
    """A gray picture then says what it says in colours."""
    source = build(IMAGES["ViT"])
    source.model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"projection\.weight taken from \(24, 3, 4, 4\) to \(24, 1, 4, 4\)"):
        backbone = load(tmp_path, config_args={"num_channels": 1}).eval()
    gray = torch.randn(3, 1, 8, 8)
    colours = {"image": gray.expand(-1, 3, -1, -1)}
    torch.testing.assert_close(read(backbone, {"image": gray})[-1], stock(source, colours), rtol=1e-4, atol=1e-5)


def test_all_of_it_at_once(tmp_path: Path) -> None:
    build(IMAGES["ViT"]).model.save_pretrained(tmp_path)
    with (
        pytest.warns(UserWarning, match=r"projection\.weight taken from .*; .*position_embeddings taken from"),
        pytest.warns(UserWarning, match="no trained classifier"),
    ):
        backbone = load(tmp_path, num_classes=3, config_args={"num_channels": 1, "image_size": 16})
    assert (backbone.num_classes, backbone.input_size) == (3, (1, 16, 16))


def test_other_sizes_are_refused(classifier: Path) -> None:
    with pytest.raises(UserError, match=r"is \(32, 24\) there, \(16, 24\) here.*config_args .*: intermediate_size\."):
        load(classifier, config_args={"intermediate_size": 16})
    with pytest.raises(
        UserError,
        match=r"position_embeddings\.weight is \(40, 24\) there, \(80, 24\) here.*: max_position_embeddings\.",
    ):
        load(classifier, config_args={"max_position_embeddings": 80})


def test_fewer_layers_than_the_checkpoint_and_more(classifier: Path) -> None:
    whole, cut = load(classifier).eval(), load(classifier, config_args={"num_hidden_layers": 2}).eval()
    batch = batch_for(whole)
    torch.testing.assert_close(cut(batch).values, whole(batch).values[:2], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"lacks weights that the model needs: bert\.encoder\.layer\.3.*config_args"):
        load(classifier, config_args={"num_hidden_layers": L + 1})


def test_weights_are_float32_unless_told_otherwise(tmp_path: Path) -> None:
    build(CLASSIFIERS["BERT"]).model.to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype, expected in ((None, torch.float32), ("auto", torch.bfloat16), ("float16", torch.float16)):
        assert next(load(tmp_path, dtype=dtype).parameters()).dtype == expected


def test_the_attention_implementation_is_handed_on() -> None:
    assert build(CLASSIFIERS["BERT"], attn_implementation="eager").model.config._attn_implementation == "eager"
    with pytest.raises(UserError, match=r"cannot open bert.*fast.*not supported"):
        build(CLASSIFIERS["BERT"], attn_implementation="fast")


def test_an_image_processor_beside_the_weights_says_how_images_are_prepared(tmp_path: Path) -> None:
    build(IMAGES["DINOv2"]).model.save_pretrained(tmp_path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 12, "width": 12}, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(tmp_path)
    backbone = load(tmp_path)
    assert backbone.data_config["mean"] == (0.1, 0.2, 0.3)
    assert backbone.data_config["crop_pct"] == 0.75
    assert backbone.input_size == (3, 12, 12), "DINOv2 interpolates its positions"
    batch = batch_for(backbone.eval())
    torch.testing.assert_close(read(backbone, batch)[-1], stock(backbone, batch), rtol=1e-5, atol=1e-5)
    assert load(tmp_path, config_args={"image_size": 8}).input_size == (3, 8, 8), "what the user types beats it"


def test_an_image_processor_that_crops_nothing_squashes(tmp_path: Path) -> None:
    build(IMAGES["ViT"]).model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    backbone = load(tmp_path)
    assert backbone.data_config["crop_mode"] == "squash"
    y, x, channel = np.ogrid[:60, :120, :3]
    image = PIL.Image.fromarray((127.5 + 120 * np.sin(x / (30 + 9 * channel)) * np.cos(y / 20)).astype(np.uint8))
    inputs = Images("nowhere").inputs(backbone)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    level = 1 / 255 / 0.5  # of 8 bits; mean and std are 0.5
    torch.testing.assert_close(inputs(image)["image"], theirs, rtol=0, atol=1.5 * level)
    backbone.data_config["crop_mode"] = "center"
    cropped = Images("nowhere").inputs(backbone)
    assert (cropped(image)["image"] - theirs).abs().max() > 50 * level, "the control"
    assert "ImageOps.fit" in cropped.usage(["image"])
    assert "ImageOps.fit" not in inputs.usage(["image"]), "which crops"


def test_an_image_processor_that_leaves_things_out(tmp_path: Path) -> None:
    """Not normalised: mean 0 and std 1. Not scaled: mean and std are meant for pixels of 0 … 255."""
    build(IMAGES["ViT"]).model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(do_normalize=False, do_resize=False, size={"height": 8, "width": 8}).save_pretrained(
        tmp_path
    )
    plain = load(tmp_path).data_config
    assert (plain["mean"], plain["std"]) == ((0.0,) * 3, (1.0,) * 3)
    transformers.ViTImageProcessor(
        do_rescale=False, size={"height": 8, "width": 8}, image_mean=[51.0] * 3, image_std=[255.0] * 3
    ).save_pretrained(tmp_path)
    unscaled = load(tmp_path).data_config
    assert unscaled["mean"] == pytest.approx((0.2,) * 3)
    assert unscaled["std"] == pytest.approx((1.0,) * 3)


def test_a_family_without_image_processor_is_told(tmp_path: Path) -> None:
    config = transformers.Dinov2WithRegistersConfig(**VISION, num_labels=7)
    transformers.Dinov2WithRegistersForImageClassification(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"without preprocessor_config\.json.*ImageNet's mean and std"):
        prepared = load(tmp_path).data_config
    assert prepared["mean"] == (0.485, 0.456, 0.406)
    assert prepared["std"] == (0.229, 0.224, 0.225)
    assert prepared["input_size"] == (3, 8, 8)


def test_a_broken_image_processor_is_told(tmp_path: Path) -> None:
    build(IMAGES["ViT"]).model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    given = json.loads((tmp_path / "preprocessor_config.json").read_text())
    for key in ("image_mean", "image_std", "rescale_factor"):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(given | {key: None}))
        with pytest.raises(UserError, match=r"image processor of .* cannot be used.*preprocessor_config"):
            load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"image processor of .* cannot be used.*preprocessor_config"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config_args": {"model_type": "bertt"}}, r"no model_type 'bertt'.*Did you mean .*bert"),
        ({"config_args": {}}, "name_or_path, or a family to build from"),
        ({"config_args": {"model_type": "bert", "num_hiden_layers": 2}}, r"no 'num_hiden_layers'.*num_hidden_layers"),
        ({"config_args": {"model_type": "dinov2", "intermediate_size": 2}}, r"'dinov2' has no 'intermediate_size'"),
        ({"config_args": {"model_type": "bert", **ENCODER, "hidden_size": 25}}, r"cannot open bert.*multiple"),
        (
            {"config_args": {"model_type": "vit"}, "task": "language-modeling"},
            r"no model of the family 'vit' for language-modeling",
        ),
        ({"config_args": {"model_type": "bert", **ENCODER}, "task": "language-modeling"}, "no causal language model"),
        ({"config_args": TINY_T5}, r"t5 fails on a tiny input: .*decoder_start_token_id"),
        ({"config_args": CLASSIFIERS["BERT"] | {"hidden_size": None}}, r"transformers (refuses|cannot open)"),
        ({"config_args": CLASSIFIERS["BERT"] | {"num_hidden_layers": None}}, r"transformers (refuses|cannot open)"),
        ({"config_args": CLASSIFIERS["BERT"] | {"vocab_size": 3}}, r"vocabulary has 3 tokens"),
        ({"config_args": CLASSIFIERS["BERT"], "num_classes": 10**12}, r"2 … 16777216 classes.*num_classes"),
        ({"config_args": CLASSIFIERS["BERT"] | {"num_labels": 10**12}}, r"2 … 16777216 classes.*num_labels"),
        (
            {"config_args": CLASSIFIERS["BERT"] | {"num_labels": 5}, "num_classes": 3},
            "one number of classes, but got num_classes 3 and, by num_labels in config_args, 5",
        ),
        (
            {"config_args": CLASSIFIERS["BERT"] | {"id2label": {0: "a", 1: "b"}}, "num_classes": 3},
            "one number of classes, but got num_classes 3 and, by id2label in config_args, 2",
        ),
        (
            {"config_args": CLASSIFIERS["BERT"] | {"torch_dtype": "bfloat16"}},
            "Expected dtype beside .*torch_dtype in it",
        ),
        ({"config_args": CLASSIFIERS["BERT"], "lora": {}}, r"such as Lora\(r=4\), got \{\}"),
        ({"config_args": CLASSIFIERS["BERT"], "lora": {"r": 4}}, r"such as Lora\(r=4\), got \{'r': 4\}"),
        ({"config_args": CLASSIFIERS["BERT"], "dtype": "float31"}, r"dtype: expected one of auto.*float31"),
        (
            {"config_args": CLASSIFIERS["BERT"], "attn_implementation": "flash_attention_2"},
            r"cannot open bert.*[Ff]lash",
        ),
        ({"config_args": {"model_type": ["bert"]}}, r"no model_type \['bert'\]"),
        (
            {"config_args": {"model_type": "gpt2"}, "task": "language-modeling", "num_classes": 3},
            r"vocabulary, 50257 here, but num_classes is 3",
        ),
        ({"config_args": {"model_type": "bert"}, "num_classes": 1}, "2 … 16777216 classes, but got 1"),
        ({"config_args": CLASSIFIERS["OPT"] | {"layerdrop": 0.1}}, r"layerdrop.*config_args"),
        ({"pretrained": True}, "Expected name_or_path"),
        ({"name_or_path": "./nowhere"}, r"no folder \./nowhere"),
    ],
)
def test_what_cannot_be_opened_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransformersBackbone(**{"task": "classification", "pretrained": False, **options})


def test_a_family_whose_language_model_looks_ahead_is_refused() -> None:
    """With its paths named ELECTRA's head can be read, but its tokens see what they are to predict."""
    paths = {"blocks": "encoder.layer", "classifier": ["generator_predictions", "generator_lm_head"]}
    with pytest.raises(UserError, match="sees the tokens after the one to predict"):
        build({"model_type": "electra", **ENCODER, "embedding_size": 24}, "language-modeling", **paths)


def test_folders_that_hold_no_model(tmp_path: Path, classifier: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model: there is no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot open"):
        load(tmp_path)
    (tmp_path / "config.json").write_text((classifier / "config.json").read_text())
    with pytest.raises(UserError, match=r"cannot open .*pretrained: false"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((classifier / "model.safetensors").read_bytes()[:300])
    with pytest.raises(UserError, match="cannot open"):
        load(tmp_path)


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be fetched from the hub.*local folder.*HF_HUB_OFFLINE"):
        TransformersBackbone("layersim/no-such-model", task="classification")


def test_revision_and_trust_reach_the_hub(monkeypatch: pytest.MonkeyPatch, classifier: Path) -> None:
    asked: list[dict[str, Any]] = []
    original = transformers.AutoConfig.from_pretrained

    def record(name: str, **options: Any) -> Any:
        asked.append(options)
        return original(name, **options)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", record)
    load(classifier, revision="v2")
    assert asked[0] == {"revision": "v2", "trust_remote_code": False}


def test_code_beside_the_weights_is_not_run_unless_trusted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "own.OwnConfig"}, "model_type": "own"}')
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match=r"trust_remote_code: true if you trust"):
        load(tmp_path)


def test_a_network_of_several_widths_is_refused() -> None:
    swin = {
        "model_type": "swin",
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1] * 3,
        "window_size": 2,
    }
    swin |= {"num_heads": [1, 2, 2]}
    with pytest.raises(UserError, match="widths 16, 32: one head cannot read them all"):
        build(swin, blocks="encoder.layers")


def test_weights_survive_the_state_dict(classifier: Path) -> None:
    """What a checkpoint of ours holds is the model's own parameters, once."""
    backbone = load(classifier)
    assert set(backbone.state_dict()) == {f"model.{name}" for name in backbone.model.state_dict()}
    other = build(CLASSIFIERS["BERT"])
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(backbone.state_dict())
    batch = batch_for(other)
    torch.testing.assert_close(other(batch).values, backbone.eval()(batch).values)
