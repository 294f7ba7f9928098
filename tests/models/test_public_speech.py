"""Public checkpoints: the authors' numbers through the reader, averages in the right order, and refusals."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from auralign.errors import ModelUnavailableError, UsageError
from auralign.flow.ode import solve
from auralign.flow.path import noisy_mean
from auralign.flow.schedule import stopped
from auralign.models import flow_nets
from auralign.models.enhancer import Enhancer, EnhancerModel
from auralign.models.ncsnpp import NCSNpp
from auralign.models.public_speech import convert_public, read_public
from auralign.models.score_enhancer import ScoreEnhancer

GOLDEN = Path(__file__).parents[1] / "fixtures/ncsnpp/golden.safetensors"
SIZE = {"ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [8], "n_fft": 62, "hop_length": 16}
FRONT = {"spec_factor": 0.2, "spec_abs_exponent": 0.6, "transform_type": "exponent", "window": "hann"}
SAID = {
    "sgmse": {**SIZE, **FRONT, "backbone": "ncsnpp", "sde": "ouve", "theta": 1.4, "sigma_min": 0.04}
    | {"sigma_max": 0.45, "t_eps": 0.02, "loss_type": "score_matching", "sr": 16000},
    "flowmse": {**SIZE, **FRONT, "backbone": "ncsnpp", "ode": "flowmatching", "sigma_min": 0.0}
    | {"sigma_max": 0.4, "t_eps": 0.02, "T_rev": 1.0, "loss_type": "mse"},
}


@pytest.fixture(autouse=True)
def _set_up(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(flow_nets, "NETWORKS", {**flow_nets.NETWORKS, "ncsnpp": ("velocity", NCSNpp)})


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture
def checkpoint(tmp_path, golden):
    """Writes a checkpoint as Lightning does; the averages are the golden weights, the last weights are noise."""

    def write(family="flowmse", *, ema="all", said=None, change=None, order=None):
        names = [n for n in golden if n.startswith("weights.")]
        # The state dict of the authors: the last convolution, then the list by number.
        names.sort(key=lambda n: (not n.startswith("weights.output"), *_place(n)))
        weights = {n.removeprefix("weights."): golden[n].float() for n in names}
        state = {
            f"dnn.{n}": t if ema is None or n == "all_modules.0.W" else 0.5 - t for n, t in weights.items()
        }
        held = {"epoch": 3, "state_dict": state, "hyper_parameters": SAID[family] if said is None else said}
        if ema:
            shadow = [t for n, t in weights.items() if ema == "all" or n != "all_modules.0.W"]
            held["ema"] = {
                "decay": 0.999,
                "num_updates": 9,
                "shadow_params": shadow,
                "collected_params": None,
            }
        if change:
            change(held)
        torch.save(held, tmp_path / "some.ckpt")
        return tmp_path / "some.ckpt"

    return write


def _place(name):
    """Number in the list, then the order in which the authors' blocks make their layers."""
    parts = name.split(".")[1:]
    if parts[0] == "output_layer":
        return 0, 0, parts[-1] == "bias"
    layers = [
        "GroupNorm_0",
        "NIN_0",
        "NIN_1",
        "NIN_2",
        "NIN_3",
        "Conv_0",
        "Dense_0",
        "GroupNorm_1",
        "Conv_1",
        "Conv_2",
    ]
    layer = layers.index(parts[2]) if len(parts) == 4 else 0
    return int(parts[1]), layer, parts[-1] in ("bias", "b")


def numbers(golden):
    return [torch.view_as_complex(golden[n]) for n in ("x_t", "y", "model")]


@pytest.mark.parametrize("ema", ["all", "trained", None])
@pytest.mark.parametrize("family", ["sgmse", "flowmse"])
def test_gives_the_authors_numbers(checkpoint, golden, family, ema):
    read = read_public(checkpoint(family, ema=ema))
    x_t, y, ref = numbers(golden)
    with torch.no_grad():
        est = read.network(x_t, y, golden["t"])
    assert (est - ref).abs().max() < 1e-5 * ref.abs().max()
    assert read.settings.weights == ("averaged" if ema else "last")
    assert all(p.device.type == "cpu" for p in read.network.parameters())


def test_averages_in_another_order_would_be_seen(checkpoint, golden):
    """Two tensors of one shape exchanged: no shape tells, the numbers do."""

    def swap(held):
        shadow = held["ema"]["shadow_params"]
        same = [i for i, t in enumerate(shadow) if t.shape == shadow[-4].shape]
        shadow[same[0]], shadow[same[1]] = shadow[same[1]], shadow[same[0]]

    x_t, y, ref = numbers(golden)
    with torch.no_grad():
        est = read_public(checkpoint(change=swap)).network(x_t, y, golden["t"])
    assert (est - ref).abs().max() > 1e-4 * ref.abs().max()


def test_settings_are_those_of_the_file(checkpoint):
    for family in ("sgmse", "flowmse"):
        settings = read_public(checkpoint(family)).settings
        assert settings.family == family
        assert not settings.assumed
        assert settings.front == {"n_fft": 62, "hop": 16, "exponent": 0.6, "factor": 0.2}
        assert settings.network["multipliers"] == [1, 2, 2]
        assert settings.values["sigma_max"] == SAID[family]["sigma_max"]
        assert settings.values["loss_type"] == SAID[family]["loss_type"]


def test_what_the_file_does_not_say_is_the_published_default_and_said(checkpoint, caplog):
    with caplog.at_level(logging.WARNING):
        read = read_public(checkpoint(said=SIZE), family="flowmse")
    assert read.settings.values["sigma_max"] == 0.487
    assert read.settings.front["factor"] == 0.15
    assert {"sigma_max", "spec_factor", "t_eps", "ode"} <= set(read.settings.assumed)
    assert "sigma_max" in caplog.text
    with pytest.raises(ModelUnavailableError, match="family='sgmse'"):
        read_public(checkpoint(said=SIZE))


def test_a_file_without_averages_is_said(checkpoint, caplog):
    with caplog.at_level(logging.WARNING):
        read_public(checkpoint(ema=None))
    assert "no averaged weights" in caplog.text


@pytest.mark.parametrize(
    ("family", "other"),
    [
        ("sgmse", {"backbone": "ncsnpp_v2"}),
        ("sgmse", {"backbone": "ncsnpp_48k"}),
        ("sgmse", {"sde": "sbve"}),
        ("sgmse", {"sr": 48000}),
        ("flowmse", {"sigma_min": 0.1}),
        ("flowmse", {"T_rev": 0.8}),
        ("flowmse", {"transform_type": "log"}),
    ],
)
def test_other_models_are_refused_by_name(checkpoint, family, other):
    with pytest.raises(ModelUnavailableError, match=next(iter(other))):
        read_public(checkpoint(family, said={**SAID[family], **other}))


def _drop(held):
    del held["state_dict"]["dnn.all_modules.4.Conv_0.weight"]


def _bend(held):
    held["state_dict"]["dnn.all_modules.4.Conv_0.weight"] = torch.zeros(4, 4, 1, 1)


def _add(held):
    held["state_dict"]["dnn.all_modules.99.weight"] = torch.zeros(1)


def _shorten(held):
    del held["ema"]["shadow_params"][-2:]


def _bend_average(held):
    held["ema"]["shadow_params"][0] = torch.zeros(3)


def _sort(held):
    held["state_dict"] = dict(sorted(held["state_dict"].items()))


def _empty(held):
    held["state_dict"] = {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "missing, first all_modules.4.Conv_0.weight"),
        (_bend, r"misshapen, first all_modules.4.Conv_0.weight \(4, 4, 1, 1\) for \(4, 4, 3, 3\)"),
        (_add, "unknown, first all_modules.99.weight"),
        (_shorten, "'ema' has"),
        (_bend_average, "misshapen, first output_layer.weight"),
        (_sort, "order"),
        (_empty, r"dnn.all_modules.0.W"),
    ],
)
def test_what_does_not_fit_is_named(checkpoint, change, message):
    with pytest.raises(ModelUnavailableError, match=message):
        read_public(checkpoint(change=change))


def relative(est, ref):
    """Of the root of the mean square; random weights blow rounding up more than trained ones do."""
    return ((est - ref).square().mean() / ref.square().mean()).sqrt()


def recordings(samples=700):
    return 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("family", "kind"), [("sgmse", ScoreEnhancer), ("flowmse", EnhancerModel)])
def test_a_converted_checkpoint_enhances(checkpoint, tmp_path, family, kind):
    """File → folder → model: equal to the one read, deterministic, independent of level and company."""
    model = convert_public(checkpoint(family), tmp_path / "out")
    again = kind.load(tmp_path / "out")
    wave = recordings()
    assert isinstance(model, Enhancer)
    assert again.card["weights"] == "averaged"
    assert again.card["settings"]["sigma_max"] == SAID[family]["sigma_max"]
    first = model.enhance_wave(wave, steps=3, seed=4)
    assert first.shape == wave.shape
    assert first.isfinite().all()
    torch.testing.assert_close(again.enhance_wave(wave, steps=3, seed=4), first, rtol=0, atol=0)
    assert not torch.equal(model.enhance_wave(wave, steps=3, seed=5), first)
    assert relative(model.enhance_wave(wave[:1], steps=3, seed=4), first[:1]) < 1e-3
    assert relative(model.enhance_wave(8 * wave, steps=3, seed=4) / 8, first) < 1e-3


def test_flowmse_is_sampled_as_published(checkpoint):
    """Five Euler steps from y + σ z on the grid that ends with a step from t_eps."""
    model = read_public(checkpoint()).enhancer()
    noisy = model.spectrogram(recordings() / recordings().abs().amax(-1, keepdim=True))
    path = noisy_mean(noisy, scale=0.4)
    x = start = path.draw(noisy, generator=torch.Generator().manual_seed(1))
    times = [*torch.linspace(1.0, 0.02, 5).tolist(), 0.0]
    with torch.no_grad():
        for t, t_next in pairwise(times):
            x = x - (t - t_next) * model.net(x, noisy, torch.full((2,), t))
        est = solve(model.velocity(noisy), start, stopped(5, 0.02))
    torch.testing.assert_close(est, x, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.times(), stopped(5, 0.02))


def test_the_score_enhancer_finds_speech_when_its_score_is_exact():
    """With the score of one known clean recording in the network's place, the clean recording comes out."""
    clean, noise = recordings(4000), 0.05 * recordings(4000).flip(-1)
    model = ScoreEnhancer({"width": 4, "multipliers": (1, 1), "blocks": 1, "attention": ()})
    wave = clean + noise
    target = model.front.spectrum(clean / wave.abs().amax(-1, keepdim=True))

    class Exact(torch.nn.Module):
        def forward(self, x, y, t):
            x_0 = target[:1] if torch.equal(y, noisy[:1]) else target[1:]
            return model.sde.gaussian_score(x, x_0, y, t)

    noisy = model.front.spectrum(wave / wave.abs().amax(-1, keepdim=True))
    model.net = Exact()
    model.net.register_parameter("place", torch.nn.Parameter(torch.zeros(1)))
    out = model.enhance_wave(wave)
    error = (out - clean).square().mean() / clean.square().mean()
    assert error < 0.02


@pytest.mark.parametrize("samples", [0, 1, 17])
def test_short_and_silent_recordings_keep_their_length(checkpoint, samples):
    model = read_public(checkpoint("sgmse")).enhancer()
    out = model.enhance_wave(torch.zeros(1, samples), steps=2)
    assert out.shape == (1, samples)
    assert out.isfinite().all()
    with pytest.raises(UsageError, match="finite"):
        model.enhance_wave(torch.full((1, 40), torch.nan))
    with pytest.raises(UsageError, match="steps"):
        model.enhance_wave(torch.zeros(1, 40), steps=1)
