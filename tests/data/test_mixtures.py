from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.clip import Clip
from auralign.data.mixtures import (
    LENGTH,
    RATE_HZ,
    Component,
    MixtureRenderer,
    MixtureSpec,
    active_power,
    excerpt,
    list_names,
    list_path,
    read_list,
    write_list,
)
from auralign.errors import DataError

SPEC = MixtureSpec("m-0", (Component("a", -6.0, 0.5), Component("b", 0.0)), 0, "violin", 7)


def corpus(folder: Path) -> MixtureRenderer:
    rng = np.random.default_rng(0)
    clips = {}
    for name, seconds in (("a", 6.0), ("b", 1.0)):
        samples = rng.uniform(-0.3, 0.3, int(seconds * RATE_HZ)).astype(np.float32)
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ, subtype="FLOAT")
        clips[name] = Clip(
            name, f"{name}.wav", seconds, RATE_HZ, 1, labels=(name,), kind="event", split="test"
        )
    return MixtureRenderer(folder, clips)


def test_target_and_interferer_sum_to_the_mixture(tmp_path: Path) -> None:
    mixture = corpus(tmp_path).render(SPEC)
    assert mixture.mixture.shape == (LENGTH,)
    np.testing.assert_array_equal(mixture.target + mixture.interferer, mixture.mixture)


def test_gain_offset_and_repetition_are_those_of_the_recipe(tmp_path: Path) -> None:
    renderer = corpus(tmp_path)
    mixture = renderer.render(SPEC)
    a, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    b, _ = soundfile.read(tmp_path / "b.wav", dtype="float32")
    np.testing.assert_allclose(mixture.target, a[8000 : 8000 + LENGTH] * 10 ** (-6 / 20), rtol=1e-6)
    np.testing.assert_array_equal(mixture.interferer[RATE_HZ : 2 * RATE_HZ], b)


def test_an_excerpt_never_runs_past_the_end() -> None:
    samples = np.arange(100, dtype=np.float32)
    np.testing.assert_array_equal(excerpt(samples, 95, 10), samples[90:])


def test_active_power_ignores_silence_between_sounds() -> None:
    tone = np.full(3200, 0.5, np.float32)
    gaps = np.concatenate([tone, np.zeros(6400, np.float32), tone])
    assert active_power(gaps) == pytest.approx(active_power(tone))
    assert active_power(np.zeros(3200, np.float32)) == 0.0


def test_a_list_survives_writing(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    write_list(path, [SPEC])
    assert read_list(path) == [SPEC]


def test_a_changed_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    write_list(path, [SPEC])
    path.write_text(path.read_text().replace("-6.0", "-7.0"))
    with pytest.raises(DataError, match="not the frozen one"):
        read_list(path)
    assert read_list(path, check=False)[0].components[0].gain_db == -7.0


def test_a_list_without_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    write_list(path, [SPEC])
    path.with_suffix(".sha256").unlink()
    with pytest.raises(DataError, match="sha256"):
        read_list(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": 2}, "target"),
        ({"target": "x"}, "target"),
        ({"components": []}, "components"),
        ({"components": [{"clip": "a"}]}, "components"),
        ({"components": [{"clip": "a", "gain_db": 0, "offset_s": -1}] * 2}, "offset"),
        ({"mood": 1}, "mood"),
    ],
)
def test_a_wrong_field_of_a_list_is_named(tmp_path: Path, change: dict, said: str) -> None:
    parts = [{"clip": "a", "gain_db": 0.0}, {"clip": "b", "gain_db": 0.0}]
    row = {"id": "m", "components": parts, "target": 0, "query": "x", **change}
    path = tmp_path / "l.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=said):
        read_list(path, check=False)


def test_a_clip_that_the_corpus_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'zzz' is not in the manifest"):
        corpus(tmp_path).render(MixtureSpec("m", (Component("zzz", 0.0), Component("a", 0.0)), 0, "x"))


def test_an_unknown_list_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="no mixture list"):
        list_path("nope")


@pytest.mark.parametrize("name", list_names())
def test_packaged_lists_are_frozen_and_set_different_clips_against_each_other(name: str) -> None:
    specs = read_list(list_path(name))
    sounds = {"soundbox-captions-3": 3, "soundbox-captions-4": 4}.get(name, 2)
    assert len(specs) >= 200
    for spec in specs:
        assert spec.target == 0
        assert len({item.clip for item in spec.components}) == len(spec.components) == sounds
        assert spec.query
