"""The speaker encoder against Resemblyzer's own network code and numbers, and at its edges."""

from __future__ import annotations

import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from auralign.audio.mel import mel_power
from auralign.models.speaker import load_speaker_encoder, part_starts
from auralign.runtime import weights, wheels

MEL_ROW = (5.811500614e-06, 0.0025687150192, 0.0032925542910, 1.0676122884e-06)
MEL_SUM = 117.28572082519531
TOP = [155, 163, 107, 138, 199, 132]
TOP_VALUES = (0.235926, 0.227384, 0.218216, 0.215942, 0.207301, 0.204713)


@pytest.fixture(scope="module")
def net():
    return load_speaker_encoder()


@pytest.fixture(scope="module")
def authors():
    """Resemblyzer's own encoder, run from its wheel without its audio code (which needs librosa)."""
    wheel = wheels.find_wheel(weights.spec_of("resemblyzer"))
    hparams = types.ModuleType("resemblyzer.hparams")
    code = types.ModuleType("resemblyzer.voice_encoder")
    package = types.ModuleType("resemblyzer")
    package.audio = types.ModuleType("resemblyzer.audio")
    fakes = {"resemblyzer": package, "resemblyzer.hparams": hparams, "resemblyzer.audio": package.audio}
    with zipfile.ZipFile(wheel) as archive, pytest.MonkeyPatch.context() as patched:
        for name, module in fakes.items():
            patched.setitem(sys.modules, name, module)
        exec(archive.read("resemblyzer/hparams.py"), hparams.__dict__)
        exec(archive.read("resemblyzer/voice_encoder.py"), code.__dict__)
    return code


def test_parts_start_where_the_authors_slices_do(authors):
    for samples in (1, 160, 8000, 16000, 25600, 32000, 37920, 38000, 50000, 65536, 160000, 999_999):
        _, slices = authors.VoiceEncoder.compute_partial_slices(samples, 1.3, 0.75)
        assert part_starts(samples) == [one.start for one in slices], samples


def test_vectors_equal_the_authors(net, authors, voice):
    oracle = authors.VoiceEncoder.__new__(authors.VoiceEncoder)
    torch.nn.Module.__init__(oracle)
    oracle.lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
    oracle.linear, oracle.relu, oracle.device = torch.nn.Linear(256, 256), torch.nn.ReLU(), "cpu"
    oracle.load_state_dict(weights.tensors("resemblyzer"), strict=False)
    wave = voice(3.3, 120.0, 0)
    authors.audio.wav_to_mel_spectrogram = lambda samples: net_mel(net, samples)
    theirs = oracle.embed_utterance(wave)  # louder than -30 dBFS: its level stays
    np.testing.assert_allclose(net(torch.from_numpy(wave)[None])[0].numpy(), theirs, atol=1e-6)


def net_mel(net, wave: np.ndarray) -> np.ndarray:
    """The front end, which the golden numbers below check on its own."""
    return mel_power(torch.from_numpy(wave)[None], net.bank, net.window, hop=160)[0].numpy()


def test_front_end_equals_librosas(net, voice):
    """Golden numbers of librosa 0.11: ``melspectrogram`` with n_fft 400, hop 160, 40 mels."""
    mel = net_mel(net, voice(3.3, 120.0, 0))
    assert mel.shape == (331, 40)
    np.testing.assert_allclose(mel[50, [0, 5, 20, 39]], MEL_ROW, rtol=2e-4)
    assert float(mel.sum()) == pytest.approx(MEL_SUM, rel=1e-5)


def test_vector_equals_the_package(net, voice):
    """Golden numbers of Resemblyzer 0.1.4 with librosa 0.11, pauses left in."""
    vector = net(torch.from_numpy(voice(3.3, 120.0, 0))[None])[0].numpy()
    assert np.argsort(-vector)[:6].tolist() == TOP
    np.testing.assert_allclose(vector[TOP], TOP_VALUES, atol=2e-5)


def test_one_voice_is_closer_than_two(net, voice):
    low, low2, high = (
        net(torch.from_numpy(voice(3.0, hz, seed))[None])[0]
        for hz, seed in ((110.0, 0), (110.0, 5), (230.0, 1))
    )
    assert float(low @ low2) > 0.95 > float(low @ high) + 0.05


def test_vectors_do_not_depend_on_the_batch_or_on_how_many_run_together(net, voice):
    waves = torch.from_numpy(np.stack([voice(2.7, hz, 0) for hz in (110.0, 180.0, 240.0)]))
    together = net(waves)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(net(waves, at_once=2), together, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(net(waves[1:2]), together[1:2], atol=1e-6, rtol=1e-5)


def test_below_30_dbfs_the_level_does_not_matter(net, voice):
    wave = torch.from_numpy(voice(2.0, 120.0, 0))[None]
    wave = wave / wave.square().mean().sqrt() * 10 ** (-30 / 20)
    torch.testing.assert_close(net(wave * 0.01), net(wave), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 100, 1600])
def test_the_shortest_sounds_have_a_vector(net, voice, samples):
    vector = net(torch.from_numpy(voice(1.0, 120.0, 0))[None, :samples])
    assert bool(vector.isfinite().all())


def test_silence_and_nan_have_none_and_gradients_reach_the_others(net, voice):
    wave = torch.from_numpy(np.stack([voice(1.0, 120.0, 0)] * 3))
    wave[1] = 0.0
    wave[2, 7] = torch.nan
    wave.requires_grad_()
    vectors = net(wave)
    assert vectors.isnan().any(dim=1).tolist() == [False, True, True]
    vectors[0].sum().backward()
    assert bool(wave.grad[0].abs().sum() > 0)
    assert bool(wave.grad[0].isfinite().all())
