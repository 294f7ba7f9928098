from __future__ import annotations

import pytest
import torch
from torch import nn

from auralign.models.unet import MaskUNet


def _input(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def published() -> MaskUNet:
    return MaskUNet()


def test_published_net_has_its_widths_levels_and_latents(published):
    net = published
    convolutions = [m for m in net.downs.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 512, 512, 512]
    assert all(c.kernel_size == (4, 4) and c.stride == (2, 2) and c.bias is None for c in convolutions)
    ups = [m for m in net.ups.modules() if isinstance(m, nn.Conv2d)]
    assert [c.in_channels for c in ups] == [512, 1024, 1024, 1024, 512, 256, 128]
    assert [c.out_channels for c in ups] == [512, 512, 512, 256, 128, 64, 32]
    assert [c.bias is not None for c in ups] == [False] * 6 + [True]


def test_norms_are_where_the_paper_has_them(published):
    net = published
    kinds = [[type(m).__name__ for m in down] for down in net.downs]
    assert kinds[0] == ["Conv2d"]
    assert kinds[1:-1] == [["LeakyReLU", "Conv2d", "BatchNorm2d"]] * 5
    assert kinds[-1] == ["LeakyReLU", "Conv2d"]
    assert {up[1].align_corners for up in net.ups} == {True}
    assert type(net.ups[-1][-1]).__name__ == "Conv2d"
    assert net.downs[1][0].negative_slope == 0.2


def test_initial_weights_have_the_published_distribution():
    torch.manual_seed(0)
    net = MaskUNet(levels=3, width=32)
    kernels = torch.cat([m.weight.detach().flatten() for m in net.modules() if isinstance(m, nn.Conv2d)])
    gains = torch.cat([m.weight.detach() for m in net.modules() if isinstance(m, nn.BatchNorm2d)])
    assert abs(float(kernels.mean())) < 2e-5
    assert abs(float(kernels.std()) / 0.001 - 1) < 0.02
    assert abs(float(gains.mean()) - 1) < 0.01
    assert abs(float(gains.std()) / 0.02 - 1) < 0.2
    assert not any(m.bias.any() for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(("levels", "rows", "frames"), [(2, 4, 4), (3, 16, 24), (4, 32, 16)])
def test_output_has_one_latent_mask_of_the_inputs_size_each(levels, rows, frames):
    net = MaskUNet(levels=levels, width=4, outputs=5).eval()
    assert net(_input(2, 1, rows, frames)).shape == (2, 5, rows, frames)


def test_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    net = MaskUNet(levels=4, width=4, outputs=3).double()
    net(_input(2, 1, 32, 32).double()).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_skips_carry_detail_that_the_bottleneck_cannot():
    torch.manual_seed(0)
    net = MaskUNet(levels=3, width=8, outputs=1).eval()
    x = _input(1, 1, 32, 32)
    y = x.clone()
    y[..., 16, 16] += 1
    change = (net(x) - net(y)).abs()[0, 0]
    assert change.max() > 0
    assert change[14:20, 14:20].sum() > 0.2 * change.sum()


def test_fewer_than_two_levels_are_refused():
    with pytest.raises(ValueError, match="levels is 1"):
        MaskUNet(levels=1)
