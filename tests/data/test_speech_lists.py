from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from auralign import cli
from auralign.data import speech_lists
from auralign.data.mixtures import active_power, list_path
from auralign.data.speech_lists import (
    NAMES,
    draw_speech_lists,
    load_speech_list,
    read_speech_list,
    write_speech_list,
)
from auralign.errors import DataError


@pytest.fixture(scope="module")
def lists(tiny_speech: Path, tiny_noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    with pytest.MonkeyPatch.context() as patch:
        for name, plan in speech_lists._PLANS.items():
            patch.setitem(speech_lists._PLANS, name, speech_lists.replace(plan, count=8))
        draw_speech_lists(tiny_speech, tiny_noise, folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_lists_are_the_frozen_ones(name: str) -> None:
    recipes = read_speech_list(list_path(name))
    lengths = {"speech-val": 100, "speech-dry": 300, "speech-reverb": 200}
    assert len(recipes) == lengths.get(name, len(recipes)) > 20
    assert len({recipe.id for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        assert bool(recipe.noise) == (name != "speech-real")
        assert (recipe.room is not None) == (name == "speech-reverb")
        assert name == "speech-real" or 4.0 <= recipe.samples / 16_000 <= 6.0


@pytest.mark.parametrize("name", ["speech-dry", "speech-reverb"])
def test_ratios_and_speakers_are_balanced(name: str) -> None:
    recipes = read_speech_list(list_path(name))
    steps = [int(np.argmin(np.abs(np.array([0, 5, 10, 15]) - recipe.snr_db))) for recipe in recipes]
    counts = np.bincount(steps)
    assert counts.max() - counts.min() <= 6  # a ratio on the border belongs to either
    speakers = [recipe.speaker for recipe in recipes]
    assert max(map(speakers.count, speakers)) - min(map(speakers.count, speakers)) <= 8


def test_lists_render_the_same_twice(lists: Path, tiny_speech: Path, tiny_noise: Path) -> None:
    for name in NAMES:
        one, two = (load_speech_list(lists / f"{name}.jsonl", tiny_speech, tiny_noise) for _ in range(2))
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a.noisy, b.noisy)
            assert a.noisy.dtype == np.float32
            assert len(a.noisy) == a.recipe.samples


def test_mixed_items_have_what_they_say(lists: Path, tiny_speech: Path, tiny_noise: Path) -> None:
    for name in ("speech-val", "speech-dry", "speech-reverb"):
        for item in load_speech_list(lists / f"{name}.jsonl", tiny_speech, tiny_noise):
            assert item.clean is not None
            assert item.received is not None
            noise = item.noisy.astype(np.float64) - item.received
            ratio = 10 * np.log10(active_power(item.received) / np.mean(np.square(noise)))
            assert ratio == pytest.approx(item.snr_db, abs=0.02)  # gains are rounded to 0.001 dB
            assert (item.rt60_s is not None) == (name == "speech-reverb")
            assert np.array_equal(item.clean, item.received) == (name != "speech-reverb")
            assert item.language == "xx"
            assert set(item.noise) <= {"rain", "drill", "music", "geyser"}
            assert item.speaker in ("voice-2", "voice-3") if name == "speech-val" else ("voice-4", "voice-5")


def test_real_items_have_no_reference(lists: Path, tiny_speech: Path, tiny_noise: Path) -> None:
    items = load_speech_list(lists / "speech-real.jsonl", tiny_speech, tiny_noise)
    assert items
    for item in items:
        assert (item.clean, item.received, item.snr_db, item.noise) == (None, None, None, ())
        assert item.speaker in ("voice-6", "voice-7")


def test_drawing_again_gives_the_same_list(
    lists: Path, tiny_speech: Path, tiny_noise: Path, tmp_path: Path
) -> None:
    draw_speech_lists(tiny_speech, tiny_noise, tmp_path, ["speech-real"])
    assert (tmp_path / "speech-real.jsonl").read_bytes() == (lists / "speech-real.jsonl").read_bytes()


def test_a_list_survives_writing(lists: Path, tmp_path: Path) -> None:
    for name in NAMES:
        recipes = read_speech_list(lists / f"{name}.jsonl")
        write_speech_list(tmp_path / "again.jsonl", recipes)
        assert read_speech_list(tmp_path / "again.jsonl") == recipes


def test_a_changed_list_is_refused(lists: Path, tmp_path: Path) -> None:
    text = (lists / "speech-val.jsonl").read_text().replace("voice-2", "voice-3", 1)
    (tmp_path / "speech-val.jsonl").write_text(text)
    (tmp_path / "speech-val.sha256").write_text((lists / "speech-val.sha256").read_text())
    with pytest.raises(DataError, match="frozen"):
        read_speech_list(tmp_path / "speech-val.jsonl")


def test_a_list_of_another_corpus_is_refused(lists: Path, tiny_noise: Path) -> None:
    with pytest.raises(DataError, match="not in the manifest"):
        load_speech_list(lists / "speech-val.jsonl", tiny_noise, tiny_noise)


def test_the_command_compares_the_shipped_lists(
    tiny_speech: Path, tiny_noise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["data", "lists", str(tiny_speech), "--soundbox", str(tiny_noise)])
    assert code == 1  # they are of another corpus
    assert "speech-dry" in capsys.readouterr().out
