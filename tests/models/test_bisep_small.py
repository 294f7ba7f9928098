"""The small text-conditioned network: what queries may change, its local read-out, odd lengths, bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from auralign.models.bisep_small import SmallBiSep, read_locally
from auralign.models.text_attention import COND_LAYERS

TINY = {"widths": (8, 12, 16, 24), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8, "heads": 2}
TINY |= {"n_bands": 32, "n_bins": 65, "pooled_dim": 6, "tokens": 5, "token_dim": 7}
FRAMES = 41


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(layer: str = "sca", **options) -> SmallBiSep:
    torch.manual_seed(3)
    return SmallBiSep(cond_layer=layer, **(TINY | options)).eval()


def queries(net: SmallBiSep, batch: int = 2, count: int = 3) -> torch.Tensor:
    query = seeded(batch, count, net.query_dim, seed=5)
    query[:, 1:, net.pooled_dim + 2 * net.token_dim :] = 0  # two words, the rest padding
    return query


def state_of(net: SmallBiSep, batch: int = 2, frames: int = FRAMES) -> dict[str, torch.Tensor]:
    maps = [seeded(batch, 256, 8, 10), seeded(batch, 512, 4, 5), seeded(batch, 1024, 2, 3)]
    return net.features(seeded(batch, 32, frames, seed=2).square(), maps)


@pytest.mark.parametrize("layer", COND_LAYERS)
def test_one_mask_and_one_presence_a_query_for_all_frames(layer):
    net = make(layer)
    state, query = state_of(net), queries(net)
    out = net.respond(state, query)
    assert out.logits.shape == (2, 3, 32, FRAMES)
    assert out.presence.shape == (2, 3)
    assert net.answer(state, query).mask.shape == (2, 3, 65, FRAMES)
    assert (net.n_fft, net.hop) == (128, 256)


@pytest.mark.parametrize("layer", COND_LAYERS)
def test_many_queries_at_once_are_as_one_at_a_time_in_any_order(layer):
    net = make(layer)
    state, query = state_of(net), queries(net)
    out = net.respond(state, query)
    for k in range(3):
        alone = net.respond(state, query[:, k : k + 1])
        torch.testing.assert_close(out.logits[:, k : k + 1], alone.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.presence[:, k : k + 1], alone.presence, atol=1e-5, rtol=1e-5)
    order = torch.tensor([2, 0, 1])
    turned = net.respond(state, query[:, order])
    torch.testing.assert_close(turned.logits, out.logits[:, order], atol=1e-5, rtol=1e-5)


def test_mixtures_do_not_mix():
    net = make()
    maps = [seeded(2, 256, 8, 10), seeded(2, 512, 4, 5), seeded(2, 1024, 2, 3)]
    energy, query = seeded(2, 32, FRAMES, seed=2).square(), queries(net)
    both = net.respond(net.features(energy, maps), query).logits
    second = net.respond(net.features(energy[1:], [m[1:] for m in maps]), query[1:]).logits
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", COND_LAYERS)
def test_words_change_the_mask_only_where_the_layer_hears_and_the_sentence_always(layer):
    net = make(layer)
    state, query = state_of(net), queries(net)
    words, sentence = query.clone(), query.clone()
    words[..., net.pooled_dim :] *= -1
    sentence[..., : net.pooled_dim] *= -1
    before = net.respond(state, query).logits
    changed = (net.respond(state, words).logits - before).abs().max() > 1e-5
    assert bool(changed) is (layer in ("sca", "ca", "cat"))
    assert (net.respond(state, sentence).logits - before).abs().max() > 1e-4


def test_the_words_act_locally():
    net = make()
    state, query = state_of(net, frames=64), queries(net)
    net.head.film.weight.data.zero_()
    net.head.film_mix.weight.data.zero_()
    words = query.clone()
    words[..., net.pooled_dim :] *= -1
    change = net.respond(state, words).logits - net.respond(state, query).logits
    assert change.std(dim=(2, 3)).min() > 0.1 * change.abs().mean()


def test_local_filters_are_the_inner_product_with_up_sampled_ones():
    fine, filters = seeded(2, 5, 16, 48), seeded(2, 3, 4, 12, 6, seed=1)
    up = F.interpolate(
        filters.flatten(0, 1).permute(0, 3, 1, 2), size=(16, 48), mode="bilinear", align_corners=False
    ).unflatten(0, (2, 3))
    expected = up[:, :, 5].clone()
    for c in range(5):
        expected += up[:, :, c] * fine[:, None, c]
    torch.testing.assert_close(read_locally(fine, filters), expected, atol=1e-5, rtol=1e-5)


def test_local_modulation_is_bilinear_up_sampling():
    net = make("identity")
    deep, pooled = seeded(1, 24, 2, 4), torch.zeros(1, 1, 6)
    tokens, valid = torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 5, dtype=torch.bool)
    with torch.no_grad():
        mine = net.head.modulation(deep, pooled, tokens, valid)[0, 0]
        small = net.head.local(deep.permute(0, 2, 3, 1)) + net.head.film.bias
    expected = F.interpolate(
        small.permute(0, 3, 1, 2), scale_factor=4.0, mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(mine, expected[0].permute(1, 2, 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 15, 16, 17])
def test_any_number_of_frames(frames):
    net = make()
    out = net.respond(state_of(net, frames=frames), queries(net))
    assert out.logits.shape[-1] == frames
    assert torch.isfinite(out.logits).all()


def test_a_query_without_words_is_finite_in_both_directions():
    net = make().train()
    query = queries(net, count=1)
    query[..., net.pooled_dim :] = 0
    out = net.respond(state_of(net), query)
    (out.logits.square().mean() + out.presence.square().mean()).backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("layer", COND_LAYERS)
def test_gradient_reaches_every_parameter(layer):
    net = make(layer, cond_blocks=2).train()
    for name, parameter in net.named_parameters():
        if name.endswith("second_norm.weight"):  # starts at zero and hides the block behind it
            torch.nn.init.constant_(parameter, 0.5)
    out = net.respond(state_of(net), queries(net))
    (out.logits.square().sum() + out.presence.square().sum()).backward()
    deaf = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert {name for name in deaf if not name.endswith("key.bias")} == set()  # softmax cancels the keys' bias


def test_under_bfloat16_masks_leave_in_float32_and_near():
    net = make()
    exact = net.respond(state_of(net), queries(net))
    with torch.autocast("cpu", torch.bfloat16):
        rough = net.respond(state_of(net), queries(net))
    assert rough.logits.dtype == rough.presence.dtype == torch.float32
    assert (rough.logits - exact.logits).abs().max() < 0.1 * exact.logits.abs().max() + 0.02


def test_from_a_spectrum_and_its_wave():
    torch.manual_seed(0)
    net = SmallBiSep(**(TINY | {"n_bins": 513})).eval()
    wave = 0.1 * seeded(1, 10_000)
    spec = torch.stft(wave, net.n_fft, net.hop, window=torch.hann_window(net.n_fft), return_complex=True)
    state = net.analyse(spec, wave)
    torch.testing.assert_close(state["energy"], net.bands(spec.abs().square()), atol=1e-4, rtol=1e-4)
    assert not state["energy"].requires_grad
    assert net.projector is net.bands
    query = queries(net, batch=1)
    louder = net.respond(net.analyse(10 * spec, 10 * wave), query).logits
    torch.testing.assert_close(net.respond(state, query).logits, louder, atol=1e-3, rtol=1e-3)


def test_bands_that_the_trunk_cannot_halve_are_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        make(n_bands=40)
