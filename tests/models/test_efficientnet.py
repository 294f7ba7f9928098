"""EfficientNet-Lite0 against its published tensors run layer by layer, and picture reading in every mode."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from auralign.errors import DataError
from auralign.models import efficientnet
from auralign.models.efficientnet import load_efficientnet_lite0, open_picture, read_picture
from auralign.runtime import weights

SOUNDS = Path(__file__).parent.parent / "fixtures" / "sounds"
COCK, DRAKE, VIOLIN = 7, 97, 889


@pytest.fixture(scope="module")
def net():
    return load_efficientnet_lite0()


def published(image: torch.Tensor) -> torch.Tensor:
    """The published network, batch norm apart, padding by the rule out = ceil(in / stride), in float64."""
    state = {name: tensor.double() for name, tensor in weights.tensors("efficientnet-lite0").items()}

    def layer(x, conv, norm, *, stride=1, groups=1):
        kernel = state[f"{conv}.weight"]
        total = max((int(np.ceil(x.shape[2] / stride)) - 1) * stride + kernel.shape[2] - x.shape[2], 0)
        before, after = total // 2, total - total // 2
        x = F.conv2d(F.pad(x, (before, after, before, after)), kernel, None, stride, groups=groups)
        values = [state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values, training=False, eps=1e-3)

    x = layer(image.double(), "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    for index in range(16):
        name, before, stride = f"_blocks.{index}.", x, strides.get(index, 1)
        if name + "_expand_conv.weight" in state:
            x = layer(x, name + "_expand_conv", name + "_bn0").clamp(0, 6)
        x = layer(x, name + "_depthwise_conv", name + "_bn1", stride=stride, groups=x.shape[1]).clamp(0, 6)
        x = layer(x, name + "_project_conv", name + "_bn2")
        if x.shape == before.shape:
            x = x + before
    return layer(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))


@pytest.mark.parametrize("size", [224, 97])
def test_embedding_equals_the_published_layers_with_batch_norm_apart(net, size):
    image = read_picture(SOUNDS / "rooster.png")[None, :, :size, :size]
    torch.testing.assert_close(net.embed(image).double(), published(image), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "label"), [("rooster.png", COCK), ("violin.png", VIOLIN)])
def test_real_pictures_get_their_class(net, name, label):
    assert int(net(read_picture(SOUNDS / name)[None]).argmax()) == label


def test_pictures_of_a_batch_are_independent_and_gradients_reach_them(net):
    images = torch.stack([read_picture(SOUNDS / name) for name in ("rooster.png", "violin.png")])
    torch.testing.assert_close(net.embed(images)[1], net.embed(images[1:])[0], atol=1e-4, rtol=1e-4)
    images.requires_grad_()
    net.embed(images).sum().backward()
    assert images.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(4.7e6, rel=0.02)


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").unique().tolist() == [1.0], "(255 - 127) / 128"
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(open_picture(tmp_path / "p.png")).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_every_mode_is_read(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "tiff" if mode in ("F", "I") else "png"
    file = tmp_path / f"x.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.full((5, 7), 40_000, dtype=np.uint16)).save(file)
    elif mode == "F":
        Image.fromarray(np.full((5, 7), 0.5, dtype=np.float32)).save(file)
    else:
        Image.new("RGB", (7, 5), (200, 200, 200)).convert(mode, palette=Image.Palette.ADAPTIVE).save(file)
    picture = open_picture(file)
    assert picture.mode == "RGB"
    assert picture.size == (7, 5)
    assert read_picture(file).shape == (3, 224, 224)
    expected = {"I;16": 155.6, "F": 127.5, "1": None}.get(mode, 200)
    if expected is not None:
        assert np.abs(np.asarray(picture, dtype=float) - expected).max() < 4


def test_exif_orientation_is_obeyed(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (10, 20)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (640, 480)])
def test_any_shape_fits_whole_on_white(tmp_path, size):
    Image.new("RGB", size, "black").save(tmp_path / "x.png")
    tensor = read_picture(tmp_path / "x.png")
    assert tensor.shape == (3, 224, 224)
    assert tensor.min() < -0.9
    if size[0] != size[1]:
        assert tensor[0, 0, 0] == 1.0 or tensor[0, -1, -1] == 1.0


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", (SOUNDS / "rooster.png").read_bytes()[:9000], bomb(), b"GIF89a\x00"]
)
def test_broken_files_and_bombs_are_refused(tmp_path, data):
    file = tmp_path / "x.png"
    file.write_bytes(data)
    with pytest.raises(DataError, match="picture cannot be read"):
        read_picture(file)


def test_missing_and_too_large_pictures_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"none\.png"):
        read_picture(tmp_path / "none.png")
    monkeypatch.setattr(efficientnet, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="too many"):
        read_picture(SOUNDS / "rooster.png")
