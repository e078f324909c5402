"""Networks of torchvision and timm, changed so that 32x32 images fit."""

from __future__ import annotations

from typing import Any

from torch import nn

from poise.data.vision import import_torchvision
from poise.models.libraries import import_timm


def cifar_resnet(name: str, num_classes: int) -> nn.Module:
    """A ResNet of torchvision for 32x32 images: the first convolution is 3x3 with stride 1, nothing pools behind it.

    He et al., CVPR 2016, in the form that the papers on CIFAR use; all other layers, the initialisation and the
    parameter names are torchvision's.

    Args:
        name: "resnet18", "resnet50", "wide_resnet50_2" or another ResNet of torchvision.
        num_classes: K.

    Raises:
        MissingExtraError: torchvision is not installed.

    >>> cifar_resnet("resnet18", 10).conv1.stride
    (1, 1)
    """
    models: Any = import_torchvision("models", feature=f"builtin: {name} for 32x32 images")
    module: Any = models.get_model(name, weights=None, num_classes=num_classes)
    module.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(module.conv1.weight, mode="fan_out", nonlinearity="relu")
    module.maxpool = nn.Identity()
    made: nn.Module = module
    return made


def small_vit(num_classes: int) -> nn.Module:
    """timm's VisionTransformer for 32x32 images: patches of 4 pixels, width 192, 6 blocks with 3 heads.

    2.7 M parameters. The width and the heads are those of ViT-Ti (Touvron et al., ICML 2021). Attention is computed
    step by step: the fused operator has no second derivative, which regularisers of the input gradient need.

    Raises:
        MissingExtraError: torchvision or timm is not installed.

    >>> small_vit(10).patch_embed.num_patches
    64
    """
    import_timm("builtin: the vision transformer for 32x32 images")
    from timm.models.vision_transformer import VisionTransformer

    module: Any = VisionTransformer(
        img_size=32, patch_size=4, num_classes=num_classes, embed_dim=192, depth=6, num_heads=3
    )
    for block in module.blocks:
        block.attn.fused_attn = False
    made: nn.Module = module
    return made
