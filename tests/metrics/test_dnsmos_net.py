"""The P.835 network in torch against onnxruntime, and repetition taken out of a window against all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch

from auralign.metrics import dnsmos_net
from auralign.metrics.dnsmos import WINDOW, DnsMos
from auralign.metrics.dnsmos_net import EDGE_FRAMES, load_p835, without_repetition
from auralign.runtime import weights
from auralign.runtime.device import bfloat16_is_fast

SPEECH = Path(__file__).parents[1] / "fixtures" / "sounds" / "speech.flac"


@pytest.fixture(scope="module")
def speech():
    return torch.from_numpy(soundfile.read(SPEECH, dtype="float32")[0])


@pytest.fixture(scope="module")
def network():
    return load_p835(weights.path("dnsmos") / "p835.onnx")


def repeated(clip: torch.Tensor, start: int = 0) -> torch.Tensor:
    times = -(-(WINDOW + start) // len(clip))
    return clip.repeat(times)[start : start + WINDOW]


def test_equals_onnxruntime_on_speech_noise_and_silence(network, speech):
    noise = torch.randn(WINDOW, generator=torch.Generator().manual_seed(0))
    quiet = torch.zeros(WINDOW)
    quiet[5000] = 0.5
    windows = torch.stack([repeated(speech), repeated(speech) * 0.3 + 0.03 * noise, quiet])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(weights.path("dnsmos") / "p835.onnx", options)
    peer = session.run(None, {"input_1": windows.numpy()})[0]
    np.testing.assert_allclose(network(windows).numpy(), peer, atol=5e-5)
    assert float(np.ptp(peer, axis=0).min()) > 0.05  # the three are told apart


@pytest.mark.parametrize("period", [1600, 33_280, 16_000, 67_840])
def test_a_head_of_a_repeated_clip_has_the_score_of_all_of_it(network, speech, period):
    window = repeated(speech.repeat(2)[20_000 : 20_000 + period], start=period // 3)
    head = without_repetition(WINDOW, period)
    assert head < WINDOW
    assert (WINDOW - head) % period == 0
    torch.testing.assert_close(network(window[None, :head]), network(window[None]), atol=2e-6, rtol=0)


def test_nothing_can_go_from_other_windows():
    assert without_repetition(WINDOW, 33_281) == WINDOW  # no multiple of it is a multiple of eight frames
    assert without_repetition(WINDOW, 69_120) == WINDOW  # one period and the edges leave no second one
    assert without_repetition(WINDOW, 160_000) == WINDOW
    assert without_repetition(WINDOW, 1) == WINDOW - 106 * 1280


def test_one_period_and_the_edges_are_needed(network):
    """Each value of the last map depends on 44 frames: a click moves it from there and from nowhere else."""
    x = torch.randn(1, 120, 161, generator=torch.Generator().manual_seed(0))
    maps = []
    hook = network.convs[-1].register_forward_hook(lambda _, __, y: maps.append(y[:, :, 6].clone()))
    network._maps(x)
    touched = {}
    for frame in (28, 29, 30, 31, 72, 73, 74, 75):
        moved = x.clone()
        moved[:, frame] += 50.0
        network._maps(moved)
        touched[frame - 48] = not torch.equal(maps[-1], maps[0])
    hook.remove()
    assert not any(touched[frame] for frame in (-20, -19, 26, 27))
    assert any(touched[frame] for frame in (-18, -17))
    assert any(touched[frame] for frame in (24, 25))
    assert EDGE_FRAMES == 25 + 18 + 1


def test_tiles_change_nothing(network, speech, monkeypatch):
    window = speech[None, : 160 * 204]
    whole = network(window)
    monkeypatch.setattr(dnsmos_net, "TILE_FRAMES", 50)
    torch.testing.assert_close(network(window), whole, atol=2e-6, rtol=0)


def test_the_scorer_takes_repetition_out_by_itself(speech, monkeypatch):
    heard = []
    raw = dnsmos_net.P835Net.forward

    def forward(self, windows):
        heard.append(tuple(windows.shape))
        return raw(self, windows)

    monkeypatch.setattr(dnsmos_net.P835Net, "forward", forward)
    clips = [speech[:33_280], speech[:50_001], speech[10_000:43_280]]
    scorer = DnsMos(p808=False, most_windows=1)
    short = [one["dnsmos_ovrl"].value for one in scorer(clips, 16_000)]
    assert sorted(heard) == [(1, WINDOW), (2, 44_320)]
    monkeypatch.setattr("auralign.metrics.dnsmos.without_repetition", lambda samples, period: samples)
    whole = [one["dnsmos_ovrl"].value for one in scorer(clips, 16_000)]
    np.testing.assert_allclose(short, whole, atol=2e-6)
    assert len({round(value, 3) for value in whole}) == 3


def test_narrow_is_near_and_falls_back_to_float32(speech, monkeypatch, network):
    window = speech[None, :44_320]
    exact = network(window)
    narrow = load_p835(weights.path("dnsmos") / "p835.onnx", narrow=True)
    assert narrow.narrow == bfloat16_is_fast()
    torch.testing.assert_close(narrow(window), exact, atol=0.02, rtol=0)
    monkeypatch.setattr(dnsmos_net, "bfloat16_is_fast", lambda: False)
    wide = load_p835(weights.path("dnsmos") / "p835.onnx", narrow=True)
    assert not wide.narrow
    assert torch.equal(wide(window), exact)
