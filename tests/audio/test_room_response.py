from __future__ import annotations

import math

import numpy as np
import pytest

from auralign.audio.room_response import (
    SPEED_M_S,
    Room,
    absorption,
    decay_time_s,
    draw_room,
    early_part,
    image_sources,
    room_response,
)
from auralign.errors import AudioError

RATE_HZ = 16_000
ROOM = Room((5.0, 4.0, 3.0), (1.0, 1.5, 1.2), (3.5, 2.5, 1.6), 0.5)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_first_order_images_are_mirrors_at_the_six_walls() -> None:
    distance, walls = image_sources(ROOM, 12.0)
    mirrored = []
    for axis, side in enumerate(ROOM.size_m):
        for wall in (0.0, side):
            image = list(ROOM.source_m)
            image[axis] = 2 * wall - image[axis]
            mirrored.append(math.dist(image, ROOM.microphone_m))
    np.testing.assert_allclose(np.sort(distance[walls == 1]), np.sort(mirrored), rtol=1e-12)
    assert distance[walls == 0] == pytest.approx([ROOM.distance_m])


def test_second_order_images_are_mirrors_of_mirrors() -> None:
    distance, walls = image_sources(ROOM, 30.0)
    along = [2 * ROOM.size_m[0] + ROOM.source_m[0], ROOM.source_m[0] - 2 * ROOM.size_m[0]]
    across = [2 * wall - ROOM.source_m[0] for wall in (0.0, ROOM.size_m[0])]
    found = distance[walls == 2]
    for x in along:
        assert np.isclose(found, math.dist((x, *ROOM.source_m[1:]), ROOM.microphone_m)).any()
    for x in across:
        for y in (2 * wall - ROOM.source_m[1] for wall in (0.0, ROOM.size_m[1])):
            assert np.isclose(found, math.dist((x, y, ROOM.source_m[2]), ROOM.microphone_m)).any()
    assert len(found) == 18  # 6 along one axis, 12 around a corner of two


def test_eyring_gives_back_the_reverberation_time() -> None:
    alpha = absorption(ROOM)
    again = 24 * math.log(10) * ROOM.volume_m3 / (-SPEED_M_S * ROOM.surface_m2 * math.log(1 - alpha))
    assert again == pytest.approx(ROOM.rt60_s)
    assert 0 < alpha < 1


def test_the_direct_sound_has_amplitude_one_and_the_delay_of_its_path() -> None:
    whole = 70 / RATE_HZ * SPEED_M_S
    room = Room((8.0, 6.0, 3.0), (3.0, 3.0, 1.5), (3.0 + whole, 3.0, 1.5), 0.3)
    response = room_response(room, generator=rng())
    assert int(np.argmax(np.abs(response))) == 70
    assert response[70] == pytest.approx(1.0, abs=1e-3)
    assert np.abs(response[:40]).max() < 1e-3


def test_a_fraction_of_a_sample_delays_the_phase() -> None:
    offset = 0.37
    rooms = [
        Room((9.0, 7.0, 3.4), (3.0, 3.5, 1.7), (3.0 + (70 + part) / RATE_HZ * SPEED_M_S, 3.5, 1.7), 0.3)
        for part in (0.0, offset)
    ]
    early = [room_response(room, generator=rng())[:110] for room in rooms]  # before the first reflection
    spectra = [np.fft.rfft(wave, 512) for wave in early]
    hertz = np.fft.rfftfreq(512, 1 / RATE_HZ)
    heard = (hertz > 300) & (hertz < 6000)
    delay = -np.angle(spectra[1] / spectra[0])[heard] / (2 * np.pi * hertz[heard]) * RATE_HZ
    np.testing.assert_allclose(delay, offset, atol=0.02)  # positions are rounded to 1/64 of a sample


@pytest.mark.parametrize("rt60_s", [0.3, 0.5, 0.8])
def test_energy_falls_as_fast_as_wanted(rt60_s: float) -> None:
    for seed in range(3):
        room = draw_room(generator=rng(seed), rt60_s=(rt60_s, rt60_s))
        response = room_response(room, generator=rng(seed + 100))
        assert decay_time_s(response) == pytest.approx(rt60_s, rel=0.15)  # the direct sound shortens it
        assert decay_time_s(response, span_db=(15.0, 45.0)) == pytest.approx(
            rt60_s, rel=0.08
        )  # noise of the tail


def test_the_tail_goes_on_at_the_energy_of_the_images() -> None:
    long = room_response(ROOM, generator=rng(), mixing_s=0.12)
    short = room_response(ROOM, generator=rng(), mixing_s=0.05)
    direct = round(ROOM.distance_m / SPEED_M_S * RATE_HZ)
    part = slice(direct + 880, direct + 1760)  # images in one, noise in the other
    ratio = np.square(long[part]).sum() / np.square(short[part]).sum()
    assert abs(10 * math.log10(ratio)) < 1.5  # 880 samples; a factor of 2 in density is 3 dB


def test_a_response_follows_from_the_generator() -> None:
    one, two, other = (room_response(ROOM, generator=rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()


def test_decay_of_known_noise_is_measured() -> None:
    time_s = np.arange(RATE_HZ) / RATE_HZ
    wave = rng().standard_normal(RATE_HZ) * 10 ** (-3 * time_s / 0.6)
    assert decay_time_s(wave.astype(np.float32)) == pytest.approx(0.6, rel=0.05)  # of 9,600 samples of noise


@pytest.mark.parametrize("wave", [np.zeros(100), np.ones(1), np.zeros(0), np.full(9, np.nan)])
def test_what_does_not_fall_has_no_decay_time(wave: np.ndarray) -> None:
    assert math.isnan(decay_time_s(wave.astype(np.float32)))


def test_the_early_part_is_the_beginning() -> None:
    response = room_response(ROOM, generator=rng())
    early = early_part(response, 100, 800)
    np.testing.assert_array_equal(early[:900], response[:900])
    assert len(early) == 932
    assert early[-1] == 0
    np.testing.assert_array_equal(early_part(response[:50], 100, 800), response[:50])


def test_rooms_are_drawn_with_places_inside() -> None:
    for seed in range(20):
        room = draw_room(generator=rng(seed), rt60_s=(0.2, 0.8), within_m=2.0)
        assert 0.5 <= room.distance_m <= 2.0
        assert 0.2 <= room.rt60_s <= 0.8


@pytest.mark.parametrize(
    ("source", "rt60_s", "reason"),
    [
        ((6.0, 1.0, 1.0), 0.5, "not inside"),
        ((1.0, 1.0, 1.0), 0.0, "rt60_s"),
        ((1.0, 1.0, 1.0), math.nan, "rt60_s"),
        ((3.5, 2.5, 1.6), 0.5, "at the microphone"),
    ],
)
def test_an_impossible_room_is_refused(
    source: tuple[float, float, float], rt60_s: float, reason: str
) -> None:
    with pytest.raises(AudioError, match=reason):
        Room((5.0, 4.0, 3.0), source, (3.5, 2.5, 1.6), rt60_s)
