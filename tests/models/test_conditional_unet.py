"""The published network: parameter counts, the split against one whole pass a query, odd lengths, presence."""

from __future__ import annotations

import pytest
import torch

from auralign.models.conditional_unet import ConditionalUNet
from auralign.models.text_attention import COND_LAYERS
from auralign.models.text_tokens import split_query

TINY = {"levels": 4, "width": 4, "heads": 2, "channels": 5, "n_fft": 62}
TINY |= {"pooled_dim": 6, "tokens": 3, "token_dim": 7}
FRAMES = 37
PUBLISHED = {"sca": 87.68, "ca": 81.37, "sa": 80.58, "identity": 74.28, "cat": 96.69}


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(layer: str = "sca", **options) -> ConditionalUNet:
    torch.manual_seed(3)
    net = ConditionalUNet(cond_layer=layer, **(TINY | options))
    for module in net.modules():  # statistics of a trained network, so that no norm is the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def inputs(net: ConditionalUNet, frames: int = FRAMES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query = seeded(2, 3, net.query_dim, seed=5)
    query[:, 1, -net.token_dim :] = 0
    return seeded(2, 32, frames, dtype=torch.complex64), torch.zeros(2, 100), query


def whole_pass(net: ConditionalUNet, spec: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The U-Net from end to end for one query of each mixture, as its layer list says."""
    pooled, tokens, valid = split_query(query[:, None], net.pooled_dim, net.token_dim)
    x = torch.log1p(spec.abs())[:, None]
    short = -spec.shape[-1] % 2**net.levels
    x = net.norm(torch.cat([x, x[..., -1:].expand(-1, -1, -1, short)], dim=-1))
    skips = []
    for n, down in enumerate(net.downs):
        x = down(x)
        if n >= net.levels - 3:
            x = net.conditioners[n - net.levels + 3](x, tokens[:, 0], valid[:, 0])
        skips.append(x)
    x = net.ups[-1](skips.pop())
    for up in list(net.ups)[-2::-1]:
        x = up(torch.cat([skips.pop(), x], dim=1))
    logits = torch.zeros_like(x[:, 0]) + net.bias
    gate = torch.sigmoid(net.gate(pooled[:, 0]))
    for channel, scale in enumerate(net.scale):
        logits = logits + gate[:, channel, None, None] * scale * x[:, channel]
    return logits[..., : spec.shape[-1]]


@pytest.mark.parametrize("layer", COND_LAYERS)
def test_the_published_network_has_the_published_number_of_parameters(layer):
    with torch.device("meta"):
        net = ConditionalUNet(cond_layer=layer)
    assert round(sum(p.numel() for p in net.published_parameters()) / 1e6, 2) == PUBLISHED[layer]
    ours = {name for name, _ in net.named_parameters()} - {
        name for name, p in net.named_parameters() if any(p is q for q in net.published_parameters())
    }
    assert ours == {"gate.weight", "gate.bias", "presence_head.weight", "presence_head.bias"}


def test_the_published_shapes():
    with torch.device("meta"):
        net = ConditionalUNet()
    assert [down[0].out_channels for down in net.downs] == [64, 128, 256, 512, 512, 512, 512]
    assert [up.conv.out_channels for up in net.ups] == [32, 64, 128, 256, 512, 512, 512]
    assert (net.n_fft, net.hop, net.query_dim) == (1022, 256, 512 + 77 * 768)
    assert len(net.conditioners) == 3


@pytest.mark.parametrize("layer", COND_LAYERS)
@pytest.mark.parametrize("options", [{}, {"res_layers": 2, "cond_blocks": 2}, {"levels": 5}])
def test_the_split_network_is_one_whole_pass_a_query(layer, options):
    net = make(layer, **options)
    spec, wave, query = inputs(net)
    with torch.no_grad():
        out = net.respond(net.analyse(spec, wave), query)
        expected = torch.stack([whole_pass(net, spec, query[:, k]) for k in range(3)], dim=1)
    assert out.logits.shape == (2, 3, 32, FRAMES)
    assert expected.std() > 1e-3
    torch.testing.assert_close(out.logits, expected, atol=1e-5, rtol=1e-5)


def test_the_split_has_the_whole_passs_gradient():
    net = make().double()
    spec, wave, query = inputs(net)
    spec, query = spec.to(torch.complex128), query.double()
    grads = []
    for split in (True, False):
        net.zero_grad()
        if split:
            maps = net.respond(net.analyse(spec, wave), query).logits
        else:
            maps = torch.stack([whole_pass(net, spec, query[:, k]) for k in range(3)], dim=1)
        maps.square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", COND_LAYERS)
def test_answers_follow_their_queries(layer):
    net = make(layer)
    spec, wave, query = inputs(net)
    with torch.no_grad():
        state = net.analyse(spec, wave)
        out, one = net.respond(state, query), net.respond(state, query[:, 1:2])
        order = torch.tensor([2, 0, 1])
        turned = net.respond(state, query[:, order])
    torch.testing.assert_close(turned.logits, out.logits[:, order], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one.logits, out.logits[:, 1:2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one.presence, out.presence[:, 1:2], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(out.logits[:, 0], out.logits[:, 2], atol=1e-5)


def test_masked_padding_rows_do_not_count_and_released_ones_do():
    for masked in (True, False):
        net = make(mask_padding=masked)
        spec, wave, query = inputs(net)
        state = net.analyse(spec, wave)
        padded = torch.cat([query, torch.zeros(2, 3, 2 * net.token_dim)], dim=-1)
        same = torch.allclose(net.respond(state, query).logits, net.respond(state, padded).logits, atol=1e-6)
        assert same is masked


@pytest.mark.parametrize("frames", [1, 16, 17])
def test_any_number_of_frames_and_the_energy_of_the_bins(frames):
    net = make()
    spec, wave, query = inputs(net, frames)
    state = net.analyse(spec, wave)
    torch.testing.assert_close(state["energy"], spec.abs().square())
    out = net.respond(state, query)
    assert out.logits.shape == (2, 3, 32, frames)
    assert torch.isfinite(out.logits).all()
    mask = torch.sigmoid(out.logits)
    assert net.to_bins(mask) is mask


def test_a_silent_mixture_and_a_query_without_words_stay_finite():
    net = make().train()
    spec, wave, query = inputs(net)
    query[..., net.pooled_dim :] = 0
    out = net.respond(net.analyse(torch.zeros_like(spec), wave), query)
    (out.logits.square().sum() + out.presence.square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_presence_reads_the_mask_and_leaves_it_alone():
    net = make()
    spec, wave, query = inputs(net)
    out = net.respond(net.analyse(spec, wave), query)
    out.presence.square().sum().backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {
        "presence_head.weight",
        "presence_head.bias",
    }
    energy, logits = spec.abs().square(), out.logits.detach()
    mask, weight = torch.sigmoid(logits[0, 1]).double(), (energy[0] / energy[0].sum()).double()
    share = (mask * weight).sum()
    statistics = [
        share,
        mask.max(dim=0).values.mean(),
        mask.mean(),
        (weight * (mask - share) ** 2).sum().sqrt(),
    ]
    expected = net.presence_head(torch.stack(statistics).float())[0]
    torch.testing.assert_close(out.presence[0, 1], expected, atol=1e-5, rtol=1e-5)


def test_under_bfloat16_masks_leave_in_float32():
    net = make()
    spec, wave, query = inputs(net)
    with torch.autocast("cpu", torch.bfloat16):
        out = net.respond(net.analyse(spec, wave), query)
    assert out.logits.dtype == out.presence.dtype == torch.float32
    exact = net.respond(net.analyse(spec, wave), query).logits
    assert (out.logits - exact).abs().max() < 0.1 * exact.abs().max() + 0.02


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="deepest 3"):
        make(levels=3)
    with pytest.raises(ValueError, match="multiple of 16"):
        make(n_fft=64)
