"""Still pictures out of a video, through the optional PyAV."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from auralign.errors import AudioError

_MOST_FRAMES = 500  # decoded for one still, where key frames are far apart


def frames(path: Path, count: int) -> list[Image.Image]:
    """``count`` pictures spread evenly over a video, fewer if it has fewer.

    Raises:
        AudioError: PyAV is not installed, or the file shows no picture.
    """
    try:
        import av
    except ImportError as error:
        raise AudioError(
            "reading a video needs PyAV",
            where=str(path),
            hint="pip install 'auralign[video]', or give a picture",
        ) from error
    pictures: list[Image.Image] = []
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            stream = container.streams.video[0]
            total = container.duration or 0
            for n in range(count):
                wanted_us = int(total * (n + 0.5) / count)
                if total:
                    container.seek(wanted_us)
                still = _still(container.decode(stream), wanted_us / av.time_base)
                if still is not None:
                    pictures.append(still.to_image())
    except (av.error.FFmpegError, IndexError, StopIteration, OSError) as error:
        if not pictures:
            raise AudioError(
                "no picture can be read from the video", where=str(path), why=str(error)
            ) from error
    if not pictures:
        raise AudioError("the video shows no picture", where=str(path))
    return pictures


def _still(decoded: Iterable[Any], wanted_s: float) -> Any:
    """The first frame at or after a time, or the last there is; seeking alone only finds a key frame before it."""
    found = None
    for found in itertools.islice(decoded, _MOST_FRAMES):
        if found.time is None or found.time >= wanted_s:
            break
    return found
