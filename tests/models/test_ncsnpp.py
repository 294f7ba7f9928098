"""NCSN++ against the authors' numbers, against written-out resampling, and at its edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from auralign.errors import UsageError
from auralign.models.ncsnpp import PARAMETERS, NCSNpp
from auralign.models.ncsnpp_blocks import Attention, FourierTime, ResidualBlock, double, halve
from auralign.models.published_names import from_published, published_tensors, to_published

GOLDEN = Path(__file__).parents[1] / "fixtures/ncsnpp/golden.safetensors"


@pytest.fixture(scope="module")
def golden():
    torch.set_num_threads(1)
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def published(golden):
    return {n.removeprefix("weights."): v for n, v in golden.items() if n.startswith("weights.")}


def tiny(**changes):
    options = {"width": 4, "multipliers": (1, 2, 2), "blocks": 2, "attention": (8,), "freqs": 32}
    return NCSNpp(**{**options, **changes})


@pytest.fixture(scope="module")
def net(published):
    model = tiny()
    model.load_state_dict(from_published(model, published))
    return model.eval().requires_grad_(False)


def relative(est, ref):
    return ((est - ref).abs().square().mean() / ref.abs().square().mean()).sqrt().item()


def spectra(batch=1, freqs=32, frames=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, batch, freqs, frames, dtype=torch.complex64, generator=generator)
    return 0.3 * x, 0.3 * y, torch.linspace(0.2, 0.9, batch)


def test_equals_the_authors_network(net, golden):
    x_t, y, ref = (torch.view_as_complex(golden[name]) for name in ("x_t", "y", "model"))
    est = net(x_t, y, golden["t"])
    for item in range(2):
        assert relative(est[item], ref[item]) < 1e-5
    assert (est - ref).abs().max() < 1e-5 * ref.abs().max()


@pytest.mark.parametrize(
    "change",
    ["sign", "time", "output", "skip", "fourier", "attention"],
)
def test_a_broken_network_does_not(published, golden, change):
    """Each of the conventions shows in the golden numbers."""
    model = tiny(divide_by_time=change != "time")
    state = from_published(model, published)
    if change == "sign":
        state["out.weight"] = -state["out.weight"]
    elif change == "output":
        state["out.bias"] = -state["out.bias"]
    elif change == "skip":
        state["down.0.hear.conv.weight"] = state["down.0.hear.conv.weight"] * 0
    elif change == "fourier":
        state["time.frequencies"] = state["time.frequencies"] * 1.01
    elif change == "attention":
        state["middle.attention.key.weight"] = state["middle.attention.key.weight"].T.contiguous()
    model.load_state_dict(state)
    x_t, y, ref = (torch.view_as_complex(golden[name]) for name in ("x_t", "y", "model"))
    with torch.no_grad():
        assert relative(model(x_t, y, golden["t"])[1], ref[1]) > 1e-4


def test_names_go_there_and_back(net, published):
    back = to_published(net)
    assert list(back) == [t.published for t in published_tensors(net)]
    assert set(back) == set(published)
    for name, tensor in back.items():
        torch.testing.assert_close(tensor, published[name].float(), rtol=0, atol=0)


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = NCSNpp()
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == PARAMETERS == 65_590_822
    assert len(published_tensors(model)) == len(model.state_dict())
    assert sum(tensor.trained for tensor in published_tensors(model)) == len(list(model.parameters()))


def test_every_parameter_learns():
    model = tiny(blocks=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, y, t = spectra(2)
    model(x, y, t).abs().square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # A constant added to all keys moves every score of a row by as much: softmax does not see it.
    assert all(name.endswith("attention.key.bias") or ".key.bias" in name for name in still), still


def test_a_new_network_is_almost_its_last_bias():
    """Residuals and answers begin at zero, so that training starts from a calm function."""
    torch.manual_seed(0)
    model = tiny()
    out = model(*spectra())
    bias = torch.complex(*model.out.bias.detach())
    assert (out - bias).abs().max() < 1e-3


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 24])
def test_any_number_of_frames_is_padded_with_zeros_and_cut(net, frames):
    x, y, t = spectra(frames=frames)
    more = -frames % net.grain
    padded = net(torch.nn.functional.pad(x, (0, more)), torch.nn.functional.pad(y, (0, more)), t)
    out = net(x, y, t)
    assert out.shape == x.shape
    torch.testing.assert_close(out, padded[..., :frames], rtol=0, atol=0)


def test_items_do_not_hear_each_other(net):
    x, y, t = spectra(3)
    whole = net(x, y, t)
    for item in range(3):
        alone = net(x[item : item + 1], y[item : item + 1], t[item : item + 1])
        assert relative(whole[item : item + 1], alone) < 1e-5


def test_silence_is_finite_and_nan_stays_in_its_item(net):
    x, y, t = spectra(2)
    assert net(0 * x, 0 * y, t).isfinite().all()
    x[0, 0, 0] = torch.nan
    out = net(x, y, t)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_double_precision_and_lists_of_a_recipe(net):
    model = tiny(multipliers=[1, 2, 2], attention=[8])
    model.load_state_dict(net.state_dict())
    x, y, t = spectra()
    exact = model.double()(x.to(torch.complex128), y.to(torch.complex128), t.double())
    assert relative(net(x, y, t), exact) < 1e-5


@pytest.mark.parametrize(
    "options",
    [{"width": 6}, {"width": 0}, {"multipliers": ()}, {"multipliers": (1, 0)}, {"freqs": 30}, {"freqs": 0}],
)
def test_sizes_that_are_none_are_refused(options):
    with pytest.raises(UsageError, match="NCSNpp"):
        tiny(**options)


def test_other_spectrograms_are_refused(net):
    x, y, t = spectra(freqs=16)
    with pytest.raises(UsageError, match="32 frequencies"):
        net(x, y, t)
    x, y, t = spectra(frames=0)
    with pytest.raises(UsageError, match="0 frames"):
        net(x, y, t)


def written_out_halve(row):
    padded = [0.0, *row, 0.0]
    return [
        (padded[2 * n] + 3 * padded[2 * n + 1] + 3 * padded[2 * n + 2] + padded[2 * n + 3]) / 8
        for n in range(len(row) // 2)
    ]


def written_out_double(row):
    padded = [0.0, *row, 0.0]
    out = []
    for n in range(1, len(row) + 1):
        out += [(padded[n - 1] + 3 * padded[n]) / 4, (3 * padded[n] + padded[n + 1]) / 4]
    return out


@pytest.mark.parametrize(("ours", "by_hand"), [(halve, written_out_halve), (double, written_out_double)])
def test_resampling_is_the_written_filter_on_both_axes(ours, by_hand):
    x = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along_frames = torch.tensor([by_hand(row) for row in x.tolist()], dtype=torch.float64)
    ref = torch.tensor([by_hand(row) for row in along_frames.T.tolist()], dtype=torch.float64).T
    torch.testing.assert_close(ours(x[None, None].repeat(1, 3, 1, 1))[0, 2], ref)


def test_doubling_is_four_times_the_transpose_of_halving():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=generator)
    small = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator)
    assert (halve(x) * small).sum().item() == pytest.approx((x * double(small)).sum().item() / 4)


def test_attention_is_the_written_softmax():
    torch.manual_seed(3)
    layer = Attention(8).double().requires_grad_(False)
    for tensor in layer.parameters():
        torch.nn.init.normal_(tensor, std=0.5)
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    places = layer.norm(x)[0].flatten(1).T
    query, key, value = layer.query(places), layer.key(places), layer.value(places)
    weights = torch.softmax(query @ key.T / 8**0.5, dim=1)
    ref = (x[0] + layer.out(weights @ value).T.reshape(8, 2, 3)) / 2**0.5
    torch.testing.assert_close(layer(x)[0], ref)


def test_times_become_sines_of_their_logarithm():
    layer = FourierTime(4, 16.0)
    seen = []
    layer.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer(torch.tensor([0.5]))
    angle = 2 * torch.pi * layer.frequencies.double() * torch.tensor(0.5, dtype=torch.float64).log()
    torch.testing.assert_close(seen[0][0].double(), torch.cat([angle.sin(), angle.cos()]), atol=2e-4, rtol=0)


def test_a_residual_block_begins_as_its_shortcut():
    block = ResidualBlock(8, 8, 16)
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x, torch.randn(1, 16)), x / 2**0.5, atol=1e-3, rtol=0)
