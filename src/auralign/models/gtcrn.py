r"""GTCRN, a small public enhancer, as a peer to compare with.

Rong, Sun, Zhang, Hu, Zhu, Lu 2024, *GTCRN: a speech enhancement model requiring ultralow computational resources*
(ICASSP), 48 thousand parameters; the author's streaming network (``gtcrn_simple``, trained on the third DNS
challenge), run by onnxruntime one frame at a time. Frames of 32 ms every 16 ms at 16 kHz through the root of a Hann
window; the network gives the enhanced complex spectrum of the frame from it and from the caches of its convolutions,
its time attention and its recurrent layers.

It is causal, hears the level as it is, and looks no further than its frame.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.models.onnx_session import open_session
from auralign.runtime import weights

RATE_HZ = 16_000
N_FFT, HOP = 512, 256
CACHES = {
    "conv_cache": (2, 1, 16, 16, 33),
    "tra_cache": (2, 3, 1, 1, 16),
    "inter_cache": (2, 1, 33, 16),
}


@final
class Gtcrn:
    """The published network as an enhancer.

    Args:
        threads: Threads of the runtime; a frame is so little work that one is fastest.
        offline: See :func:`auralign.runtime.weights.path`.
    """

    name = "gtcrn"
    rate_hz = RATE_HZ

    def __init__(self, *, threads: int | None = 1, offline: bool | None = None) -> None:
        self._session: Any = open_session(weights.path(self.name, offline=offline) / "gtcrn.onnx", threads)
        self._window = torch.hann_window(N_FFT).sqrt()

    def enhance_wave(
        self, wave: Float[Tensor, "batch time"], *, steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "batch time"]:
        """Each sound without its noise.

        Args:
            wave: Sounds at 16 kHz, one sample or more.
            steps: One pass does it; other numbers change nothing.
            seed: Nothing is drawn.

        Raises:
            UsageError: A sample is NaN or infinite.
        """
        del steps, seed
        if not bool(wave.isfinite().all()):
            raise UsageError("the recording has samples that are not finite", where=self.name)
        if not wave.numel():
            return wave.clone()
        heard = wave.detach().cpu().float()
        spec = torch.stft(
            heard, N_FFT, HOP, window=self._window, center=True, pad_mode="constant", return_complex=True
        )
        clean = torch.stack([self._stream(one) for one in spec])
        return torch.istft(clean, N_FFT, HOP, window=self._window, length=wave.shape[-1]).to(wave)

    def _stream(self, spec: Complex[Tensor, "257 frame"]) -> Complex[Tensor, "257 frame"]:
        """One recording, frame after frame, the caches handed on."""
        frames = torch.view_as_real(spec).transpose(0, 1).contiguous().numpy()
        caches = [np.zeros(shape, np.float32) for shape in CACHES.values()]
        found = []
        for frame in frames:
            given = {"mix": frame[None, :, None], **dict(zip(CACHES, caches, strict=True))}
            enhanced, *caches = self._session.run(None, given)
            found.append(enhanced[0, :, 0])
        return torch.view_as_complex(torch.from_numpy(np.stack(found, axis=1)))
