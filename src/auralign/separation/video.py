"""Still pictures out of a video, through the optional PyAV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from auralign.errors import AudioError


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
                if total:
                    container.seek(int(total * (n + 0.5) / count))
                frame: Any = next(iter(container.decode(stream)), None)
                if frame is not None:
                    pictures.append(frame.to_image())
    except (av.error.FFmpegError, IndexError, StopIteration, OSError) as error:
        if not pictures:
            raise AudioError(
                "no picture can be read from the video", where=str(path), why=str(error)
            ) from error
    if not pictures:
        raise AudioError("the video shows no picture", where=str(path))
    return pictures
