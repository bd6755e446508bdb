"""timm backbones: the shared head at the last layer is the model's own forward, family by family."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from layersim.backbones import TimmBackbone
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


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_head_at_the_last_layer_gives_the_models_logits(family: str) -> None:
    backbone = build(*FAMILIES[family])
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


def test_local_weights_are_loaded(tmp_path: Path) -> None:
    source = build(*FAMILIES["ViT, class token"])
    path = tmp_path / "weights.pth"
    torch.save(source.model.state_dict(), path)
    loaded = build(*FAMILIES["ViT, class token"])
    with torch.no_grad():
        loaded.model.head.weight.zero_()
    torch.manual_seed(1)
    loaded = TimmBackbone(
        "vit_tiny_patch16_224", checkpoint_path=str(path), num_classes=7, img_size=32, model_args=SMALL
    )
    torch.testing.assert_close(loaded.model.head.weight, source.model.head.weight)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_models_of_several_widths_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"widths .*one head cannot read them all"):
        TimmBackbone(name)


def test_a_model_without_class_token_intermediates_is_refused() -> None:
    with pytest.raises(UserError, match="layersim cannot read xcit_nano"):
        TimmBackbone("xcit_nano_12_p16_224")


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


def test_an_unknown_keyword_is_named() -> None:
    with pytest.raises(UserError, match=r"unexpected keyword argument 'dephth'.*model_args"):
        TimmBackbone("vit_tiny_patch16_224", model_args={"dephth": 3})


def test_images_of_another_size_are_refused() -> None:
    backbone = build(*FAMILIES["ViT, class token"])
    with pytest.raises(UserError, match=r"3 × 32 × 32 .*gives 1 × 28 × 28 .*img_size and in_chans"):
        backbone({"image": torch.randn(2, 1, 28, 28)})


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot take an image of 3 × 8 × 8.*patch_size"):
        TimmBackbone("vit_tiny_patch16_224", img_size=8, model_args=SMALL)


def test_weights_that_are_missing_broken_or_anothers(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        TimmBackbone("vit_tiny_patch16_224", checkpoint_path=str(path), num_classes=7, img_size=32, model_args=SMALL)

    with pytest.raises(UserError, match="no weights file"):
        load(tmp_path / "nothing.pth")
    broken = tmp_path / "broken.pth"
    torch.save({"head.weight": torch.zeros(100)}, broken)
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match="not a readable weights file"):
        load(broken)
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, **SMALL).state_dict(), other)
    with pytest.raises(UserError, match=r"do not fit the model.*num_classes"):
        load(other)
    with pytest.raises(UserError, match="pretrained or checkpoint_path"):
        TimmBackbone("vit_tiny_patch16_224", pretrained=True, checkpoint_path=str(other))
