"""From float samples to what a file format holds, exactly and without wrapping."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int, Shaped

_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}


def bits_of(subtype: str) -> int | None:
    """Bit depth of an integer subtype; None for float and compressed ones."""
    return _BITS.get(subtype)


def ceiling(subtype: str) -> float:
    """The largest peak that a subtype holds without clipping.

    Integers reach 1 - 2⁻ᵇ⁺¹ upwards; exactly ±1 is let in, an error of one quantisation step.
    Float holds anything. Lossy coders are decoded to integers by most players, so ±1.
    """
    return float("inf") if subtype in ("FLOAT", "DOUBLE") else 1.0


def quantise(
    samples: Float32[np.ndarray, "time channel"], subtype: str
) -> Shaped[np.ndarray, "time channel"]:
    """Samples as libsndfile takes them for a subtype: integers rounded to nearest at scale 2ᵇ⁻¹, else float.

    The scale is the one files are read with, so what was read is written back bit for bit. No dither.

    >>> quantise(np.array([[-1.0], [0.5]], np.float32), "PCM_16").ravel().tolist()
    [-32768, 16384]
    """
    bits = bits_of(subtype)
    if bits is None:
        return samples
    full = 2.0 ** (bits - 1)
    codes: Int[np.ndarray, "time channel"] = np.clip(
        np.rint(samples * np.float64(full)), -full, full - 1
    ).astype(np.int64)
    if bits <= 16:
        return np.asarray(codes << (16 - bits), np.int16)
    return np.asarray(codes << (32 - bits), np.int32)
