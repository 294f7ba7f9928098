from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.clip import Clip
from auralign.data.mixer import MixConfig, Mixer
from auralign.data.sound_bank import SoundBank
from auralign.errors import DataError

CLASSES = {"bell": "event", "crow": "event", "dog": "event", "flute": "instrument", "harp": "instrument"}
PLAIN = MixConfig(
    samples=2048,
    kinds=(("event", 0.5), ("instrument", 0.5)),
    gain_db=0.0,
    speed=0.0,
    distractor=0.0,
    single=0.0,
    tile=1.0,
)


def _bank(root: Path, waves: dict[str, list[np.ndarray]]) -> SoundBank:
    clips = []
    for label, parts in waves.items():
        for n, wave in enumerate(parts):
            name = f"{label}{n}"
            soundfile.write(root / f"{name}.wav", wave, 16_000, subtype="FLOAT")
            clips.append(Clip(name, f"{name}.wav", labels=(label,), kind=CLASSES[label], source=name))
    return SoundBank(clips, root)


def _tone(hertz: float, samples: int = 6000, level: float = 0.3) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(samples) / 16_000)


def _waves(samples: int = 6000) -> dict[str, list[np.ndarray]]:
    return {
        label: [_tone(300 * (n + 1), samples), _tone(300 * (n + 1) + 50, samples)]
        for n, label in enumerate(CLASSES)
    }


def _mixer(root: Path, waves: dict[str, list[np.ndarray]] | None = None, confusable=None, **changes) -> Mixer:
    bank = _bank(root, waves or _waves())
    cfg = MixConfig(**{**vars(PLAIN), **changes})
    return Mixer(bank, list(CLASSES), CLASSES, cfg, confusable)


def _batch(mixer: Mixer, seed: int = 0, size: int = 64):
    return mixer.batch(np.random.default_rng(seed), size)


EVERYTHING = {"gain_db": 4.0, "speed": 0.2, "distractor": 0.5, "single": 0.3, "tile": 0.5}


def test_a_seed_decides_everything_and_another_one_changes_it(tmp_path):
    mixer = _mixer(tmp_path, **EVERYTHING)
    one, again, other = _batch(mixer), _batch(mixer), _batch(mixer, 1)
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert not np.array_equal(one.sources, other.sources)
    assert not np.array_equal(one.labels, other.labels)


def test_batches_have_the_stated_shapes_and_are_finite(tmp_path):
    batch = _batch(_mixer(tmp_path, **EVERYTHING))
    assert batch.sources.shape == (64, 2, 2048)
    assert batch.distractor.shape == (64, 2048)
    assert batch.sources.dtype == batch.distractor.dtype == np.float32
    assert np.isfinite(batch.sources).all()
    assert np.isfinite(batch.distractor).all()


def test_both_classes_differ_and_the_absent_one_is_neither(tmp_path):
    batch = _batch(_mixer(tmp_path), size=200)
    assert (batch.labels[:, 0] != batch.labels[:, 1]).all()
    assert (batch.absent[:, None] != batch.labels).all()
    assert set(batch.labels.flatten()) == set(range(5)), "every class takes part"
    assert set(batch.absent) == set(range(5))


def test_clips_belong_to_the_classes_they_stand_for(tmp_path):
    mixer = _mixer(tmp_path)
    batch = _batch(mixer)
    for n in range(64):
        for k in range(2):
            assert mixer.bank.clips[batch.clips[n, k]].label == mixer.labels[batch.labels[n, k]]
    rng = np.random.default_rng(0)
    assert {mixer.bank.clips[mixer.example_of(rng, 2)].clip.id for _ in range(30)} == {"dog0", "dog1"}


def test_confusable_classes_are_neither_mixed_nor_called_absent(tmp_path):
    pairs = {"bell": {"crow"}, "crow": {"bell"}, "flute": {"harp"}, "harp": {"flute"}}
    batch = _batch(_mixer(tmp_path, confusable=pairs), size=300)
    groups = np.array([0, 0, 1, 2, 2])
    assert (groups[batch.labels[:, 0]] != groups[batch.labels[:, 1]]).all()
    # two groups of two and a single: with two groups sounding, the third is what is absent
    assert (groups[batch.absent][:, None] != groups[batch.labels]).all()


def test_sources_have_equal_power_and_no_third_sound_unless_asked(tmp_path):
    batch = _batch(_mixer(tmp_path))
    power = np.square(batch.sources).mean(axis=2)
    np.testing.assert_allclose(power, 0.01, rtol=0.02)
    assert not batch.distractor.any()
    assert batch.audible.all()


def test_levels_differ_by_the_stated_spread_within_its_limit(tmp_path):
    batch = _batch(_mixer(tmp_path, gain_db=4.0, gain_limit_db=6.0), size=400)
    power = np.square(batch.sources).mean(axis=2)
    difference = 10 * np.log10(power[:, 1] / power[:, 0])
    assert abs(difference).max() < 6.2
    assert 2.5 < difference.std() < 4.5
    assert (abs(difference) > 5.8).any(), "the limit is reached"


def test_a_silent_second_source_is_said_to_be_inaudible(tmp_path):
    batch = _batch(_mixer(tmp_path, single=0.5), size=200)
    silent = ~batch.sources.any(axis=2)
    assert not silent[:, 0].any()
    np.testing.assert_array_equal(silent[:, 1], ~batch.audible[:, 1])
    assert 0.35 < silent[:, 1].mean() < 0.65


def test_distractors_are_softer_third_classes(tmp_path):
    batch = _batch(_mixer(tmp_path, distractor=1.0), size=100)
    power = np.square(batch.distractor).mean(axis=1)
    assert (power > 0).mean() > 0.4
    assert power.max() <= 0.0102
    spectrum = np.abs(np.fft.rfft(batch.distractor * np.hanning(2048), axis=1))
    hertz = spectrum.argmax(axis=1) * 16_000 / 2048
    for n in np.flatnonzero(power):
        third = int((hertz[n] + 10) // 300) - 1
        assert third not in batch.labels[n]
        assert third != batch.absent[n]


def test_kinds_come_in_their_shares(tmp_path):
    mixer = _mixer(tmp_path, kinds=(("event", 0.9), ("instrument", 0.1), ("speech", 0.5)))
    first = _batch(mixer, size=400).labels[:, 0]
    assert 0.84 < (first < 3).mean() < 0.96, "speech has no clips and takes no share"


def test_speed_moves_a_tone_by_its_factor(tmp_path):
    waves = {label: [_tone(1000)] for label in CLASSES}
    batch = _batch(_mixer(tmp_path, waves, speed=0.2), size=100)
    spectrum = np.abs(np.fft.rfft(batch.sources[:, 0] * np.hanning(2048), 16_384, axis=1))
    hertz = spectrum.argmax(axis=1) * 16_000 / 16_384
    assert 820 < hertz.min() < 900
    assert 1120 < hertz.max() < 1210


@pytest.mark.parametrize("samples", [1, 2, 255, 2047, 2048, 2049, 2050, 2051, 9000])
@pytest.mark.parametrize("tile", [0.0, 1.0])
def test_clips_of_any_length_fill_the_window(tmp_path, samples, tile):
    waves = {label: [np.full(samples, 0.25)] for label in CLASSES}
    batch = _batch(_mixer(tmp_path, waves, tile=tile, speed=0.2), size=30)
    assert batch.sources.shape == (30, 2, 2048)
    assert np.isfinite(batch.sources).all()
    assert batch.sources.any(axis=2).all(), "no source gets lost"
    np.testing.assert_allclose(batch.sources.max(axis=2), 0.1, rtol=1e-3)


def test_a_short_clip_is_repeated_or_left_alone_in_silence(tmp_path):
    waves = {label: [np.full(400, 0.25)] for label in CLASSES}
    alone = _batch(_mixer(tmp_path, waves, tile=0.0)).sources[:, 0] != 0
    assert (alone.sum(axis=1) == 400).all()
    assert len(set(alone.argmax(axis=1).tolist())) > 20, "anywhere"
    tiled = _batch(_mixer(tmp_path, waves, tile=1.0)).sources[:, 0] != 0
    assert (tiled.sum(axis=1) > 1200).all()


def test_a_silent_clip_stays_silent_and_finite(tmp_path):
    waves = {**_waves(), "dog": [np.zeros(6000)]}
    batch = _batch(_mixer(tmp_path, waves, speed=0.2))
    dog = batch.labels == 2
    assert dog.any()
    assert not batch.sources[dog].any()
    assert np.isfinite(batch.sources).all()


def test_a_place_with_sound_is_preferred_in_a_long_quiet_clip(tmp_path):
    wave = np.zeros(60_000)
    wave[30_000:] = _tone(500, 30_000)
    waves = {label: [wave] for label in CLASSES}
    batch = _batch(_mixer(tmp_path, waves), size=100)
    assert batch.sources[:, 0].any(axis=1).mean() > 0.75, "half of all places are silent; three are tried"


def test_power_is_measured_where_the_clip_sounds(tmp_path):
    wave = np.concatenate([_tone(500, 1024), np.zeros(1024)])
    batch = _batch(_mixer(tmp_path, {label: [wave] for label in CLASSES}))
    assert np.square(batch.sources).mean(axis=2) == pytest.approx(0.005, rel=0.05)


def test_too_few_classes_to_mix_are_named(tmp_path):
    waves = {label: [_tone(300)] for label in ("bell", "crow", "dog")}
    with pytest.raises(DataError, match="it has 3 classes"):
        _mixer(tmp_path, waves)
    with pytest.raises(DataError, match="too small to mix"):
        _mixer(tmp_path, kinds=(("speech", 1.0),))
    with pytest.raises(DataError, match="too small to mix"):
        _mixer(tmp_path, confusable={"dog": set(CLASSES)})
