"""Which axis holds the samples: known from the batch that went in, told, or refused; never guessed."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence

from layersim import FeatureTap, UserError

WIDTH = 8


def tapped(model: nn.Module, layers: str, *given: Any, call: Any = None, **options: Any) -> dict[str, Tensor]:
    """What the tap finds in one pass of the model."""
    with torch.no_grad(), FeatureTap(model.eval(), layers, **options) as tap:
        (call or model)(*given)
        return tap.take_by_name()


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


POOLS: dict[Any, Callable[[Tensor], Tensor]] = {  # of (N, T, D)
    "cls": lambda tokens: tokens[:, 0],
    "last": lambda tokens: tokens[:, -1],
    "mean": lambda tokens: tokens.mean(1),
}
each_pool = pytest.mark.parametrize("pool", POOLS)


def encoder(batch_first: bool, layers: int = 2) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=batch_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=batch_first)


class Reading(nn.Module):
    """Token ids (N, T) → an encoder of either kind."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(20, WIDTH)
        self.encoder = encoder(batch_first)

    def forward(self, ids: Tensor) -> Any:
        x = self.embed(ids)
        return self.encoder(x if self.batch_first else x.transpose(0, 1))


# Sequences


@each_pool
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("tokens", [4, 6, 8])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_torchs_encoders_say_where_their_samples_stand(pool: Any, batch_first: bool, tokens: int) -> None:
    """4 samples of as many tokens, of more, and of a multiple."""
    model = encoder(batch_first)
    x = torch.randn(4, tokens, WIDTH)
    given = x if batch_first else x.transpose(0, 1)
    out = model.eval()(given)
    expected = POOLS[pool](out if batch_first else out.transpose(0, 1))
    same(tapped(model, "layers.*", given, pool=pool)["layers.1"], expected)
    same(tapped(model, "layers.1.norm2", given, pool=pool)["layers.1.norm2"], expected)
    whole = Reading(batch_first)
    ids = torch.randint(0, 20, (4, tokens))
    out = whole.eval()(ids)
    expected = POOLS[pool](out if batch_first else out.transpose(0, 1))
    same(tapped(whole, "encoder.layers.*", ids, pool=pool)["encoder.layers.1"], expected)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_tokens_without_a_batch_are_refused(batch_first: bool) -> None:
    with pytest.raises(UserError, match=r"layers.0 puts out \(6, 8\) .* tokens of one sample, or of all"):
        tapped(encoder(batch_first), "layers.*", torch.randn(6, WIDTH))


@each_pool
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_networks_are_tapped_packed_or_not(pool: Any, batch_first: bool) -> None:
    model = nn.Sequential(nn.LSTM(WIDTH, 5, batch_first=batch_first))
    samples = [torch.randn(length, WIDTH) for length in (3, 6, 1, 4)]
    alone = [model[0](sample[None] if batch_first else sample[:, None])[0].reshape(-1, 5) for sample in samples]
    expected = torch.cat([POOLS[pool](sample[None]) for sample in alone])
    same(tapped(model, "0", pack_sequence(samples, enforce_sorted=False), pool=pool)["0"], expected)
    x = torch.randn(4, 4, WIDTH)
    out = model[0](x)[0]
    same(tapped(model, "0", x, pool=pool)["0"], POOLS[pool](out if batch_first else out.transpose(0, 1)))


class Mixing(nn.Module):
    """A block of one's own, of sequences as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x).tanh()


class Own(nn.Module):
    """Ids (N, T) → blocks of one's own with the tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.blocks = nn.Sequential(Mixing(), Mixing())

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.blocks(self.embed(ids).transpose(0, 1))
        return x


def test_blocks_of_ones_own_are_known_by_their_batch_or_told() -> None:
    torch.manual_seed(0)
    model, ids = Own().eval(), torch.randint(0, 20, (4, 8))
    odd = ids[:, :6]
    same(tapped(model, "blocks.*", odd)["blocks.1"], model(odd)[0])
    refused = {8: "which may have tokens first, or several windows", 4: "which may have samples or tokens first"}
    for tokens, why in refused.items():
        unknown = ids[:, :tokens]
        with pytest.raises(UserError, match=rf"blocks.0 puts out .* for a batch of 4 samples, {why}.* Set layout"):
            tapped(model, "blocks.*", unknown)
        same(tapped(model, "blocks.*", unknown, layout="TND")["blocks.1"], model(unknown)[0])
    with torch.no_grad(), FeatureTap(model, "blocks.*") as tap:
        for known_by_now in (odd, ids, ids[:, :4]):
            model(known_by_now)
            same(tap.take()[1], model(known_by_now)[0])
            tap.take()
    for wrong in ("TDN", "NHWD"):
        with pytest.raises(UserError, match=rf"blocks.0 puts out \(6, 4, 8\) .* which is not {wrong}: change layout"):
            tapped(model, "blocks.*", odd, layout=wrong)


def test_a_part_that_is_called_alone_says_nothing_of_its_samples() -> None:
    model, x = Own().eval(), torch.randn(6, 4, WIDTH)
    with pytest.raises(UserError, match="which may have samples or tokens first"):
        tapped(model, "blocks.*", x, call=model.blocks[0])
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    tokens = torch.randn(3, 5, 192)
    found = tapped(vit, "blocks.*", call=lambda: vit.blocks[1](vit.blocks[0](tokens)))  # timm's have the samples first
    same(found["blocks.1"], vit.blocks(tokens)[:, 0])


def test_a_causal_mask_is_no_batch() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Mixing()

        def forward(self, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
            y: Tensor = self.block(x)
            return y

    model, x = Masked(), torch.randn(4, 6, WIDTH)
    given = (x, torch.ones(6, 6), torch.arange(6)[None])
    same(tapped(model, "block", *given)["block"], model(*given)[:, 0])


# Windows and frames


@pytest.mark.parametrize("frames", [2, 3])
@pytest.mark.parametrize("tokens", [4, 5])
def test_frames_are_no_samples(frames: int, tokens: int) -> None:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Mixing()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.block(x.flatten(0, 1))
            return y

    x = torch.randn(4, frames, tokens, WIDTH)
    for options in ({"pool": "cls"}, {"pool": "mean"}, {"layout": "NTD"}, {"pool": lambda out: out[:, 0]}):
        with pytest.raises(
            UserError, match=r"block(: expected the pool to give \(4, D\)| puts out .* a batch of 4 samples)"
        ):
            tapped(Video(), "block", x, **options)
    model = Video()
    found = tapped(model, "block", x, pool=lambda out: out.unflatten(0, (4, frames)).mean((1, 2)))
    same(found["block"], model(x).unflatten(0, (4, frames)).mean((1, 2)))


def swin(image: int = 64, width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    options = {"window_size": 2, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 0, "embed_dim": width}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=image, **options).eval()


@pytest.mark.parametrize("samples", [2, 4, 16, 64])
def test_swins_windows_are_no_samples(samples: int) -> None:
    images = torch.randn(samples, 3, 64, 64)
    for pool in ("cls", "mean"):
        with pytest.raises(UserError, match=r"layers.0.blocks.0.attn puts out .* samples, .*Set layout"):
            tapped(swin(), "layers.0.blocks.0.attn", images, pool=pool)


# Maps


@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("whole", [True, False])
def test_swins_maps_have_their_channels_last(width: int, whole: bool) -> None:
    """Width 16 is that of the first stage's map too: then timm's word counts."""
    model, images = swin(width=width), torch.randn(2, 3, 64, 64)
    expected = model.forward_intermediates(images, intermediates_only=True)
    call = model if whole else model.forward_intermediates
    found = tapped(model, "layers.*", images, call=call, pool="mean")
    for ours, maps in zip(found.values(), expected, strict=True):
        same(ours, maps.mean((2, 3)))


def test_a_stem_before_maps_with_channels_last_is_known_by_its_width() -> None:
    """timm's word of the whole, "NHWC", does not hold there."""
    torch.manual_seed(0)
    model, images = timm.create_model("test_mambaout", num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    assert "NHWC" in str(model.output_fmt)
    same(
        tapped(model, "stem.act", images, pool="mean")["stem.act"],
        model.stem.act(model.stem.conv1(images)).mean((2, 3)),
    )


def test_maps_of_convolutions_have_their_channels_first_whatever_their_size() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    images = torch.randn(2, 3, 256, 256)
    stage = model.forward_intermediates(images, intermediates_only=True)[1]
    assert stage.shape == (2, 64, 64, 64)
    same(tapped(model, "layer1", images, pool="mean")["layer1"], stage.mean((2, 3)))


def test_convnexts_blocks_mix_both_and_are_known_by_their_width() -> None:
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    maps = model.forward_intermediates(images, intermediates_only=True)
    found = tapped(model, "stages.*", images, pool="mean")
    for ours, stage in zip(found.values(), maps, strict=True):
        same(ours, stage.mean((2, 3)))


def test_a_map_that_could_be_either_is_refused_or_told() -> None:
    model, maps = nn.Sequential(nn.Identity()), torch.randn(2, 3, 4, 5)
    with pytest.raises(UserError, match=r"0 puts out \(2, 3, 4, 5\) .*width may be the second axis or the last"):
        tapped(model, "0", maps, pool="mean")
    same(tapped(model, "0", maps, pool="mean", layout="NDHW")["0"], maps.mean((2, 3)))
    same(tapped(model, "0", maps, pool="mean", layout="NHWD")["0"], maps.mean((1, 2)))


@each_pool
def test_signals_of_convolutions_have_their_channels_first(pool: Any) -> None:
    model, x = nn.Sequential(nn.Conv1d(3, WIDTH, 3)), torch.randn(4, 3, 20)
    same(tapped(model, "0", x, pool=pool)["0"], POOLS[pool](model(x).mT))


class Through(nn.Module):
    """Parts of a block of one's own, whose output is changed at the end."""

    def __init__(self, *parts: nn.Module, end: Callable[[Any], Tensor] = lambda out: out) -> None:
        super().__init__()
        self.parts, self.end = nn.Sequential(*parts), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.parts(x))


@each_pool
def test_without_convolutions_the_tokens_come_second_whatever_the_weights_widths(pool: Any) -> None:
    """64 tokens are as many as the LSTM's hidden width, whose output is twice as wide; positions have T among them."""

    class Added(nn.Module):
        def __init__(self, tokens: int) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.randn(1, tokens, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.positions

    lstm = Through(nn.LSTM(64, 64, bidirectional=True, batch_first=True), end=lambda out: out[0])
    x = torch.randn(8, 64, 64)
    same(tapped(nn.Sequential(lstm), "0", x, pool=pool)["0"], POOLS[pool](lstm(x)))
    for tokens in (20, 1):
        model, x = nn.Sequential(nn.Embedding(9, WIDTH), Added(tokens)), torch.ones(6, tokens, dtype=torch.long)
        same(tapped(model, "1", x, pool=pool)["1"], POOLS[pool](model(x)))
    convolving, x = Through(nn.Conv1d(3, WIDTH, 1)), torch.randn(4, 3, 20)
    same(tapped(nn.Sequential(convolving), "0", x, pool=pool)["0"], POOLS[pool](convolving(x).mT))  # the control


@pytest.mark.parametrize("length", [16, 32])
def test_signals_as_long_as_a_convolutions_width_are_known_of_torchs_own_alone(length: int) -> None:
    model = nn.Sequential(nn.Conv1d(16, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), Through(nn.Conv1d(32, 32, 1)))
    x, block = torch.randn(8, 16, length), "3" if length == 32 else "2"
    for name, features in tapped(model, "[01]", x, pool="mean").items():
        same(features, model[: int(name) + 1](x).mean(2))
    with pytest.raises(UserError, match=rf"{block} puts out \(8, 32, {length}\) .*width may be the second axis or the"):
        tapped(model, block, x, pool="mean")
    with torch.no_grad(), FeatureTap(model, block, "mean") as tap:
        for known_by_now in (torch.randn(8, 16, 20), x):
            model(known_by_now)
        same(tap.take()[0, 8:], model[: int(block) + 1](x).mean(2))


@pytest.mark.parametrize("size", [1, 16, 20])
def test_maps_of_networks_that_concatenate_have_their_channels_first_or_are_refused(size: int) -> None:
    """32 channels are not among the weights' widths, and a map of 16 × 16 is as wide as those."""
    block = Through(nn.Conv2d(16, 16, 3, padding=1, groups=16), end=lambda out: torch.cat([out, out + 1], 1))
    model, x = nn.Sequential(block), torch.randn(4, 16, size, size)
    if size == 16:
        with pytest.raises(UserError, match=r"0 puts out \(4, 32, 16, 16\) .*width may be the second axis or the last"):
            tapped(model, "0", x, pool="mean")
    found = tapped(model, "0", x, pool="mean", layout="NDHW" if size == 16 else None)
    same(found["0"], block(x).mean((2, 3)))


@pytest.mark.parametrize("size", [3, 5])
def test_maps_that_a_block_turns_have_their_channels_last_or_are_refused(size: int) -> None:
    """A map of 3 × 3 is as high as the image has channels."""
    block = Through(nn.Conv2d(3, WIDTH, 1), end=lambda out: out.permute(0, 2, 3, 1))
    model, x = nn.Sequential(block), torch.randn(2, 3, size, size)
    if size == 3:
        with pytest.raises(UserError, match=r"0 puts out \(2, 3, 3, 8\) .*width may be the second axis or the last"):
            tapped(model, "0", x, pool="mean")
    same(tapped(model, "0.parts.0", x, pool="mean")["0.parts.0"], block.parts(x).mean((2, 3)))  # torch's own
    found = tapped(model, "0", x, pool="mean", layout="NHWD" if size == 3 else None)
    same(found["0"], block(x).mean((1, 2)))


# What is asked for


@pytest.mark.parametrize("layout", ["", "NT", "NTDD", "ntd", 3])
def test_a_layout_that_says_nothing_is_refused(layout: Any) -> None:
    with pytest.raises(UserError, match="layout: expected a letter for each axis, N of the samples and D"):
        FeatureTap(Own(), "blocks.*", layout=layout)


def test_where_samples_stand_is_found_without_asking_a_device() -> None:
    """Tensors on meta have no values."""
    encoder = nn.TransformerEncoderLayer(36, 2, 8, batch_first=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), encoder).to("meta").train()
    with FeatureTap(model, ["0", "2"], "mean") as tap:
        model(torch.empty(5, 3, 8, 8, device="meta"))
    with pytest.raises(UserError, match="layers of one width"):
        tap.take()


def test_a_parametrised_convolution_is_one_and_volumes_need_no_equal_sides() -> None:
    signal = nn.Sequential(nn.Sequential(weight_norm(nn.Conv1d(4, WIDTH, 3, padding=1, bias=False)), nn.ReLU()))
    volume = nn.Sequential(nn.Sequential(nn.Conv3d(1, 12, 3, padding=1), nn.InstanceNorm3d(12), nn.ReLU()))
    for model, x in ((signal, torch.randn(2, 4, 30)), (volume, torch.randn(2, 1, 16, 16, 9))):
        same(tapped(model, "0", x, pool="mean")["0"], model(x).detach().flatten(2).mean(2))


def test_linear_maps_that_turn_their_tokens_are_refused() -> None:
    class Turning(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).transpose(1, 2)

    with pytest.raises(UserError, match="whose width may be the second axis or the last"):
        tapped(nn.Sequential(Turning(4, WIDTH)), "0", torch.randn(2, 30, 4), pool="mean")
