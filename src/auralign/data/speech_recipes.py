"""How a piece of noisy speech is put together: a recipe names clips, places and gains, and is rendered from them.

    received = gain · (speech ∗ response)          clean = gain · (speech ∗ first part of the response)
    noisy    = received + noise                    without a room, received and clean are the speech itself

``∗`` is convolution; its delay is removed, so that clean, received and speech begin together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Float32

from auralign.audio.room_response import SPEED_M_S, draw_room, early_part, room_response

RATE_HZ = 16_000
_FADE = 80  # samples: 5 ms at both ends of every excerpt

Mono = Float32[np.ndarray, "_"]
Read = Callable[[str], Mono]


@dataclass(frozen=True)
class Spoken:
    """One recording in an utterance.

    Args:
        clip: Its id.
        at: Where it begins in the result, in samples; never negative.
        start: Where it begins in the clip, in samples.
        gain_db: Gain applied to it before the whole recipe's gain.
    """

    clip: str
    at: int
    start: int
    gain_db: float


@dataclass(frozen=True)
class NoisePart:
    """One recording of noise, repeated from `start` on until the end."""

    clip: str
    start: int
    gain_db: float


@dataclass(frozen=True)
class RoomDraw:
    """Which room: a seed for `draw_room` and `room_response`, and the range of reverberation times, in seconds."""

    seed: int
    shortest_s: float
    longest_s: float


@dataclass(frozen=True)
class SpeechRecipe:
    """A recipe for one piece of noisy speech.

    Args:
        id: Unique within its list.
        samples: Length at 16 kHz.
        speaker: Who speaks.
        speech: What is said.
        noise: What is added.
        snr_db: Ratio of received speech, while it is active, to noise.
        gain_db: Gain of the whole speech.
        room: The room, if it is reverberant.
    """

    id: str
    samples: int
    speaker: str
    speech: tuple[Spoken, ...]
    noise: tuple[NoisePart, ...]
    snr_db: float
    gain_db: float
    room: RoomDraw | None = None


@dataclass(frozen=True)
class Rendered:
    """A rendered recipe: ``noisy = received + noise``; ``clean`` is the target; ``rt60_s`` is the room's."""

    clean: Mono
    received: Mono
    noise: Mono
    noisy: Mono
    rt60_s: float | None


@dataclass(frozen=True)
class RoomFilter:
    """A room's response without the delay of the direct sound, and its first part."""

    whole: Mono
    early: Mono
    rt60_s: float


def room_filter(draw: RoomDraw, *, early_s: float = 0.05) -> RoomFilter:
    """Make the response that a draw stands for; the first part is the direct sound and `early_s` after it."""
    generator = np.random.default_rng(draw.seed)
    room = draw_room(generator=generator, rt60_s=(draw.shortest_s, draw.longest_s))
    response = room_response(room, generator=generator, rate_hz=RATE_HZ)
    delay = round(room.distance_m / SPEED_M_S * RATE_HZ)
    whole = response[delay:]
    return RoomFilter(whole, early_part(whole, 0, round(early_s * RATE_HZ)), room.rt60_s)


def lay_out(parts: Sequence[Spoken], read: Read, samples: int) -> Mono:
    """Place the recordings of an utterance; excerpts fade over 5 ms where they are cut."""
    out = np.zeros(samples, np.float32)
    for part in parts:
        wave = read(part.clip)[part.start : part.start + samples - part.at]
        if not len(wave):
            continue
        wave = wave * np.float32(10 ** (part.gain_db / 20))
        ramp = np.linspace(0, 1, min(_FADE, len(wave)), dtype=np.float32)
        wave[: len(ramp)] *= ramp
        if part.at + len(wave) < samples:
            wave[-len(ramp) :] *= ramp[::-1]
        out[part.at : part.at + len(wave)] += wave
    return out


def repeat(wave: Mono, start: int, samples: int) -> Mono:
    """Take `samples` of a recording from `start` on, again from its beginning where it ends, with 5 ms fades there."""
    if len(wave) >= start + samples:
        return wave[start : start + samples].astype(np.float32)
    faded = wave.astype(np.float32).copy()
    ramp = np.linspace(0, 1, min(_FADE, len(faded)), dtype=np.float32)
    faded[: len(ramp)] *= ramp
    faded[-len(ramp) :] *= ramp[::-1]
    turns = -(-(start + samples) // len(faded))
    return np.tile(faded, turns)[start : start + samples]


def received(speech: Mono, room: RoomFilter | None) -> tuple[Mono, Mono]:
    """Give what the microphone hears of the speech, and the target in it."""
    if room is None:
        return speech, speech
    length = scipy.fft.next_fast_len(len(speech) + len(room.whole) - 1, real=True)
    spectrum = scipy.fft.rfft(speech.astype(np.float64), length)  # double: the same floats on every machine
    heard, clean = (
        scipy.fft.irfft(spectrum * scipy.fft.rfft(response.astype(np.float64), length), length)
        for response in (room.whole, room.early)
    )
    return heard[: len(speech)].astype(np.float32), clean[: len(speech)].astype(np.float32)


def render(
    recipe: SpeechRecipe, speech: Read, noise: Read, *, early_s: float = 0.05, room: RoomFilter | None = None
) -> Rendered:
    """Render a recipe.

    Args:
        recipe: What to render.
        speech: Gives the samples of a speech clip.
        noise: Gives the samples of a noise clip.
        early_s: Length of the target's part of the response after the direct sound.
        room: The recipe's room, if it is at hand; made from the recipe otherwise.
    """
    if recipe.room is not None and room is None:
        room = room_filter(recipe.room, early_s=early_s)
    gain = np.float32(10 ** (recipe.gain_db / 20))
    spoken = lay_out(recipe.speech, speech, recipe.samples) * gain
    heard, clean = received(spoken, room)
    added = np.zeros(recipe.samples, np.float32)
    for part in recipe.noise:
        added += repeat(noise(part.clip), part.start, recipe.samples) * np.float32(10 ** (part.gain_db / 20))
    return Rendered(clean, heard, added, heard + added, None if room is None else room.rt60_s)
