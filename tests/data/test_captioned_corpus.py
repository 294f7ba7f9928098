from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign import cli
from auralign.data.captioned_corpus import CaptionPlan, build, default_plan
from auralign.data.clip import Clip
from auralign.data.manifest import read_manifest, write_manifest
from auralign.data.mixtures import (
    LENGTH,
    RATE_HZ,
    MixtureRenderer,
    active_power,
    excerpt,
    list_path,
    read_list,
)
from auralign.data.phrases import clauses
from auralign.data.readers.tables import read_json
from auralign.data.soundbox.lists import caption_classes, caption_plans, draw_lists
from auralign.errors import DataError

LABELS = ("bell", "drum", "flute", "harp", "rain", "wolf howling")


@pytest.fixture(scope="module")
def soundbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes (wolves sound like rain), ten short sounds each: 8 train, 1 val, 1 test; and music."""
    root = tmp_path_factory.mktemp("soundbox")
    (root / "audio").mkdir()
    clips, classes = [], {}
    for n, label in enumerate((*LABELS, "music")):
        for k in range(10):
            name = f"{label.replace(' ', '-')}-{k}"
            rng = np.random.default_rng([n, k])
            seconds = 0.4 if label == "drum" else 6.0 if label == "harp" else 1.5
            t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
            wave = np.sin(2 * np.pi * (200 + 170 * n + 9 * k) * t) * np.exp(
                -t * (12 if label == "drum" else 1)
            )
            wave = 0.4 * wave + 0.01 * rng.standard_normal(len(t))
            soundfile.write(root / "audio" / f"{name}.flac", wave, RATE_HZ)
            clips.append(
                Clip(name, f"audio/{name}.flac", labels=(label,), kind="event", sample_rate=RATE_HZ, channels=1,
                     split="train" if k < 8 else "val" if k == 8 else "test",
                     source=f"{label}-{k // 2}" if k < 8 else name, license="CC0-1.0", package=f"p{k % 2}",
                     source_path=f"x/steel_{label}.ogg" if k == 0 else "x/1.ogg")
            )  # fmt: skip
        confusable = {"rain": ["wolf howling"], "wolf howling": []}.get(label, [])
        classes[label] = {
            "kind": "event",
            "texts": [f"{label} music", f"two {label}s"],
            "confusable": confusable,
        }
    write_manifest(root / "manifest.jsonl", clips)
    (root / "classes.json").write_text(json.dumps(classes))
    return root


@pytest.fixture(scope="module")
def corpus(soundbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "captions"
    build(soundbox, out, plan=default_plan(mixtures=36), workers=2)
    return out


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def part(corpus: Path, name: str) -> list[Clip]:
    return [clip for clip in read_manifest(corpus / "manifest.jsonl") if clip.split == name]


def test_the_command_builds_the_same_corpus_twice(
    soundbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "build", "captions", "--from", str(soundbox), "--mixtures", "12", "-o"]
    assert cli.main([*words, str(tmp_path / "1"), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert cli.main([*words, str(tmp_path / "2")]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / '2'}\n"
    assert "train-4: 12 of 4 sounds" in shown.err
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert card == json.loads((tmp_path / "1" / "corpus.json").read_text())
    assert {name: one["clips"] for name, one in card["parts"].items()} == {
        "train-1": 24, "train-2": 12, "train-3": 12, "train-4": 12, "val-2": 1,
    }  # fmt: skip
    assert card["class_names"] == list(LABELS)
    assert cli.main([*words, str(tmp_path / "2"), "--seed", "1"]) == 0
    assert files(tmp_path / "1")["manifest.jsonl"] != files(tmp_path / "2")["manifest.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(("name", "sounds"), [("train-2", 2), ("train-3", 3), ("train-4", 4), ("val-2", 2)])
def test_no_single_sound_is_in_a_part_of_mixtures(
    soundbox: Path, corpus: Path, name: str, sounds: int
) -> None:
    known = {clip.id: clip for clip in read_manifest(soundbox / "manifest.jsonl")}
    renderer = MixtureRenderer(soundbox, known)
    records = {clip.id: clip for clip in part(corpus, name)}
    recipes = read_list(corpus / "recipes" / f"{name}.jsonl")
    assert len(recipes) == len(records) > 0
    for spec in recipes:
        wave, rate = soundfile.read(corpus / records[spec.id].audio, dtype="float32")
        assert (rate, len(wave)) == (RATE_HZ, LENGTH)
        alone = [renderer.render(replace(spec, target=k)).target for k in range(sounds)]
        assert len(alone) == len(spec.components) == sounds
        assert np.abs(wave - np.sum(alone, axis=0)).max() < 1e-4
        assert np.abs(wave).max() < 1.0
        whole = float(np.square(np.sum(alone, axis=0)).sum())
        assert all(10 * np.log10(float(np.square(one).sum()) / whole) >= -25.0 for one in alone)
        labels = [known[item.clip].labels[0] for item in spec.components]
        assert records[spec.id].labels == tuple(labels)
        assert len(set(labels)) == sounds
        assert not {"rain", "wolf howling"} <= set(labels)
        assert {known[item.clip].split for item in spec.components} == {name.split("-")[0]}


def test_single_sounds_are_the_parts_of_the_mixtures_of_two(corpus: Path) -> None:
    singles = {}
    for clip in part(corpus, "train-1"):
        assert len(clip.labels) == 1
        singles.setdefault((clip.labels[0], clip.source), []).append(
            soundfile.read(corpus / clip.audio, dtype="float32")[0]
        )
    pairs = part(corpus, "train-2")
    assert sum(map(len, singles.values())) == 2 * len(pairs)
    for clip in pairs:
        wave = soundfile.read(corpus / clip.audio, dtype="float32")[0]
        one, two = (singles[key] for key in zip(clip.labels, clip.source.split(" + "), strict=True))
        assert min(np.abs(wave - a - b).max() for a, b in itertools.product(one, two)) < 1e-4


def test_every_beginning_of_the_single_sounds_is_balanced(corpus: Path) -> None:
    singles = part(corpus, "train-1")
    for stop in range(1, len(singles) + 1):
        count = Counter(clip.labels[0] for clip in singles[:stop])
        assert max(count.values()) - min([*count.values()] if len(count) == 6 else [0]) <= 1
        assert len(count) == min(stop, 6)
    recordings = {(clip.labels[0], clip.source) for clip in singles[:24]}
    assert len(recordings) == 24  # 6 classes of 4 recordings


def test_classes_and_recordings_are_used_alike(corpus: Path) -> None:
    for name in ("train-2", "train-3", "train-4"):
        uses = Counter(label for clip in part(corpus, name) for label in clip.labels)
        free = [uses[label] for label in LABELS if label not in ("rain", "wolf howling")]
        assert max(free) - min(free) <= 1


def test_captions_and_phrases_are_those_of_the_extractor(corpus: Path) -> None:
    parsed = read_json(corpus / "parsed_all_caps.json")
    clips = read_manifest(corpus / "manifest.jsonl")
    assert list(parsed) == [clip.id for clip in clips]
    for clip in clips:
        assert len(clip.captions) == 1
        assert clip.phrases == clauses(clip.captions[0])
        assert parsed[clip.id] == {
            "file_id": clip.id, "caption": clip.captions[0], "sources": list(clip.phrases),
        }  # fmt: skip
    assert any("steel" in clip.captions[0].casefold() for clip in clips)


def test_levels_spread_around_equal_power_within_bounds(soundbox: Path, tmp_path: Path) -> None:
    plan = CaptionPlan((("train-2", "train", 2, 24),), spread_db=0.0)
    build(soundbox, tmp_path / "flat", plan=plan, workers=1)
    build(soundbox, tmp_path / "wide", plan=replace(plan, spread_db=30.0, most_db=2.0), workers=1)
    build(soundbox, tmp_path / "far", plan=replace(plan, spread_db=20.0, most_db=60.0), workers=1)
    known = {clip.id: clip for clip in read_manifest(soundbox / "manifest.jsonl")}
    renderer = MixtureRenderer(soundbox, known)
    found = {}
    for name in ("flat", "wide"):
        found[name] = [
            np.subtract(*[
                item.gain_db + 10 * np.log10(active_power(
                    excerpt(renderer.samples(item.clip), round(item.offset_s * RATE_HZ))))
                for item in spec.components
            ])
            for spec in read_list(tmp_path / name / "recipes" / "train-2.jsonl")
        ]  # fmt: skip
    assert np.abs(found["flat"]).max() < 0.01
    assert 3.9 < np.abs(found["wide"]).max() < 4.01
    for spec in read_list(tmp_path / "far" / "recipes" / "train-2.jsonl"):
        mixture = renderer.render(spec)
        assert max(np.abs(one).max() for one in (mixture.target, mixture.interferer, mixture.mixture)) < 0.991
        parts = [float(np.square(one).sum()) for one in (mixture.target, mixture.interferer)]
        assert 10 * np.log10(min(parts) / float(np.square(mixture.mixture).sum())) >= -25.0


def test_only_some_classes_can_be_asked_for(soundbox: Path, tmp_path: Path) -> None:
    plan = CaptionPlan((("train-2", "train", 2, 5),), classes=("bell", "drum"))
    card = build(soundbox, tmp_path / "two", plan=plan, workers=1)
    assert card["class_names"] == ["bell", "drum"]
    assert {label for clip in read_manifest(tmp_path / "two" / "manifest.jsonl") for label in clip.labels} == {
        "bell", "drum",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            CaptionPlan((("train-2", "train", 2, 5),), classes=("bell", "zither")),
            "'zither' is not in the corpus",
        ),
        (CaptionPlan((("train-2", "train", 2, 5),), classes=("rain", "wolf howling")), "no 2 classes"),
        (CaptionPlan((("x", "nowhere", 2, 5),)), "no 2 classes of the split 'nowhere'"),
        (CaptionPlan((("x", "train", 5, 5),)), "no caption for 5 sounds|no 5 classes"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_named(
    soundbox: Path, tmp_path: Path, plan: CaptionPlan, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        build(soundbox, tmp_path / "out", plan=plan)
    assert list(tmp_path.iterdir()) == []


def test_caption_classes_have_sounds_to_learn_and_to_test(soundbox: Path) -> None:
    clips = read_manifest(soundbox / "manifest.jsonl")
    assert caption_classes(clips) == LABELS
    assert caption_classes(clips, least=9) == ()
    assert "bell" not in caption_classes([clip for clip in clips if clip.id != "bell-9"])


def lose_manifest(root: Path) -> None:
    (root / "manifest.jsonl").unlink()


def lose_classes(root: Path) -> None:
    (root / "classes.json").unlink()


def spoil_classes(root: Path) -> None:
    (root / "classes.json").write_text('{"bell"')


def spoil_sound(root: Path) -> None:
    for path in (root / "audio").iterdir():
        path.write_bytes(b"nonsense")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lose_manifest, "manifest cannot be read"),
        (lose_classes, "classes of the corpus cannot be read"),
        (spoil_classes, "classes of the corpus cannot be read"),
        (spoil_sound, "cannot be read"),
    ],
)
def test_a_damaged_source_leaves_the_old_corpus_as_it_was(
    soundbox: Path,
    tmp_path: Path,
    harm: Callable[[Path], None],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = tmp_path / "box", tmp_path / "captions"
    for name, content in files(soundbox).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    harm(root)
    out.mkdir()
    (out / "old").write_text("old")
    assert cli.main(["data", "build", "captions", "--from", str(root), "-o", str(out)]) == 1
    assert said in capsys.readouterr().err
    assert files(out) == {"old": b"old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box", "captions"]


@pytest.mark.parametrize(
    "words",
    [
        ["captions", "--source", "x"],
        ["captions", "--packages", "x"],
        ["captions", "--mixtures", "0"],
        ["captions", "--seed", "-1"],
        ["soundbox", "--from", "x"],
        ["folder", "--seed", "3"],
        ["caption"],
    ],
)
def test_options_of_another_corpus_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "build", *words]) == 2
    assert capsys.readouterr().err


def test_lists_of_more_sounds_keep_confusable_classes_apart(soundbox: Path, tmp_path: Path) -> None:
    plans = [replace(plan, count=24) for plan in caption_plans(LABELS)]
    lengths = draw_lists(soundbox, tmp_path, plans)
    assert set(lengths.values()) == {24}
    known = {clip.id: clip for clip in read_manifest(soundbox / "manifest.jsonl")}
    for plan in plans:
        for spec in read_list(tmp_path / f"{plan.name}.jsonl"):
            labels = [known[item.clip].labels[0] for item in spec.components]
            assert len(set(labels)) == len(labels) == plan.interferers + 1
            assert labels[0] == spec.query
            assert not {"rain", "wolf howling"} <= set(labels)
    with pytest.raises(DataError, match="no 4 classes fit together"):
        draw_lists(soundbox, tmp_path / "few", [replace(caption_plans(LABELS[:3])[-1], count=1)])


@pytest.mark.slow
def test_packaged_lists_are_drawn_again_from_the_corpus(tmp_path: Path) -> None:
    root = Path("corpora/soundbox")
    if not (root / "manifest.jsonl").is_file():
        pytest.skip("needs `auralign data build soundbox`")
    clips = read_manifest(root / "manifest.jsonl")
    plans = caption_plans(caption_classes(clips))
    draw_lists(root, tmp_path, plans)
    for plan in plans:
        assert (tmp_path / f"{plan.name}.jsonl").read_bytes() == list_path(plan.name).read_bytes()
