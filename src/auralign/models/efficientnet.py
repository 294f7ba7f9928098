r"""EfficientNet-Lite0 as plain PyTorch, and the reading of pictures for it.

Tan, Le 2019 (arXiv:1905.11946), Lite variant: inverted bottlenecks without squeeze-and-excitation, ReLU6,
fixed stem and head; trained on ImageNet at 224×224. Padding is TensorFlow's ``same``: the extra row and
column of an even total go below and to the right. Pixels are scaled as :math:`(x - 127) / 128`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.errors import DataError
from auralign.runtime import weights

SIDE = 224
EMBEDDING = 1280
CLASSES = 1000
MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded."""
NORM_EPS = 1e-3


@dataclass(frozen=True)
class Stage:
    """A run of equal blocks; only the first one changes stride and width."""

    kernel: int
    stride: int
    expand: int
    outputs: int
    repeats: int


STEM = 32
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)


class _Conv(nn.Module):
    """Convolution with folded batch norm and TensorFlow's ``same`` padding."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        if self.stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, self.kernel // 2, groups=self.groups)
        height, width = (
            max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[2:]
        )
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class _Block(nn.Module):
    """Expand, filter each channel, project back; added to the input where the shapes allow."""

    def __init__(self, inputs: int, stage: Stage, *, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expand
        self.expand = _Conv(inputs, wide) if stage.expand > 1 else None
        self.depthwise = _Conv(wide, wide, kernel=stage.kernel, stride=stride, groups=wide)
        self.project = _Conv(wide, stage.outputs)
        self.skip = stride == 1 and inputs == stage.outputs

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        wide = x if self.expand is None else F.relu6(self.expand(x))
        y: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """Frozen picture encoder; ``forward`` gives ImageNet logits, ``embed`` the pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, STEM, kernel=3, stride=2)
        blocks, inputs = [], STEM
        for stage in STAGES:
            for repeat in range(stage.repeats):
                blocks.append(_Block(inputs, stage, stride=stage.stride if repeat == 0 else 1))
                inputs = stage.outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = _Conv(inputs, EMBEDDING)
        self.classifier = nn.Linear(EMBEDDING, CLASSES)

    def embed(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1280"]:
        """Mean of the last feature map of pictures from :func:`read_picture`."""
        x = F.relu6(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).mean(dim=(2, 3))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1000"]:
        """ImageNet logits."""
        logits: Tensor = self.classifier(self.embed(images))
        return logits


def fold_batch_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    r"""Published tensors under the names used here, each batch norm folded into its convolution.

    :math:`w' = s w`, :math:`b' = \beta - s \mu` with :math:`s = \gamma / \sqrt{\sigma^2 + \epsilon}`.
    """
    pairs = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for index in range(sum(stage.repeats for stage in STAGES)):
        block = f"_blocks.{index}."
        for part, conv, norm in (
            ("expand", "_expand_conv", "_bn0"),
            ("depthwise", "_depthwise_conv", "_bn1"),
            ("project", "_project_conv", "_bn2"),
        ):
            if block + conv + ".weight" in state:
                pairs.append((f"blocks.{index}.{part}", block + conv, block + norm))
    folded = {f"classifier.{kind}": state[f"_fc.{kind}"] for kind in ("weight", "bias")}
    for name, conv, norm in pairs:
        scale = state[norm + ".weight"] / torch.sqrt(state[norm + ".running_var"] + NORM_EPS)
        folded[name + ".weight"] = state[conv + ".weight"] * scale[:, None, None, None]
        folded[name + ".bias"] = state[norm + ".bias"] - state[norm + ".running_mean"] * scale
    return folded


def load_efficientnet_lite0(*, offline: bool | None = None) -> EfficientNetLite0:
    """EfficientNet-Lite0 with its pretrained weights, frozen, in evaluation mode, on the CPU."""
    model = EfficientNetLite0()
    model.load_state_dict(fold_batch_norm(weights.tensors("efficientnet-lite0", offline=offline)))
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)


def open_picture(path: str | Path) -> Image.Image:
    """A picture as RGB: turned as its EXIF tag says, transparency flattened on white, sixteen bits scaled.

    Raises:
        DataError: The file is missing, broken, not a picture, or larger than 64 million pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{image.width}×{image.height} pixels are too many, at most {MAX_PIXELS:,} are read",
                        where=str(path),
                        hint="make it smaller",
                    )
                image.load()
                turned = ImageOps.exif_transpose(image)
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError) as error:
            raise _unreadable(path, error) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _unreadable(path, error) from error
    if turned.mode.startswith("I") or turned.mode == "F":
        return _from_deep(turned)
    if "A" in turned.mode or "transparency" in turned.info:
        opaque = turned.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return turned.convert("RGB")


def _unreadable(path: str | Path, error: Exception) -> DataError:
    return DataError(
        "the picture cannot be read",
        where=str(path),
        why=str(error) or type(error).__name__,
        hint="give PNG or JPEG",
    )


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey pictures of 16 or 32 bits or floats, scaled to 8 bits: 16-bit range, or 0…1 for small floats."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = 1.0 if image.mode == "F" and values.max(initial=0.0) <= 1.0 else 255.0
    top = 65535.0 if values.max(initial=0.0) > 255.0 else top
    return Image.fromarray(np.clip(values / top * 255.0, 0, 255).astype(np.uint8)).convert("RGB")


def read_picture(path: str | Path) -> Float[Tensor, "3 224 224"]:
    """A picture as the network expects it: fitted whole into 224×224 on white, pixels (x - 127)/128."""
    image = open_picture(path)
    scale = SIDE / max(image.size)
    width, height = (max(round(size * scale), 1) for size in image.size)
    page = Image.new("RGB", (SIDE, SIDE), "white")
    fitted = image.resize((width, height), Image.Resampling.BICUBIC)
    page.paste(fitted, ((SIDE - width) // 2, (SIDE - height) // 2))
    pixels = torch.from_numpy(np.array(page, dtype=np.float32)).permute(2, 0, 1)
    return ((pixels - 127.0) / 128.0).contiguous()
