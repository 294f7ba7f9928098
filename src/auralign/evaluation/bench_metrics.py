"""Our BSS Eval and DNSMOS against their peers: same arrays, one process, interleaved, agreement checked.

The peers are test tools; one that is not installed is skipped with a reason. Times are the smallest of the
repeats, the figure that a shared machine disturbs least.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32

from auralign.errors import AuralignError
from auralign.metrics.bss_eval import bss_eval_v3
from auralign.runtime import weights

AGREEMENT_DB = 1e-9
"""Largest difference that still counts as the same number."""

AGREEMENT_MOS, AGREEMENT_NARROW_MOS = 1e-4, 0.05
"""The same for DNSMOS, in float32 and in bfloat16."""

DNSMOS_SAMPLES = 33_280
"""Length of DNSMOS's clips, 2.08 s."""

_MOST_REPEATS = 20

Ratios = Float[np.ndarray, "3 source"]


@dataclass(frozen=True)
class Work:
    """One size: so many sources, seconds and samples a second."""

    sources: int
    """References and estimates."""
    seconds: int
    """Length."""
    rate_hz: int
    """Sample rate."""

    @property
    def name(self) -> str:
        """Stable part of the entry's name."""
        return f"{self.sources}src_{self.seconds}s_{self.rate_hz}hz"


SIZES = (
    Work(2, 1, 8_000),
    Work(2, 4, 16_000),
    Work(3, 4, 16_000),
    Work(4, 1, 8_000),
    Work(4, 10, 16_000),
    Work(2, 10, 44_100),
    Work(2, 30, 44_100),
    Work(4, 30, 44_100),
)


def make_sounds(work: Work, *, seed: int = 0) -> tuple[Float32[np.ndarray, "source time"], ...]:
    """Estimates and references: coloured noises, and each with the others at −14 dB and noise at −20 dB."""
    generator = np.random.default_rng(seed)
    n_time = work.seconds * work.rate_hz
    white = generator.standard_normal((work.sources, n_time))
    tilt = np.linspace(0.3, 0.9, work.sources)[:, None]
    ref = np.fft.irfft(np.fft.rfft(white) / np.linspace(0.05, 1, n_time // 2 + 1) ** tilt, n=n_time)
    ref /= ref.std(-1, keepdims=True)
    leak = 0.2 * generator.standard_normal((work.sources, work.sources)) + np.eye(work.sources)
    est = leak @ ref + 0.1 * generator.standard_normal(ref.shape)
    return est.astype(np.float32), ref.astype(np.float32)


def _ours(est: np.ndarray, ref: np.ndarray) -> Ratios:
    result = bss_eval_v3(est=torch.from_numpy(est), ref=torch.from_numpy(ref))
    return torch.stack([result.sdr_db, result.sir_db, result.sar_db]).numpy()


def _mir_eval(est: np.ndarray, ref: np.ndarray) -> Ratios:
    module = importlib.import_module("mir_eval.separation")
    return np.stack(module.bss_eval_sources(ref, est, compute_permutation=False)[:3])


def _fast_bss_eval(est: np.ndarray, ref: np.ndarray) -> Ratios:
    module = importlib.import_module("fast_bss_eval")
    sounds = torch.from_numpy(ref).double(), torch.from_numpy(est).double()
    return torch.stack(module.bss_eval_sources(*sounds, compute_permutation=False)[:3]).numpy()


PEERS: Mapping[str, Callable[[np.ndarray, np.ndarray], Ratios]] = {
    "mir_eval": _mir_eval,
    "fast_bss_eval": _fast_bss_eval,
}


def _timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def _against(peer: str, work: Work, repeats: int, least_s: float) -> dict[str, object]:
    """One entry: interleaved repeats, smallest times, largest difference."""
    est, ref = make_sounds(work)
    best = {"ours": float("inf"), peer: float("inf")}
    values: dict[str, Ratios] = {}
    total, done = 0.0, 0
    while done < repeats or (total < least_s and done < _MOST_REPEATS):
        done += 1
        for name, call in (("ours", _ours), (peer, PEERS[peer])):
            spent, values[name] = _timed(lambda call=call: call(est, ref))  # type: ignore[misc]
            best[name] = min(best[name], spent)
            total += spent
    difference = float(np.abs(values["ours"] - values[peer]).max())
    if not difference <= AGREEMENT_DB:
        raise AuralignError(
            f"differs from {peer} by {difference:.1e} dB", where=work.name, hint="one of the two has changed"
        )
    return {
        "ours_s": best["ours"],
        "peer_s": best[peer],
        "ratio": best[peer] / best["ours"],
        "peer": peer,
        "work": f"BSS Eval 3, 512 taps: {work.sources} sources, {work.seconds} s at {work.rate_hz} Hz",
        "max_difference_db": difference,
    }


def _dnsmos(clips: int, repeats: int) -> dict[str, dict[str, object]]:
    """One window of each repeated clip: ours in float32 and as a reward scores it, and onnxruntime."""
    onnxruntime = importlib.import_module("onnxruntime")
    from auralign.metrics.dnsmos import NAMES, WINDOW, DnsMos, calibrate

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    file = weights.path("dnsmos") / "p835.onnx"
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    tilt = np.linspace(0.3, 1.2, clips)[:, None] * np.log(np.arange(1, DNSMOS_SAMPLES // 2 + 2))
    shape = (clips, DNSMOS_SAMPLES)
    waves = np.fft.irfft(np.fft.rfft(generator.standard_normal(shape)) / np.exp(tilt), n=DNSMOS_SAMPLES)
    waves = (0.2 * waves / np.abs(waves).max(axis=1, keepdims=True)).astype(np.float32)

    def peer() -> np.ndarray:
        windows = [np.resize(wave, WINDOW)[None] for wave in waves]
        return calibrate(np.concatenate([session.run(None, {"input_1": one})[0] for one in windows]))

    def ours(scorer: DnsMos) -> np.ndarray:
        rows = scorer(list(torch.from_numpy(waves)), 16_000)
        return np.asarray([[row[name].value for name in NAMES[:3]] for row in rows])

    forms = {
        "dnsmos_vs_onnxruntime": (DnsMos(p808=False, most_repeated=1), AGREEMENT_MOS),
        "dnsmos_narrow_vs_onnxruntime": (
            DnsMos(p808=False, most_repeated=1, narrow=True),
            AGREEMENT_NARROW_MOS,
        ),
    }
    best = dict.fromkeys(["peer", *forms], float("inf"))
    values: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        spent, values["peer"] = _timed(peer)
        best["peer"] = min(best["peer"], spent)
        for name, (scorer, _) in forms.items():
            spent, values[name] = _timed(lambda scorer=scorer: ours(scorer))  # type: ignore[misc]
            best[name] = min(best[name], spent)
    return {
        name: _mos_entry(name, best[name], best["peer"], values[name] - values["peer"], most)
        for name, (_, most) in forms.items()
    }


def _mos_entry(
    name: str, ours_s: float, peer_s: float, difference: Float[np.ndarray, "clip 3"], most: float
) -> dict[str, object]:
    largest = float(np.abs(difference).max())
    if not largest <= most:
        raise AuralignError(
            f"differs from onnxruntime by {largest:.1e} MOS", where=name, hint="one of the two has changed"
        )
    return {
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": peer_s / ours_s,
        "peer": "onnxruntime",
        "work": f"P.835, one window of each of {len(difference)} clips of {DNSMOS_SAMPLES} samples",
        "max_difference_mos": largest,
    }


def bench(
    *, sizes: tuple[Work, ...] = SIZES, repeats: int = 3, least_s: float = 2.0, dnsmos_clips: int = 16
) -> dict[str, dict[str, object]]:
    """Times of our BSS Eval, our DNSMOS and their peers, in the form that ``auralign bench metrics --json`` prints.

    Args:
        sizes: Work to do.
        repeats: Fewest interleaved repeats of each.
        least_s: Short work is repeated for at least so long, at most 20 times.
        dnsmos_clips: Clips that DNSMOS scores; 0 leaves it out.
    """
    entries: dict[str, dict[str, object]] = {}
    for peer in PEERS:
        for work in sizes:
            name = f"bss_eval_vs_{peer}/{work.name}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # mir_eval announces its next version on every call
                    entries[name] = _against(peer, work, repeats, least_s)
            except ImportError as error:
                entries[name] = {"peer": peer, "skipped": f"not installed: {error}"}
    if dnsmos_clips:
        try:
            entries |= _dnsmos(dnsmos_clips, repeats)
        except ImportError as error:
            entries["dnsmos_vs_onnxruntime"] = {"peer": "onnxruntime", "skipped": f"not installed: {error}"}
    return entries
