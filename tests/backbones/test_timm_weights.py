"""A local weights file for a timm model: as timm adapts published weights to a new task, or refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from layersim.backbones import TimmBackbone
from layersim.errors import UserError
from tests.backbones.test_vision import SMALL

NAME = "vit_tiny_patch16_224"
Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(weights: Any, name: str = "weights.pth") -> str:
        torch.save(weights, tmp_path / name)
        return str(tmp_path / name)

    return write


def weights_of(name: str = NAME, **options: Any) -> dict[str, Tensor]:
    model = timm.create_model(name, **{"img_size": 32, "num_classes": 7, **SMALL, **options})
    torch.manual_seed(2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state: dict[str, Tensor] = model.state_dict()
    return state


def load(path: str, name: str = NAME, model_args: dict[str, Any] | None = None, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    given = {"img_size": 32, "num_classes": 7, "model_args": SMALL | (model_args or {}), **options}
    backbone = TimmBackbone(name, checkpoint_path=path, **given)
    assert backbone.num_classes == backbone.classifier.out_features
    state: dict[str, Tensor] = backbone.model.state_dict()
    return state


def as_published(weights: dict[str, Tensor], name: str = NAME, **options: Any) -> dict[str, Tensor]:
    """What timm itself makes of weights that it takes for the published ones of 7 classes."""
    overlay = {"state_dict": weights, "source": "", "num_classes": 7}
    options = {"img_size": 32, "num_classes": 7, **SMALL, **options}
    state: dict[str, Tensor] = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, **options
    ).state_dict()
    return state


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], drawn: tuple[str, ...] = ()) -> None:
    assert found.keys() == expected.keys()
    for key, value in found.items():
        if key not in drawn:
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0, msg=key)


def test_weights_of_the_same_task_are_loaded_as_they_are(save: Save) -> None:
    weights = weights_of()
    assert_same(load(save(weights)), weights)
    assert_same(load(save(weights), num_classes=None), weights), "the file says how many classes there are"


def test_a_weights_file_in_the_home_folder(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of()
    save(weights)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(load("~/weights.pth"), weights)
    with pytest.raises(
        UserError, match=r"There is no weights file ~/other\.pth\. Change the backbone's checkpoint_path"
    ):
        load("~/other.pth")


def test_another_number_of_classes_draws_the_head_anew(save: Save) -> None:
    weights = weights_of()
    head = ("head.weight", "head.bias")
    with pytest.warns(
        UserWarning, match=r"adapted .*: head\.weight, head\.bias drawn anew for 3 classes .*has 7\)"
    ) as told:
        found = load(save(weights), num_classes=3)
    assert len(told) == 1
    assert_same(found, as_published(weights, num_classes=3), head)
    assert found["head.weight"].shape == (3, SMALL["embed_dim"])
    assert found["head.weight"].std() < 0.1, "drawn as timm draws it, not with the file's 0.2"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"img_size": 48}, r"pos_embed taken from 1 × 5 × 48 to 1 × 10 × 48"),
        ({"img_size": (32, 48)}, r"pos_embed taken from 1 × 5 × 48 to 1 × 7 × 48"),
        ({"in_chans": 1}, r"patch_embed\.proj\.weight taken from 48 × 3 × 16 × 16 to 48 × 1 × 16 × 16"),
        ({"in_chans": 4}, r"patch_embed\.proj\.weight taken from 48 × 3 × 16 × 16 to 48 × 4 × 16 × 16"),
    ],
)
def test_another_size_or_other_channels_are_adapted_as_timm_does(
    save: Save, options: dict[str, Any], told: str
) -> None:
    weights = weights_of()
    with pytest.warns(UserWarning, match=told):
        found = load(save(weights), **options)
    assert_same(found, as_published(weights, **options))
    if options == {"in_chans": 1}:
        torch.testing.assert_close(
            found["patch_embed.proj.weight"], weights["patch_embed.proj.weight"].sum(1, keepdim=True)
        )


def test_all_at_once_is_told_in_one_line(save: Save) -> None:
    with pytest.warns(UserWarning, match=r"head\.weight.*; pos_embed .*; patch_embed") as told:
        load(save(weights_of()), num_classes=2, img_size=48, in_chans=2)
    assert len(told) == 1


def test_gray_weights_serve_colours(save: Save) -> None:
    weights = weights_of(in_chans=1)
    with pytest.warns(UserWarning, match="48 × 1 × 16 × 16 to 48 × 3"):
        found = load(save(weights))
    torch.testing.assert_close(
        found["patch_embed.proj.weight"], weights["patch_embed.proj.weight"].expand(-1, 3, -1, -1) / 3
    )


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("deit_tiny_distilled_patch16_224", ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")),
        ("beit_base_patch16_224", ("head.weight", "head.bias")),
        ("eva02_tiny_patch14_224", ("head.weight", "head.bias")),
        ("vit_base_patch16_siglip_224", ("head.weight", "head.bias")),
        ("vit_relpos_small_patch16_224", ("head.weight", "head.bias")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*non-tuple sequence", "ignore:torch.searchsorted", "ignore:.*is adapted to")
def test_families_are_adapted_as_timm_adapts_them(save: Save, name: str, head: tuple[str, ...]) -> None:
    small = {"patch_size": 8}
    weights = weights_of(name, **small)
    options = {"num_classes": 3, "img_size": 48, "in_chans": 1}
    if name != "deit_tiny_distilled_patch16_224":
        assert_same(load(save(weights), name, small, **options), as_published(weights, name, **small, **options), head)
        return
    torch.manual_seed(1)
    found = TimmBackbone(name, checkpoint_path=save(weights), model_args=SMALL | small, **options).model.state_dict()
    assert_same(found, as_published(weights, name, **small, **options), head)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "model_ema"])
def test_nested_weights_are_found_an_average_first(save: Save, key: str) -> None:
    weights = weights_of()
    nested = {"model": weights_of(depth=1), key: {f"module.{name}": value for name, value in weights.items()}}
    assert_same(load(save(nested)), weights)


def test_safetensors(tmp_path: Path) -> None:
    weights = weights_of()
    save_file(weights, tmp_path / "weights.safetensors")
    assert_same(load(str(tmp_path / "weights.safetensors")), weights)


def test_jax_weights(tmp_path: Path) -> None:
    """Google's own format, which timm reads for a ViT; its head has 7 classes."""
    torch.manual_seed(3)
    width, block = SMALL["embed_dim"], "Transformer/encoderblock_{}/"
    heads = (SMALL["num_heads"], width // SMALL["num_heads"])
    attention = "MultiHeadDotProductAttention_1/"
    arrays = {
        "embedding/kernel": (16, 16, 3, width),
        "embedding/bias": (width,),
        "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, 5, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, 7),
        "head/bias": (7,),
    }
    for number in range(SMALL["depth"]):
        for part in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {block.format(number) + f"{part}/{name}": (width,) for name in ("scale", "bias")}
        for part in ("query", "key", "value"):
            arrays[block.format(number) + attention + f"{part}/kernel"] = (width, *heads)
            arrays[block.format(number) + attention + f"{part}/bias"] = heads
        arrays[block.format(number) + attention + "out/kernel"] = (*heads, width)
        arrays[block.format(number) + attention + "out/bias"] = (width,)
        for part, sizes in (("Dense_0", (width, 4 * width)), ("Dense_1", (4 * width, width))):
            arrays[block.format(number) + f"MlpBlock_3/{part}/kernel"] = sizes
            arrays[block.format(number) + f"MlpBlock_3/{part}/bias"] = sizes[1:]
    values = {name: np.asarray(torch.randn(shape)) for name, shape in arrays.items()}
    path = str(tmp_path / "weights.npz")
    np.savez(path, **values)
    assert (load(path, num_classes=None)["head.weight"].numpy() == values["head/kernel"].T).all()
    with pytest.warns(UserWarning, match=r"head\.weight, head\.bias drawn anew for 3 classes"):
        found = load(path, num_classes=3)
    assert (found["cls_token"].numpy() == values["cls"]).all()
    with pytest.warns(UserWarning, match="drawn anew"):
        found = load(path, num_classes=3, in_chans=1)
    folded = values["embedding/kernel"].transpose(3, 2, 0, 1).sum(1, keepdims=True)
    np.testing.assert_allclose(found["patch_embed.proj.weight"].numpy(), folded, rtol=1e-5, atol=1e-5)


def test_a_file_whose_head_has_one_class_is_refused(save: Save) -> None:
    path = save(weights_of(num_classes=1))
    with pytest.raises(UserError, match=rf"^Expected at least 2 classes, but {NAME} has 1\. Set num_classes\.$"):
        load(path, num_classes=None)
    with pytest.warns(UserWarning, match=r"drawn anew for 7 classes"):
        assert load(path)["head.weight"].shape == (7, 48)


def test_a_checkpoint_of_our_own(save: Save) -> None:
    """Its names have a prefix, and its head stands there twice."""
    weights = weights_of()
    own = {f"backbone.model.{name}": value for name, value in weights.items()}
    own |= {f"head.classifier.{name}": weights[f"head.{name}"] for name in ("weight", "bias")}
    assert_same(load(save({"state_dict": own, "epoch": 3, "layersim": {}}, "last.ckpt")), weights)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"depth": 4},
            r'Missing key.*"blocks\.3\.norm1\.weight".* and 9 more\. Change the backbone\'s name or model_args',
        ),
        ({"depth": 2}, r'Unexpected key.*"blocks\.2.* and 9 more\. Change the backbone\'s name or model_args'),
        (
            {"embed_dim": 96},
            r"cls_token is \(1, 1, 48\) there, \(1, 1, 96\) here.*Change the backbone's name or model_args",
        ),
    ],
)
def test_weights_of_another_model_are_refused(save: Save, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"do not fit the model: {message}") as told:
        load(save(weights_of()), model_args=changed, num_classes=3)
    assert len(str(told.value)) < 600 + len(str(save))


def test_a_first_layer_that_timm_cannot_fold_names_the_channels(save: Save) -> None:
    name = "naflexvit_base_patch16_gap"
    with pytest.raises(UserError, match=r"embeds\.proj\.weight is \(48, 768\) there.*Change the backbone's in_chans"):
        load(save(weights_of(name)), name, in_chans=1)


def test_files_that_hold_no_weights(save: Save, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights file"):
        load(str(tmp_path / "nothing.pth"))
    broken = Path(save({"head.weight": torch.zeros(100)}))
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match="not a readable weights file"):
        load(str(broken))
    with pytest.raises(UserError, match="not a readable weights file"):
        load(save([1, 2]))
    with pytest.raises(UserError, match="holds no weights: its keys are epoch"):
        load(save({"epoch": 1}))
    with pytest.raises(UserError, match="pretrained or checkpoint_path"):
        TimmBackbone(NAME, pretrained=True, checkpoint_path="weights.pth")
