r"""DNSMOS: what listeners would say about noisy or enhanced speech, without a reference.

Reddy, Gopal, Cutler 2022, *DNSMOS P.835* (arXiv:2110.01763): speech (SIG), background (BAK) and overall (OVRL)
quality, 1 to 5; and 2021, *DNSMOS* (arXiv:2010.15258): P.808 overall quality. Both networks hear 9.01 s at
16 kHz. The published script doubles a shorter clip until it is that long, moves the window by 1 s, maps each raw
P.835 score by a polynomial fitted to listeners, and takes means over windows. Windows that doubling made equal
run once here, and P.835 hears of a repeated clip no more than decides the score
(:func:`auralign.metrics.dnsmos_net.without_repetition`).

The scores follow the level. A clip beyond ±1 has no score: what a listener heard would have been clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from auralign.audio.mel import mel_power, slaney_mel_bank
from auralign.errors import ModelUnavailableError, UsageError
from auralign.metrics.contract import SILENT_ESTIMATE, MetricResult, is_silent
from auralign.metrics.dnsmos_net import P835Net, load_p835, without_repetition
from auralign.runtime import weights

RATE_HZ = 16_000
WINDOW_S = 9.01
WINDOW = int(WINDOW_S * RATE_HZ)
NAMES = ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl", "dnsmos_p808")
BEYOND_FULL_SCALE = "estimate has samples beyond ±1"
NO_SAMPLES = "estimate has no samples"
_CALIBRATION = (
    (-0.08397278, 1.22083953, 0.0052439),  # SIG: a second-order polynomial, highest power first
    (-0.13166888, 1.60915514, -0.39604546),  # BAK
    (-0.06766283, 1.11546468, 0.04602535),  # OVRL
)
_P808_FFT, _P808_HOP, _P808_MELS, _P808_CUT = 321, 160, 120, 160


def window_starts(samples: int) -> tuple[int, list[int]]:
    """Length after doubling, and the first sample of each 9.01-s window, as the published script has them.

    The script rounds ``(start + 9.01) * 16000`` down and drops a window that comes out a sample short: so it
    never hears those that start at 7 to 23 s, nor at 119 to 122 s. All published numbers are made so, these too.

    >>> window_starts(16000 * 10)
    (160000, [0])
    >>> window_starts(16000 * 4)
    (256000, [0, 16000, 32000, 48000, 64000, 80000, 96000])
    >>> [start // 16000 for start in window_starts(16000 * 34)[1]]
    [0, 1, 2, 3, 4, 5, 6, 24]
    """
    length = samples
    while length < WINDOW:
        length *= 2
    hops = int(length // RATE_HZ - WINDOW_S) + 1
    heard = [hop for hop in range(hops) if int((hop + WINDOW_S) * RATE_HZ) - hop * RATE_HZ == WINDOW]
    starts = [hop * RATE_HZ for hop in heard if hop * RATE_HZ + WINDOW <= length]
    return length, starts


def calibrate(raw: Float[np.ndarray, "window 3"]) -> Float64[np.ndarray, "window 3"]:
    """Raw SIG, BAK, OVRL of the network on the listeners' scale.

    >>> calibrate(np.asarray([[3.0, 3.0, 3.0]])).round(3).tolist()
    [[2.912, 3.246, 2.783]]
    """
    columns = [np.polyval(c, raw[:, i].astype(np.float64)) for i, c in enumerate(_CALIBRATION)]
    return np.stack(columns, axis=1)


def p808_features(windows: Float[Tensor, "window 144160"]) -> Float[Tensor, "window 900 120"]:
    """Input of the P.808 network: 120 mel bands in dB below each window's peak, floor -80 dB, ``(dB + 40) / 40``."""
    bank = slaney_mel_bank(n_fft=_P808_FFT, mels=_P808_MELS, rate_hz=RATE_HZ)
    mel = mel_power(windows[:, :-_P808_CUT], bank, torch.hann_window(_P808_FFT), hop=_P808_HOP)
    decibels = 10 * torch.log10(mel.clamp_min(1e-10))
    decibels = decibels - decibels.amax(dim=(1, 2), keepdim=True)
    return (decibels.clamp_min(-80.0) + 40.0) / 40.0


def why_no_dnsmos(sound: Float[Tensor, " time"]) -> str:
    """Why a clip has no score, or an empty string.

    >>> why_no_dnsmos(torch.zeros(16000)), why_no_dnsmos(torch.full((9,), 2.0))
    ('silent estimate', 'estimate has samples beyond ±1')
    """
    if not sound.numel():
        return NO_SAMPLES
    if not bool(sound.isfinite().all()):
        return "estimate has NaN or infinite samples"
    if is_silent(sound):
        return SILENT_ESTIMATE
    return BEYOND_FULL_SCALE if float(sound.abs().max()) > 1.0 else ""


@final
class DnsMos:
    """Both networks, opened once, for many clips: P.835 in torch, P.808 in onnxruntime.

    Args:
        p808: Score P.808 too.
        most_windows: Score at most so many windows of a clip, spread evenly; ``None`` scores all, which is what is
            published. A reward may do with one or two.
        most_repeated: The same for a clip shorter than a window, whose windows all repeat the same sounds.
        narrow: P.835 convolves in bfloat16 where the CPU is faster at it. Scores move by 0.001 to 0.002, and
            differences between variants of a clip by 0.001 to 0.004; reports do without.
        at_once: Windows that run together.
        threads: Threads of P.808's runtime; ``None`` takes torch's number, as P.835 does.
        offline: See :func:`auralign.runtime.weights.path`.
    """

    def __init__(
        self,
        *,
        p808: bool = True,
        most_windows: int | None = None,
        most_repeated: int | None = None,
        narrow: bool = False,
        at_once: int = 8,
        threads: int | None = None,
        offline: bool | None = None,
    ) -> None:
        if any(most is not None and most < 1 for most in (at_once, most_windows, most_repeated)):
            raise UsageError(
                f"at_once = {at_once}, most_windows = {most_windows}, most_repeated = {most_repeated}; "
                "all must be at least 1",
                where="DNSMOS",
            )
        folder = weights.path("dnsmos", offline=offline)
        self.most_windows, self.most_repeated, self.at_once = most_windows, most_repeated, at_once
        self._p835 = load_p835(folder / "p835.onnx", narrow=narrow)
        self._p808 = _session(folder / "p808.onnx", threads) if p808 else None

    @property
    def names(self) -> tuple[str, ...]:
        """Scores it gives."""
        return NAMES if self._p808 is not None else NAMES[:3]

    def __call__(self, sounds: Sequence[Float[Tensor, " _"]], rate_hz: int) -> list[dict[str, MetricResult]]:
        """The scores of each clip by name; nan and a reason for a clip that has none.

        Args:
            sounds: Clips of any lengths, one channel each.
            rate_hz: Their rate, 16 kHz.
        """
        if rate_hz != RATE_HZ:
            raise UsageError(
                f"the sounds are at {rate_hz} Hz, DNSMOS hears {RATE_HZ}",
                where="DNSMOS",
                hint="resample them first",
            )
        clips = [sound.detach().float().cpu() for sound in sounds]
        reasons = [why_no_dnsmos(clip) for clip in clips]
        cut = [self._cut(clip) if not reason else [] for clip, reason in zip(clips, reasons, strict=True)]
        per_window = self._run([(one.sound, one.decides) for windows in cut for one in windows])
        results, at = [], 0
        for windows, reason in zip(cut, reasons, strict=True):
            count = np.asarray([one.times for one in windows], np.float64)
            mine, at = per_window[at : at + len(windows)], at + len(windows)
            mean = (count @ mine) / count.sum() if len(windows) else [math.nan] * len(self.names)
            results.append(
                {name: MetricResult(float(v), reason) for name, v in zip(self.names, mean, strict=True)}
            )
        return results

    def _cut(self, clip: Float[Tensor, " time"]) -> list[_Window]:
        """The clip's windows that differ, each with how often it occurs."""
        length, starts = window_starts(len(clip))
        most = self.most_windows
        if len(clip) < WINDOW and self.most_repeated is not None:
            most = self.most_repeated if most is None else min(most, self.most_repeated)
        if most is not None and most < len(starts):
            chosen = np.linspace(0, len(starts) - 1, most).round().astype(int)
            starts = [starts[i] for i in chosen]
        doubled = clip.repeat(length // len(clip))
        decides = without_repetition(WINDOW, len(clip)) if length > len(clip) else WINDOW
        times: dict[int, int] = {}
        for start in starts:
            phase = start % len(clip)  # a doubled clip is periodic: equal phases are equal windows
            times[phase] = times.get(phase, 0) + 1
        return [_Window(doubled[phase : phase + WINDOW], decides, n) for phase, n in times.items()]

    def _run(self, windows: list[tuple[Tensor, int]]) -> Float64[np.ndarray, "window score"]:
        """Calibrated scores of windows, a bounded number at a time."""
        rows: list[np.ndarray] = [np.zeros((0, len(self.names)))]
        for first in range(0, len(windows), self.at_once):
            part = windows[first : first + self.at_once]
            raw = np.empty((len(part), 3), np.float32)
            for length in {decides for _, decides in part}:
                mine = [i for i, (_, decides) in enumerate(part) if decides == length]
                raw[mine] = _raw_p835(self._p835, torch.stack([part[i][0][:length] for i in mine]))
            scores = calibrate(raw)
            if self._p808 is not None:
                heard = _answer(self._p808, p808_features(torch.stack([sound for sound, _ in part])).numpy())
                scores = np.concatenate([scores, heard.astype(np.float64)], axis=1)
            rows.append(scores)
        return np.concatenate(rows)


@dataclass(frozen=True)
class _Window:
    """9.01 s of a clip."""

    sound: Tensor
    decides: int  # samples at its head that have P.835's score of all of it
    times: int  # how often it occurs


def _raw_p835(network: P835Net, windows: Float[Tensor, "window time"]) -> Float32[np.ndarray, "window 3"]:
    with torch.inference_mode():
        return np.asarray(network(windows).numpy())


def _session(file: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelUnavailableError(
            "DNSMOS P.808 needs onnxruntime", where="DNSMOS", hint="pip install 'auralign[metrics]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # the arena would keep the largest batch for ever
    return onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])


def _answer(session: Any, batch: Float32[np.ndarray, "window ..."]) -> Float32[np.ndarray, "window score"]:
    return np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[0])
