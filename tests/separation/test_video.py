from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch

from auralign.errors import AudioError
from auralign.separation.query import Query, encode
from auralign.separation.video import frames

av = pytest.importorskip("av")


@pytest.fixture
def film(tmp_path) -> Path:
    """Two seconds: red, then blue."""
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.gop_size = 100  # one key frame
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(20):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[..., 0 if n < 10 else 2] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_frames_are_spread_over_the_film(film):
    stills = frames(film, 5)
    assert [still.size for still in stills] == [(64, 48)] * 5
    first, last = (np.asarray(still).mean(axis=(0, 1)) for still in (stills[0], stills[-1]))
    assert first[0] > 200 > 60 > first[2]
    assert last[2] > 200 > 60 > last[0]


def test_a_film_is_a_query(film, tiny):
    vector = encode(tiny, Query(images=(film,))).vector
    assert vector.norm() == pytest.approx(1.0, abs=1e-5)
    assert torch.isfinite(vector).all()


@pytest.mark.parametrize("content", [b"", b"no film at all", b"\0\0\0\x18ftypmp42"])
def test_what_is_no_film_is_refused_by_name(content, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"film\.mp4"):
        frames(path, 3)
    with pytest.raises(AudioError, match=r"gone\.mp4"):
        frames(tmp_path / "gone.mp4", 3)


def test_a_film_without_a_picture_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(AudioError, match="no picture"):
        frames(path, 3)


def test_without_pyav_the_message_says_what_to_install(film, monkeypatch):
    real = builtins.__import__

    def fake(name, *rest, **more):
        if name == "av":
            raise ImportError("no av")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(AudioError, match=r"auralign\[video\]"):
        frames(film, 1)
