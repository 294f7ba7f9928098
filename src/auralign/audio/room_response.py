r"""Impulse responses of shoebox rooms: image sources first, an exponentially decaying diffuse tail after them.

Allen and Berkley 1979, "Image method for efficiently simulating small-room acoustics", J. Acoust. Soc. Am. 65(4).
All walls absorb alike and at every frequency alike. The symbols: :math:`V` volume in m³, :math:`S` surface in m²,
:math:`T` time in which energy falls by 60 dB, :math:`c` speed of sound, :math:`\alpha` absorbed share of energy.
The direct sound has amplitude 1, so a response keeps the level of what is convolved with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.signal import butter, sosfilt

from auralign.errors import AudioError

SPEED_M_S = 343.0
_HALF_TAPS = 20  # of the windowed sinc either side
_STEPS = 64  # fractions of a sample at which the sinc is tabled
_FADE_S = 0.010
_LOWEST_HZ = 80.0

Response = Float32[np.ndarray, "time"]


@dataclass(frozen=True)
class Room:
    """A shoebox with one source and one microphone.

    Args:
        size_m: Length, width and height.
        source_m: Where the source is, from one corner.
        microphone_m: Where the microphone is.
        rt60_s: Time in which energy falls by 60 dB.
    """

    size_m: tuple[float, float, float]
    source_m: tuple[float, float, float]
    microphone_m: tuple[float, float, float]
    rt60_s: float

    def __post_init__(self) -> None:
        for name, place in (("source_m", self.source_m), ("microphone_m", self.microphone_m)):
            if not all(0 < at < side for at, side in zip(place, self.size_m, strict=True)):
                raise AudioError(f"{name} is not inside the room", where=f"{place} in {self.size_m}")
        if not (math.isfinite(self.rt60_s) and self.rt60_s > 0):
            raise AudioError("rt60_s must be a number above 0", where=f"rt60_s {self.rt60_s}")
        if self.distance_m < 0.01:
            raise AudioError("the source is at the microphone", where=str(self.source_m))

    @property
    def distance_m(self) -> float:
        """From the source to the microphone."""
        return math.dist(self.source_m, self.microphone_m)

    @property
    def volume_m3(self) -> float:
        """Of the air."""
        return math.prod(self.size_m)

    @property
    def surface_m2(self) -> float:
        """Of all six walls."""
        x, y, z = self.size_m
        return 2 * (x * y + y * z + z * x)


def absorption(room: Room) -> float:
    r"""Absorbed share of energy at a wall, by Eyring: :math:`\alpha = 1 - \exp(-24 \ln 10\, V / (c S T))`.

    Eyring 1930, "Reverberation time in 'dead' rooms", J. Acoust. Soc. Am. 1(2); absorption of air is left out.
    """
    return 1 - math.exp(-24 * math.log(10) * room.volume_m3 / (SPEED_M_S * room.surface_m2 * room.rt60_s))


def image_sources(room: Room, within_m: float) -> tuple[Float[np.ndarray, "image"], Int[np.ndarray, "image"]]:
    r"""Distances of all images of the source up to `within_m`, and how many walls each ray met.

    Along each axis the images of :math:`s` in a room of length :math:`L` lie at :math:`(1-2p)s + 2nL`, with
    :math:`p \in \{0, 1\}` and any whole :math:`n`; the ray meets the walls :math:`|n-p| + |n|` times.
    """
    offsets, walls = [], []
    for side, source, microphone in zip(room.size_m, room.source_m, room.microphone_m, strict=True):
        most = math.ceil(within_m / (2 * side)) + 1
        n = np.arange(-most, most + 1)
        offsets.append(
            np.concatenate([source + 2 * n * side, 2 * n * side - source]) - microphone
        )  # p = 0, then p = 1
        walls.append(np.concatenate([2 * np.abs(n), np.abs(n - 1) + np.abs(n)]))
    x, y, z = (np.square(axis) for axis in offsets)
    distance = np.sqrt(x[:, None, None] + y[None, :, None] + z[None, None, :])
    count = walls[0][:, None, None] + walls[1][None, :, None] + walls[2][None, None, :]
    near = distance <= within_m
    return distance[near], count[near]


def room_response(
    room: Room, *, generator: np.random.Generator, rate_hz: int = 16_000, mixing_s: float = 0.06
) -> Response:
    r"""Impulse response from source to microphone, as long as energy takes to fall by 60 dB.

    An image at distance :math:`d` after :math:`k` reflections adds :math:`(1-\alpha)^{k/2} d_0 / d` at the time
    :math:`d / c`, where :math:`d_0` is the source's own distance. From `mixing_s` after the direct sound on,
    reflections are so dense that Gaussian noise stands for them, with the expected power of all images: their rate
    :math:`4 \pi c^3 t^2 / V` times the energy of each, so :math:`4 \pi c\, d_0^2 / V \cdot 10^{-6 t / T}` a second.
    Walls reflect without changing the sign, so dense images would pile up to a constant; as in Allen and Berkley,
    reflections are high-passed, here at 80 Hz.

    Args:
        room: The room.
        generator: Draws the tail.
        rate_hz: Sample rate.
        mixing_s: Where the tail begins, after the direct sound.

    Returns:
        The response from the moment at which the source sounds.
    """
    if rate_hz < 1 or not mixing_s >= _FADE_S:
        raise AudioError(
            f"rate_hz must be above 0 and mixing_s at least {_FADE_S}", where=f"{rate_hz}, {mixing_s}"
        )
    direct_s = room.distance_m / SPEED_M_S
    length = math.ceil((direct_s + max(room.rt60_s, mixing_s)) * rate_hz) + _HALF_TAPS + 1
    distance, walls = image_sources(room, (direct_s + mixing_s) * SPEED_M_S)
    reflected = math.sqrt(1 - absorption(room))
    arrival, amplitude = distance / SPEED_M_S * rate_hz, reflected**walls * room.distance_m / distance
    echoes = sosfilt(
        butter(2, _LOWEST_HZ, "highpass", fs=rate_hz, output="sos"),
        _impulses(arrival[walls > 0], amplitude[walls > 0], length),
    )
    early = echoes + _impulses(arrival[walls == 0], amplitude[walls == 0], length)
    time_s = np.arange(length) / rate_hz
    rise = np.clip((time_s - direct_s - mixing_s + _FADE_S) / _FADE_S, 0, 1)
    density = 4 * math.pi * SPEED_M_S * room.distance_m**2 / room.volume_m3 / rate_hz
    decay = np.power(10.0, -3 * time_s / room.rt60_s)
    tail = generator.standard_normal(length) * math.sqrt(density) * decay
    response: np.ndarray = early * np.cos(rise * math.pi / 2) + tail * np.sin(rise * math.pi / 2)
    return response.astype(np.float32)


def _impulses(
    at: Float[np.ndarray, "image"], amplitude: Float[np.ndarray, "image"], length: int
) -> Float[np.ndarray, "time"]:
    """Sum of windowed sincs at fractional sample positions, rounded to 1/64 of a sample."""
    fraction, whole = np.modf(np.round(at * _STEPS) / _STEPS)
    taps = np.arange(-_HALF_TAPS, _HALF_TAPS + 1)
    shift = taps[None, :] - np.arange(_STEPS)[:, None] / _STEPS
    table = np.sinc(shift) * np.square(np.cos(math.pi / 2 * np.clip(shift / (_HALF_TAPS + 1), -1, 1)))
    values = table[np.round(fraction * _STEPS).astype(int)] * amplitude[:, None]
    places = whole.astype(int)[:, None] + taps[None, :] + _HALF_TAPS
    room = max(length + 2 * _HALF_TAPS, int(places.max(initial=0)) + 1)
    total = np.bincount(places.ravel(), weights=values.ravel(), minlength=room)
    return total[_HALF_TAPS : _HALF_TAPS + length]


def early_part(response: Response, direct_samples: int, early_samples: int) -> Float32[np.ndarray, "part"]:
    """Keep the direct sound and `early_samples` after it; the cut is a half cosine of 2 ms at 16 kHz."""
    fade = 32
    stop = min(len(response), direct_samples + early_samples)
    out = response[: stop + fade].copy()
    ramp = 0.5 + 0.5 * np.cos(np.linspace(0, math.pi, max(0, len(out) - stop), dtype=np.float32))
    out[stop:] *= ramp
    return out


def draw_room(
    *, generator: np.random.Generator, rt60_s: tuple[float, float] = (0.2, 0.8), within_m: float = 3.0
) -> Room:
    """Draw a living room or office of 3 to 9 by 3 to 7 by 2.4 to 3.5 m and two places in it.

    Both keep 0.3 m or more from the walls; the source is 0.5 m to `within_m` from the microphone.
    """
    size = (
        float(generator.uniform(3, 9)),
        float(generator.uniform(3, 7)),
        float(generator.uniform(2.4, 3.5)),
    )
    time_s = float(generator.uniform(*rt60_s))
    while True:
        places = [tuple(float(generator.uniform(0.3, side - 0.3)) for side in size) for _ in range(2)]
        if 0.5 <= math.dist(*places) <= within_m:
            (a, b, c), (d, e, f) = places
            return Room(size, (a, b, c), (d, e, f), time_s)


def decay_time_s(
    response: Response, rate_hz: int = 16_000, *, span_db: tuple[float, float] = (5.0, 35.0)
) -> float:
    """Reverberation time by Schroeder's backward integration, from a line fitted between two levels.

    Schroeder 1965, "New method of measuring reverberation time"; ISO 3382-1 calls this T30. ``nan`` if the response
    is silent or its energy does not fall that far.
    """
    energy = np.cumsum(np.square(response[::-1].astype(np.float64)))[::-1]
    if not len(energy) or not np.isfinite(energy[0]) or energy[0] <= 0:
        return math.nan
    level_db = 10 * np.log10(np.maximum(energy / energy[0], 1e-30))
    start, stop = (int(np.argmax(level_db <= -drop)) for drop in span_db)
    if stop <= start + 1:
        return math.nan
    slope = np.polyfit(np.arange(start, stop) / rate_hz, level_db[start:stop], 1)[0]
    return float(-60 / slope) if slope < 0 else math.nan
