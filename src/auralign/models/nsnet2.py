r"""NSNet2, the public baseline of the DNS challenge, as a peer to compare with.

Braun, Tashev 2020, *Data augmentation and loss normalization for deep noise suppression* (arXiv:2008.06412);
Microsoft's weights for 16 kHz, run by onnxruntime. Frames of 20 ms every 10 ms through the root of a Hann window;
the network hears :math:`\log_{10}\max(|X|^2, 10^{-12})`, two recurrent layers between dense ones, and gives one gain
for each bin, which is kept between -80 dB and 0 dB; the phase is the input's.

Everything is as in the published script, whose window is the symmetric one and whose first 10 ms fade in. It follows
the level of its input, which is heard as it is, and takes a recording whole.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

from auralign.errors import UsageError
from auralign.models.onnx_session import open_session
from auralign.runtime import weights

RATE_HZ = 16_000
WINDOW, HOP = 320, 160
LEAST_POWER = 1e-12
LEAST_GAIN = 10 ** (-80 / 20)


@final
class Nsnet2:
    """The published network as an enhancer.

    Args:
        threads: Threads of the runtime; ``None`` takes torch's number.
        offline: See :func:`auralign.runtime.weights.path`.
    """

    name = "nsnet2"
    rate_hz = RATE_HZ

    def __init__(self, *, threads: int | None = None, offline: bool | None = None) -> None:
        self._session: Any = open_session(weights.path(self.name, offline=offline) / "nsnet2.onnx", threads)
        self._window = torch.from_numpy(np.sqrt(np.hanning(WINDOW)))

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
        spec = self._analyse(wave.detach().cpu().double())
        heard = spec.abs().square().clamp_min(LEAST_POWER).log10()
        gain = torch.from_numpy(self._session.run(None, {"input": heard.float().numpy()})[0])
        return self._synthesise(spec * gain.double().clamp(LEAST_GAIN, 1.0), wave.shape[-1]).to(wave)

    def _analyse(self, wave: Float[Tensor, "batch time"]) -> Complex[Tensor, "batch frame 161"]:
        frames = -(-wave.shape[-1] // HOP)
        padded = F.pad(wave, (0, (frames + 1) * HOP - wave.shape[-1]))
        spec: Tensor = torch.fft.rfft(padded.unfold(-1, WINDOW, HOP) * self._window)
        return spec

    def _synthesise(
        self, spec: Complex[Tensor, "batch frame 161"], length: int
    ) -> Float[Tensor, "batch time"]:
        frames = torch.fft.irfft(spec, WINDOW) * self._window
        size = (1, (frames.shape[1] + 1) * HOP)
        added = F.fold(frames.transpose(1, 2), size, (1, WINDOW), stride=(1, HOP))
        cut: Tensor = added[:, 0, 0, :length]
        return cut
