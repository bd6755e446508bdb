"""One architecture of each module of timm, tiny where its keywords allow, and what layersim says to it."""

from dataclasses import dataclass, field
from typing import Any

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}


@dataclass(frozen=True)
class Family:
    """An architecture of timm's."""

    name: str
    img_size: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    """What the refusal says; nothing where the architecture is read."""


READ = {
    "beit": Family("beit_base_patch16_224", 32, SMALL),
    "deepseek_vit": Family("deepseek_vit_412m", 56, SMALL),
    "deit": Family("deit_tiny_distilled_patch16_224", 32, SMALL),
    "eva": Family("eva02_tiny_patch14_224", 28, SMALL),
    "gemma4_vit": Family("gemma4_vit_167m", 96, SMALL),
    "mlp_mixer": Family("gmlp_ti16_224", 32),
    "naflexvit": Family("naflexvit_base_patch16_gap", 32, SMALL),
    "qwen3_vit": Family("qwen3_vit_88m", 64, SMALL),
    "tnt": Family("tnt_s_patch16_224", 32, {"depth": 2, "embed_dim": 48, "num_heads_outer": 3}),
    "vision_transformer": Family("vit_tiny_patch16_224", 32, SMALL),
    "vision_transformer_hybrid": Family("vit_tiny_r_s16_p8_224", 64, SMALL),
    "vision_transformer_relpos": Family("vit_relpos_small_patch16_224", 32, SMALL),
    "vitamin": Family("vitamin_small_224", 64),
}
REFUSED = {
    "cait": Family("cait_xxs24_224", 32, SMALL, r"more than a norm and a pooling \(blocks_token_only\)"),
    "convit": Family(
        "convit_tiny", 32, {"depth": 2, "local_up_to_layer": 1}, "a class token, which timm does not give"
    ),
    "convmixer": Family(
        "convmixer_768_32", refused="maps of the image, which its head pools by itself, and not tokens"
    ),
    "vision_transformer_sam": Family(
        "samvit_base_patch16", 32, SMALL | {"global_attn_indexes": ()}, r"more than a norm and a pooling \(neck\)"
    ),
    "xcit": Family("xcit_nano_12_p16_224", 32, SMALL, r"more than a norm and a pooling \(cls_attn_blocks\)"),
}
SEVERAL_WIDTHS = {
    "byoanet": "halonet50ts",
    "byobnet": "test_byobnet",
    "coat": "coat_mini",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "densenet": "densenet121",
    "dla": "dla34",
    "dpn": "dpn68",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_lrf",
    "gcvit": "gcvit_tiny",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnet_tiny",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_ssld",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_384_s8",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_maxvit",
    "metaformer": "caformer_s18",
    "mobilenetv3": "tf_mobilenetv3_large_minimal_100",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_xs_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_004_tv",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50d",
    "resnest": "resnest50d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_150",
    "selecsls": "selecsls42",
    "senet": "legacy_senet154",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s1",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_s3_tiny_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tresnet": "tresnet_l",
    "twins": "twins_svt_base",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
}
FAMILIES = (
    READ
    | REFUSED
    | {module: Family(name, refused="one head cannot read them all") for module, name in SEVERAL_WIDTHS.items()}
)
