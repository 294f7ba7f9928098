"""Mixing rules: pure functions over numpy arrays and torch tensors alike.

A signal is everything behind the first ``batch_axes`` axes, so ``(channel, time)`` is one signal and
``batch_axes=1`` makes ``(batch, time)`` or ``(batch, channel, time)`` one signal a row. Silence has power 0,
reported as :data:`SILENCE_DB`; a ratio against silence leaves gains at 0 dB; nothing here makes a NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import AudioError

SILENCE_DB = -200.0
_FLOOR = 1e-20  # power of SILENCE_DB
_ACTIVE_FRAME = 512
_ACTIVE_DB = 40.0

Array = TypeVar("Array", Float[Tensor, "..."], Float[np.ndarray, "..."])


@dataclass(frozen=True)
class Mixture(Generic[Array]):
    """A mixture and the sources as they are in it: ``mixture == sum(sources)``."""

    mixture: Array
    sources: tuple[Array, ...]


def _axes(x: Any, batch_axes: int) -> tuple[int, ...]:
    if not 0 <= batch_axes < x.ndim:
        raise AudioError(f"batch_axes {batch_axes} for a signal of {x.ndim} axes", where="mix")
    return tuple(range(batch_axes, x.ndim))


def power(x: Array, *, batch_axes: int = 0, active: bool = False) -> Array:
    r"""Mean power :math:`\overline{x^2}` of each signal, kept as size-1 axes so that it broadcasts.

    Args:
        x: Signals.
        batch_axes: Number of leading axes that count signals.
        active: Leave out frames of 512 samples that lie 40 dB or more below the loudest one.
    """
    axes = _axes(x, batch_axes)
    level: Array = _active_power(x, axes) if active else _mean(x * x, axes)
    return level


def _mean(x: Any, axes: tuple[int, ...]) -> Any:
    return x.mean(axes, keepdims=True) if isinstance(x, np.ndarray) else x.mean(axes, keepdim=True)


def _active_power(x: Any, axes: tuple[int, ...]) -> Any:
    frames = max(1, x.shape[-1] // _ACTIVE_FRAME)
    size = x.shape[-1] // frames
    cut = x[..., : frames * size].reshape(*x.shape[:-1], frames, size)
    inner = (*axes[:-1], cut.ndim - 1)  # every axis of the signal but the frame
    level = _mean(cut * cut, inner)[..., 0]  # (..., 1 for each channel axis, frame)
    loudest = level.max(-1, keepdims=True) if isinstance(x, np.ndarray) else level.amax(-1, keepdim=True)
    keep = (level >= loudest * 10 ** (-_ACTIVE_DB / 10)) * 1.0
    return _mean(level * keep, (level.ndim - 1,)) / _mean(keep, (level.ndim - 1,))


def power_db(x: Array, *, batch_axes: int = 0, active: bool = False) -> Array:
    """Power in dB relative to 1, at least :data:`SILENCE_DB`; one number a signal.

    >>> round(power_db(np.full((1, 100), 0.1)).item(), 6)
    -20.0
    """
    level: Any = power(x, batch_axes=batch_axes, active=active)
    flat = level.reshape(level.shape[:batch_axes])
    if isinstance(x, np.ndarray):
        flat = np.maximum(flat, _FLOOR)
        return np.asarray(10 * np.log10(flat), x.dtype)
    out: Array = 10 * flat.clamp(min=_FLOOR).log10()
    return out


def _where_sound(a: Any, b: Any, ratio: Any) -> Any:
    """The ratio where both powers are above silence, elsewhere 1."""
    if isinstance(ratio, np.ndarray):
        return np.where((a > _FLOOR) & (b > _FLOOR), ratio, np.ones_like(ratio))
    return torch.where((a > _FLOOR) & (b > _FLOOR), ratio, torch.ones_like(ratio))


def gain_for_snr(target: Array, interferer: Array, snr_db: float | Array, *, batch_axes: int = 0) -> Array:
    r"""The amplitude gain :math:`g = \sqrt{P_t / P_i} \, 10^{-snr/20}` of the interferer, or 1."""
    p_target: Any = power(target, batch_axes=batch_axes)
    p_other: Any = power(interferer, batch_axes=batch_axes)
    ratio: Any
    scale: Any
    if isinstance(p_other, np.ndarray):
        ratio = np.sqrt(p_target / np.maximum(p_other, _FLOOR))
        scale = np.asarray(10.0 ** (-np.asarray(snr_db, np.float64) / 20), ratio.dtype)
    else:
        ratio = (p_target / p_other.clamp(min=_FLOOR)).sqrt()
        scale = 10.0 ** (-torch.as_tensor(snr_db, dtype=ratio.dtype, device=ratio.device) / 20)
    if scale.ndim:
        scale = scale.reshape(scale.shape + (1,) * (ratio.ndim - scale.ndim))
    out: Array = _where_sound(p_target, p_other, ratio * scale)
    return out


def _check_shapes(signals: Sequence[Any]) -> None:
    if not signals:
        raise AudioError("nothing to mix", where="mix")
    shapes = {tuple(x.shape) for x in signals}
    if len(shapes) > 1:
        raise AudioError(f"signals of different shapes: {sorted(shapes)}", where="mix")
    if not signals[0].shape[-1]:
        raise AudioError("signals without samples", where="mix")


def mix_at_snr(
    target: Array, interferer: Array, snr_db: float | Array = 0.0, *, batch_axes: int = 0
) -> Mixture:
    """Add an interferer, scaled to lie ``snr_db`` below the target in mean power; 0 dB is equal power.

    >>> mix_at_snr(np.ones((1, 4)), np.full((1, 4), 0.5), 0.0).mixture.tolist()
    [[2.0, 2.0, 2.0, 2.0]]
    """
    _check_shapes([target, interferer])
    scaled: Any = interferer * gain_for_snr(target, interferer, snr_db, batch_axes=batch_axes)
    return Mixture(target + scaled, (target, scaled))


def equal_power(sources: Sequence[Array], *, batch_axes: int = 0) -> tuple[Array, ...]:
    """Sources scaled to the mean power of the first; a silent one stays as it is."""
    _check_shapes(sources)
    first: Any = sources[0]
    return (first, *(x * gain_for_snr(first, x, 0.0, batch_axes=batch_axes) for x in sources[1:]))


def mix_sources(sources: Sequence[Array], gains_db: Sequence[float]) -> Mixture:
    """Sources times their own gains, added.

    >>> mix_sources([np.ones(2), np.ones(2)], [0.0, -200.0]).mixture.round(6).tolist()
    [1.0, 1.0]
    """
    _check_shapes(sources)
    if len(sources) != len(gains_db):
        raise AudioError(f"{len(sources)} sources with {len(gains_db)} gains", where="mix_sources")
    return _sum([x * float(10 ** (gain / 20)) for x, gain in zip(sources, gains_db, strict=True)])


def _sum(scaled: Sequence[Any]) -> Mixture:
    mixture = scaled[0]
    for x in scaled[1:]:
        mixture = mixture + x
    return Mixture(mixture, tuple(scaled))


def declip(mix: Mixture, *, batch_axes: int = 0) -> Mixture:
    """Where the mixture's peak exceeds 1, scale it and every source by 0.9 / peak; elsewhere nothing."""
    axes = _axes(mix.mixture, batch_axes)
    if isinstance(mix.mixture, np.ndarray):
        peak: Any = np.abs(mix.mixture).max(axes, keepdims=True)
        gain: Any = np.where(peak > 1, 0.9 / np.maximum(peak, 1), 1.0).astype(mix.mixture.dtype)
    else:
        peak = mix.mixture.abs().amax(axes, keepdim=True)
        gain = torch.where(peak > 1, 0.9 / peak.clamp(min=1), torch.ones_like(peak))
    return Mixture(mix.mixture * gain, tuple(x * gain for x in mix.sources))


def mix_dcase_t9(source: Array, noise: Array, snr_db: float | Array, *, batch_axes: int = 0) -> Mixture:
    """DCASE 2024 task 9: noise scaled to the mean-power ratio, added, then :func:`declip`."""
    return declip(mix_at_snr(source, noise, snr_db, batch_axes=batch_axes), batch_axes=batch_axes)


def mix_clipsep(sources: Sequence[Array]) -> Mixture:
    """CLIPSep and OmniSep evaluation ("clean+"): each of N sources divided by N, no other level change."""
    _check_shapes(sources)
    return _sum([x / len(sources) for x in sources])


def mix_audiosep(
    target: Array, interferers: Sequence[Array], snrs_db: Sequence[float], *, batch_axes: int = 0
) -> Mixture:
    """AudioSep training: every interferer at its own ratio to the target, U{-10…10} dB, then :func:`declip`.

    The caller draws the ratios, so that nothing here is random.
    """
    _check_shapes([target, *interferers])
    if len(interferers) != len(snrs_db):
        raise AudioError(f"{len(interferers)} interferers with {len(snrs_db)} ratios", where="mix_audiosep")
    scaled: list[Any] = [
        x * gain_for_snr(target, x, snr, batch_axes=batch_axes)
        for x, snr in zip(interferers, snrs_db, strict=True)
    ]
    return declip(_sum([target, *scaled]), batch_axes=batch_axes)
