"""timm backbones: the shared head at the last layer is the model's own forward, family by family."""

import re
from typing import Any

import pytest
import timm
import torch

from layersim.backbones import TimmBackbone
from layersim.backbones.shrinking_forward import ShrinkingForward
from layersim.errors import UserError
from layersim.heads import SharedHead

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3}

FAMILIES = {
    "ViT, class token": ("vit_tiny_patch16_224", 32, {}),
    "ViT, average pooling with fc_norm": ("vit_base_patch16_224", 32, {"global_pool": "avg"}),
    "ViT, average pooling behind the norm": ("vit_base_patch16_224", 32, {"global_pool": "avg", "fc_norm": False}),
    "DeiT": ("deit_small_patch16_224", 32, {}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", 32, {}),
    "DeiT III": ("deit3_small_patch16_224", 32, {}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", 28, {}),
    "DINOv3": ("vit_small_patch16_dinov3", 32, {}),
    "BEiT": ("beit_base_patch16_224", 32, {}),
    "EVA-02": ("eva02_tiny_patch14_224", 28, {}),
    "SigLIP": ("vit_base_patch16_siglip_224", 32, {}),
    "ViT with dropout before its classifier": ("vit_tiny_patch16_224", 32, {"drop_rate": 0.3}),
}
MORE = {
    "relative positions, no class token": ("vit_relpos_small_patch16_224", 32, {}),
    "shared relative positions": ("vit_srelpos_small_patch16_224", 32, {}),
    "relative positions with a class token": ("vit_relpos_base_patch16_cls_224", 32, {}),
    "ViT behind convolutions": ("vit_tiny_r_s16_p8_224", 64, {}),
    "NaFlexViT": ("naflexvit_base_patch16_gap", 32, {}),
    "NaFlexViT, attention pooling": ("naflexvit_base_patch16_map", 32, {}),
    "NaFlexViT, class token": ("naflexvit_base_patch16_gap", 32, {"class_token": True, "global_pool": "token"}),
    "TNT": ("tnt_s_patch16_224", 32, {"num_heads_outer": 3, "num_heads": None}),
    "DeepSeek ViT": ("deepseek_vit_412m", 56, {}),
    "Qwen3 ViT": ("qwen3_vit_88m", 64, {}),
    "Gemma 4 ViT": ("gemma4_vit_167m", 96, {}),
}


def build(name: str, size: int, extra: dict[str, Any], **options: Any) -> TimmBackbone:
    torch.manual_seed(0)
    backbone = TimmBackbone(name, num_classes=7, img_size=size, model_args=SMALL | extra, **options)
    for parameter in backbone.parameters():  # timm starts some classifiers and norms at constants that hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


@pytest.mark.parametrize("family", FAMILIES | MORE)
def test_shared_head_at_the_last_layer_gives_the_models_logits(family: str) -> None:
    backbone = build(*(FAMILIES | MORE)[family])
    images = torch.randn(2, *backbone.input_size)
    features = backbone({"image": images}).values
    assert features.shape[:2] == (3, 2)
    logits = SharedHead(backbone).logits(features, range(3))
    torch.testing.assert_close(logits[-1], backbone.model(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[0], logits[-1], atol=1e-2), "a shallow layer says something else"


@pytest.mark.parametrize("family", ["ViT, class token", "BEiT", "EVA-02", "DeiT, distilled"])
def test_each_layer_is_the_model_cut_off_there(family: str) -> None:
    """Reading layer l equals running timm's own model with the blocks above l taken out."""
    backbone = build(*FAMILIES[family])
    images = torch.randn(2, *backbone.input_size)
    logits = SharedHead(backbone).logits(backbone({"image": images}).values, range(3))
    for depth in (2, 1):
        backbone.model.blocks = backbone.model.blocks[:depth]
        torch.testing.assert_close(logits[depth - 1], backbone.model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", MORE)
def test_samples_can_leave_between_two_blocks(family: str) -> None:
    """What a family hands from block to block can be cut to the samples that stay, or it says that it cannot be."""
    backbone = build(*MORE[family])
    batch = {"image": torch.randn(4, *backbone.input_size)}
    with torch.no_grad():
        expected = backbone(batch).values
        seen: list[tuple[int, list[int]]] = []

        def visit(layer: int, rows: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            seen.append((layer, rows.tolist()))
            torch.testing.assert_close(features, expected[layer, rows], rtol=1e-4, atol=1e-4)
            return rows != 2 * layer

        if family == "TNT":
            with pytest.raises(UserError, match="TNT hand on more than their tokens"):
                ShrinkingForward(backbone)(batch, visit)
            return
        ShrinkingForward(backbone)(batch, visit)
    assert seen == [(0, [0, 1, 2, 3]), (1, [1, 2, 3]), (2, [1, 3])]


def test_features_stand_before_the_final_norm() -> None:
    backbone = build(*FAMILIES["ViT, class token"])
    seen: list[torch.Tensor] = []
    backbone.model.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out[:, 0]))
    features = backbone({"image": torch.randn(2, 3, 32, 32)}).values
    torch.testing.assert_close(features[-1], seen[0])


def test_chosen_layers_alone() -> None:
    backbone = build(*FAMILIES["ViT, class token"])
    batch = {"image": torch.randn(2, 3, 32, 32), "label": torch.tensor([1, 2]), "position": torch.tensor([5, 9])}
    every, chosen = backbone(batch), backbone(batch, [0, 2])
    torch.testing.assert_close(chosen.values, every.values[[0, 2]])
    assert chosen.targets is batch["label"]
    assert chosen.position is batch["position"]


def test_blocks_above_the_last_wanted_layer_are_not_run() -> None:
    backbone = build(*FAMILIES["ViT, class token"])
    ran: list[int] = []
    for number, block in enumerate(backbone.model.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    backbone({"image": torch.randn(1, 3, 32, 32)}, [1])
    assert ran == [0, 1]


def test_data_config_follows_the_model_as_built() -> None:
    backbone = TimmBackbone("vit_tiny_patch16_224", img_size=(16, 32), in_chans=1, num_classes=3, model_args=SMALL)
    assert backbone.input_size == (1, 16, 32)
    assert len(backbone.data_config["mean"]) == 1


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_models_of_several_widths_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"widths .*one head cannot read them all"):
        TimmBackbone(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("xcit_nano_12_p16_224", r"between its last block and its classifier .*\(cls_attn_blocks\)"),
        ("samvit_base_patch16", r"between its last block and its classifier .*\(neck\)"),
        ("convit_tiny", "class token, which timm does not give of every block"),
        ("coat_tiny", "keeps no list of blocks"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"layersim cannot read {name}: .*{why}.*Choose a plain vision transformer"):
        TimmBackbone(name)


def test_a_model_whose_head_is_not_understood_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check on construction: here the model's own forward scales what its classifier gets."""
    original = timm.models.VisionTransformer.forward_head
    monkeypatch.setattr(
        timm.models.VisionTransformer, "forward_head", lambda self, x, **kw: original(self, 1.5 * x, **kw)
    )
    with pytest.raises(UserError, match="do not give the model's own logits"):
        TimmBackbone("vit_tiny_patch16_224", img_size=32, num_classes=7, model_args=SMALL)


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(UserError, match=r"'vit_smal_patch16_224'.*Did you mean .*vit_small_patch16_224"):
        TimmBackbone("vit_smal_patch16_224")


ABSURD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown keyword": ({"dephth": 3}, r"unexpected keyword argument 'dephth'.*model_args"),
    "no block": ({"depth": 0}, "has no blocks. Set a depth from 1"),
    "fewer than no block": ({"depth": -1}, "timm cannot build .*depth"),
    "heads that do not divide the width": ({"num_heads": 5}, "divisible by num_heads.*model_args"),
    "no head": ({"num_heads": 0}, "timm cannot build .*'num_heads': 0"),
    "no patch": ({"patch_size": 0}, "timm cannot build .*'patch_size': 0"),
    "no width": ({"embed_dim": 0}, "timm cannot build .*'embed_dim': 0"),
    "a norm that is none": ({"norm_layer": "nix"}, "timm cannot build .*KeyError: 'nix'"),
    "blocks dropped twice": ({"drop_path_rate": 2}, "drop_path_rate in 0 … 1, but got 2"),
    "no pooling": ({"global_pool": ""}, "do not give the model's own logits"),
    "an option of the backbone's own": ({"num_classes": 3}, "num_classes beside the backbone's model_args"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_what_cannot_be_built_is_told_in_one_line(case: str) -> None:
    model_args, message = ABSURD[case]
    with pytest.raises(UserError, match=message) as told:
        TimmBackbone("vit_tiny_patch16_224", img_size=32, num_classes=7, model_args=SMALL | model_args)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": -32}, r"timm cannot build .*positive image size.*img_size"),
        ({"img_size": "abc"}, r"timm cannot build .*'img_size': 'abc'"),
        ({"img_size": (32,)}, r"timm cannot build .*\(32,\)"),
        ({"img_size": 8}, r"cannot take an image of \(3, 8, 8\) .*patch_size"),
        ({"in_chans": 0}, "in_chans"),
        ({"in_chans": -1}, r"timm cannot build .*'in_chans': -1"),
        ({"num_classes": 0}, "at least 2 classes, but vit_tiny_patch16_224 has 0. Set num_classes"),
        ({"num_classes": 1}, "at least 2 classes, but vit_tiny_patch16_224 has 1"),
        ({"num_classes": -1}, "at least 2 classes"),
    ],
)
def test_absurd_options_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        TimmBackbone("vit_tiny_patch16_224", **{"img_size": 32, "num_classes": 7, "model_args": SMALL, **options})
    assert "\n" not in str(told.value)


def test_images_of_another_size_are_refused() -> None:
    backbone = build(*FAMILIES["ViT, class token"])
    with pytest.raises(UserError, match=r"\(3, 32, 32\) .*gives \(1, 28, 28\).*img_size and in_chans"):
        backbone({"image": torch.randn(2, 1, 28, 28)})


def test_a_batch_without_images_is_refused() -> None:
    backbone = build(*FAMILIES["ViT, class token"])
    with pytest.raises(
        UserError, match=r"^The batch has no image, which the model reads; it is label\. Change the data"
    ):
        backbone({"label": torch.zeros(2)})
    with pytest.raises(UserError, match=r"a batch as a mapping, .* but got a Tensor\."):
        backbone(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("layers", [[0, 7], [-1], [], [1, 0], [1, 1]])
def test_layers_that_are_not_there_or_not_ascending_are_refused(layers: list[int]) -> None:
    backbone = build(*FAMILIES["ViT, class token"])
    with pytest.raises(UserError, match=rf"^Expected ascending layers of 0 … 2, but got {re.escape(str(layers))}\.$"):
        backbone(backbone.small_batch(), layers)
