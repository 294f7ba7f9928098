"""Attention against torch's own, padding that must not matter, and the two halves of every block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auralign.models.text_attention import COND_LAYERS, Attention, Conditioner, CrossBlock, SelfBlock

WIDTH, TOKEN_DIM, HEADS = 16, 12, 4


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(layer: str, **options) -> Conditioner:
    torch.manual_seed(1)
    return Conditioner(layer, width=WIDTH, token_dim=TOKEN_DIM, heads=HEADS, **options)


VALID = torch.tensor([[True, True, True, False, False], [True, False, False, False, False]])


def torch_attention(mine: Attention, width: int, source: int) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(width, HEADS, kdim=source, vdim=source, batch_first=True)
    state = {
        "in_proj_bias": torch.cat([mine.query.bias, mine.key.bias, mine.value.bias]),
        "out_proj.weight": mine.out.weight,
        "out_proj.bias": mine.out.bias,
    }
    parts = {"q": mine.query.weight, "k": mine.key.weight, "v": mine.value.weight}
    if width == source:
        state["in_proj_weight"] = torch.cat(list(parts.values()))
    else:
        state |= {f"{name}_proj_weight": weight for name, weight in parts.items()}
    theirs.load_state_dict(state)
    return theirs.eval()


@pytest.mark.parametrize("source", [WIDTH, TOKEN_DIM])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_multihead_attention(source, masked):
    torch.manual_seed(0)
    mine = Attention(WIDTH, source, HEADS)
    x, tokens = seeded(2, 7, WIDTH), seeded(2, 5, source, seed=1)
    valid = VALID if masked else None
    expected, _ = torch_attention(mine, WIDTH, source)(
        x, tokens, tokens, key_padding_mask=~VALID if masked else None
    )
    torch.testing.assert_close(mine(x, tokens, valid), expected, atol=1e-6, rtol=1e-5)


def test_blocks_are_pre_norm_attention_then_a_gelu_mlp_each_added():
    torch.manual_seed(0)
    self_block, cross = SelfBlock(WIDTH, HEADS), CrossBlock(WIDTH, TOKEN_DIM, HEADS)
    x, tokens = seeded(2, WIDTH, 3, 4), seeded(2, 5, TOKEN_DIM, seed=1)

    def mlp(block, y):
        norm, up, _, down = block.mlp
        assert up.out_features == 2 * WIDTH
        hidden = F.gelu(up(F.layer_norm(y, (WIDTH,), norm.weight, norm.bias)))
        return y + down(hidden)

    y = x.flatten(2).transpose(1, 2)
    normed = F.layer_norm(y, (WIDTH,))
    expected = mlp(
        self_block, y + torch_attention(self_block.attention, WIDTH, WIDTH)(normed, normed, normed)[0]
    )
    torch.testing.assert_close(self_block(x).flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)
    heard = torch_attention(cross.attention, WIDTH, TOKEN_DIM)(
        normed, tokens, tokens, key_padding_mask=~VALID
    )
    expected = mlp(cross, y + heard[0])
    answer = cross(x, tokens, VALID)
    torch.testing.assert_close(answer.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", COND_LAYERS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_padding_rows_do_not_matter_when_masked(layer, blocks):
    net = make(layer, blocks=blocks)
    x, tokens = seeded(2, WIDTH, 3, 4), seeded(2, 5, TOKEN_DIM, seed=1)
    other = torch.where(VALID[..., None], tokens, 7.0 * seeded(2, 5, TOKEN_DIM, seed=2))
    torch.testing.assert_close(net(x, tokens, VALID), net(x, other, VALID))
    shorter = net(x[:1], tokens[:1, :3], VALID[:1, :3])
    torch.testing.assert_close(net(x, tokens, VALID)[:1], shorter, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", ["sca", "ca", "cat"])
def test_the_released_arithmetic_attends_to_padding(layer):
    net = make(layer, mask_padding=False)
    x, tokens = seeded(2, WIDTH, 3, 4), seeded(2, 5, TOKEN_DIM, seed=1)
    everything = torch.ones_like(VALID)
    torch.testing.assert_close(net(x, tokens, VALID), net(x, tokens, everything))
    masking = make(layer)
    assert not torch.allclose(masking(x, tokens, VALID), masking(x, tokens, everything), atol=1e-4)


@pytest.mark.parametrize("layer", COND_LAYERS)
def test_only_layers_that_hear_change_with_the_words(layer):
    net = make(layer)
    x, tokens = seeded(2, WIDTH, 3, 4), seeded(2, 5, TOKEN_DIM, seed=1)
    same = torch.allclose(net(x, tokens, VALID), net(x, -tokens, VALID), atol=1e-5)
    assert same is not net.hears
    assert net.hears is (layer in ("sca", "ca", "cat"))


@pytest.mark.parametrize("layer", COND_LAYERS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_prepare_then_condition_is_every_block_in_order(layer, blocks):
    net = make(layer, blocks=blocks)
    x, tokens = seeded(2, WIDTH, 3, 4), seeded(2, 5, TOKEN_DIM, seed=1)
    expected = x
    for block in net.blocks:
        expected = block(expected, tokens, VALID)
    assert torch.equal(net.condition(net.prepare(x), tokens, VALID), expected)
    assert torch.equal(expected, x) is (layer == "identity")


@pytest.mark.parametrize("layer", ["sca", "ca", "cat"])
def test_a_text_without_tokens_is_finite_and_so_is_its_gradient(layer):
    net = make(layer)
    tokens = torch.zeros(2, 5, TOKEN_DIM, requires_grad=True)
    out = net(seeded(2, WIDTH, 3, 4), tokens, torch.zeros(2, 5, dtype=torch.bool))
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_where_no_token_is_valid_all_are_attended_to():
    torch.manual_seed(0)
    attention = Attention(WIDTH, TOKEN_DIM, HEADS)
    x, tokens = seeded(2, 7, WIDTH), seeded(2, 5, TOKEN_DIM, seed=1)
    silent = attention(x, tokens, torch.zeros(2, 5, dtype=torch.bool))
    torch.testing.assert_close(silent, attention(x, tokens))


def test_under_bfloat16_the_answer_stays_near():
    net = make("sca")
    x, tokens = seeded(2, WIDTH, 3, 4), seeded(2, 5, TOKEN_DIM, seed=1)
    exact = net(x, tokens, VALID)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x.bfloat16(), tokens, VALID)
    assert (rough.float() - exact).abs().max() < 0.05


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="3 heads"):
        Attention(16, 16, 3)
    with pytest.raises(ValueError, match="at least 1"):
        make("sca", blocks=0)
