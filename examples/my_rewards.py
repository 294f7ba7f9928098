"""Two rewards of one's own, to copy and change.

A reward is a function of a scene. ``scene.estimate`` holds the separated sounds, batch x group x time, at
``scene.rate_hz``; the answer is one number for each, batch x group, larger = better, nan = "I cannot score this".
Beside it a scene has ``mixture``, ``target`` and ``interferer`` (batch x time), and ``labels`` and ``texts``, what was
asked for in each mixture. Run from this folder, or name the module by its path::

    python examples/fine_tune.py my_sounds/ --reward my_rewards.less_hum

A reward is a wish, and a separator grants it to the letter. ``less_hum`` alone would be happiest with a sound without
any bass; ``brightness`` alone with nothing but hiss. So keep ``fidelity`` beside them (fine_tune.py does), normalise
them to the same spread, and let the guard watch what they do not measure.
"""

from __future__ import annotations

import torch

SILENCE = 1e-10  # mean power, -100 dB of full scale


def less_hum(scene, mains_hz: float = 50.0):
    """Minus the share of energy within 3 Hz of the mains' first eight harmonics: 0 is no hum, -1 nothing else."""
    power, hertz = _spectrum(scene)
    away = (hertz - mains_hz * torch.round(hertz / mains_hz)).abs()
    hum = (away <= 3) & (hertz > mains_hz / 2) & (hertz < 8.5 * mains_hz)
    return -_share(power, hum)


def brightness(scene):
    """Share of energy above 4 kHz."""
    power, hertz = _spectrum(scene)
    return _share(power, hertz > 4000)


def _spectrum(scene):
    """Power of every frequency of every separated sound, and the frequencies."""
    samples = scene.estimate.shape[-1]
    power = torch.fft.rfft(scene.estimate.float()).abs().square() / samples**2
    hertz = torch.fft.rfftfreq(samples, 1 / scene.rate_hz).to(power.device)
    return power, hertz


def _share(power, chosen):
    """Part of the energy at the chosen frequencies; a silent sound has none, and is not scored."""
    total = power.sum(-1)
    share = power[..., chosen].sum(-1) / total.clamp_min(SILENCE)
    return torch.where(total > SILENCE, share, torch.nan)
