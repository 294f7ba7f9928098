from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from auralign.data.manifest import read_manifest
from auralign.data.mixtures import MixtureRenderer, active_power, list_names, list_path, read_list
from auralign.data.soundbox import splits, taxonomy
from auralign.data.soundbox.builder import build
from auralign.data.soundbox.drafts import Draft, scale_picture
from auralign.data.soundbox.lists import PLANS, ListPlan, caption_plans, draw_lists
from auralign.data.soundbox.scores import Note, Score, Stroke, perform, split_of
from auralign.data.soundbox.sound import RATE_HZ, decode, renumber_ogg, sequence, tidy, to_opus, trim
from auralign.errors import AudioError, DataError

TABLES = {
    "packages.toml": """
        [mini]
        license = "CC0-1.0"
        [away]
        license = "MIT"
        cross = true
        [font]
        license = "MIT"
    """,
    "animals.toml": """
        ["dog barking"]
        audio = ["mini: dogs/*.wav @each", "away: dogs/*.wav"]
        texts = ["a dog", "dogs", "bark"]
        texts_test = ["hound"]
        pictures = ["pics/dog.png", "pics/puppy.png"]
        ["door"]
        audio = ["mini: doors/*.wav"]
        rhythm = [0.2, 0.4]
        texts = ["a door", "a gate", "slam"]
        texts_test = ["hatch"]
        ["whale"]
        unseen = true
        audio = ["mini: whale.wav", "mini: nothing.wav"]
        texts = ["a whale", "whales", "song"]
        texts_test = ["orca"]
    """,
    "things.toml": "",
    "nature_people.toml": "",
    "drums.toml": "",
    "instruments.toml": """
        ["violin"]
        programs = [40]
        range = [55, 90]
        texts = ["a violin", "fiddle", "strings"]
        texts_test = ["violinist"]
        ["flute"]
        programs = [73]
        range = [60, 90]
        texts = ["a flute", "flutes", "pipe"]
        texts_test = ["flautist"]
    """,
    "confusable.toml": 'sets = [["dog barking", "whale"]]',
}


class Sines:
    """Plays every stroke as a sine."""

    def __init__(self, path: Path) -> None:
        assert path.read_bytes() == b"sfbk"

    def play(self, program: int, strokes: Sequence[Stroke]) -> np.ndarray:
        out = np.zeros(int((strokes[-1].end_s + 1) * RATE_HZ), np.float32)
        for stroke in strokes:
            start, end = int(stroke.start_s * RATE_HZ), int(stroke.end_s * RATE_HZ)
            hertz = 440 * 2 ** ((stroke.pitch - 69) / 12)
            out[start:end] += 0.1 * np.sin(2 * np.pi * hertz * np.arange(end - start) / RATE_HZ)
        return out


def wav(seed: int, seconds: float, rate: int = 22_050) -> bytes:
    rng = np.random.default_rng(seed)
    n = int(seconds * rate)
    shape = np.exp(-np.arange(n) / (0.3 * n)) * np.sin(np.arange(n) * rng.uniform(0.05, 0.6))
    buffer = io.BytesIO()
    samples = 0.5 * shape + 0.05 * rng.standard_normal(n)
    soundfile.write(buffer, samples.astype(np.float32), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (400, 300), colour).save(buffer, "PNG")
    return buffer.getvalue()


def scores() -> list[Score]:
    rng = np.random.default_rng(5)
    out = []
    for index in range(24):
        steps = 60 + np.cumsum(rng.integers(-3, 4, 80))
        notes = tuple(Note(k * 0.5, 0.5, int(np.clip(pitch, 40, 90))) for k, pitch in enumerate(steps))
        out.append(Score(f"tune-{index}", (notes,)))
    return out


def tables(folder: Path) -> taxonomy.Taxonomy:
    folder.mkdir(exist_ok=True)
    for name, text in TABLES.items():
        (folder / name).write_text(text)
    return taxonomy.load(folder)


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_deb = _make_deb()
    folder = tmp_path_factory.mktemp("debs")
    files = {f"/usr/dogs/dog{k}.wav": wav(k, 1.0 + 0.3 * k) for k in range(6)}
    files |= {f"/usr/doors/door_{k}.wav": wav(20 + k, 0.3) for k in range(3)}
    files |= {"/usr/whale.wav": wav(40, 5.0), "/usr/dogs/broken.wav": b"RIFF nonsense"}
    files |= {"/usr/pics/dog.png": png("red"), "/usr/pics/puppy.png": png("blue")}
    make_deb(folder / "mini_1_all.deb", files, "xz", "mini")
    make_deb(
        folder / "away_1_all.deb",
        {"/a/dogs/rex.wav": wav(77, 2.0), "/a/dogs/copy.wav": files["/usr/dogs/dog1.wav"]},
        "gz",
    )
    make_deb(folder / "font_1_all.deb", {"/usr/f.sf2": b"sfbk"}, "xz")
    return folder


def _make_deb():
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "packages_of_test", Path(__file__).with_name("test_soundbox_packages.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_deb


def make_corpus(out: Path, debs: Path, folder: Path) -> dict:
    plan = (("font", "train", 3), ("font", "test", 2))
    return build(
        out, packages=debs, taxonomy=tables(folder), plan=plan, scores=scores(), renderer=Sines, workers=1
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, debs: Path) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder / "box", debs, folder / "tables")
    return folder / "box"


def test_two_builds_give_the_same_bytes(corpus: Path, debs: Path, tmp_path: Path) -> None:
    again = make_corpus(tmp_path / "box", debs, tmp_path / "tables")
    first = json.loads((corpus / "corpus.json").read_text())
    assert (again["hash"], again["audio_hash"]) == (first["hash"], first["audio_hash"])
    for path in sorted(corpus.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "box" / path.relative_to(corpus)).read_bytes()


def test_no_source_is_on_two_sides_of_a_split(corpus: Path) -> None:
    sides: dict[str, set[str]] = {}
    for clip in read_manifest(corpus / "manifest.jsonl"):
        sides.setdefault(clip.source, set()).add(clip.split)
    assert all(len(found) == 1 for found in sides.values())
    assert {"train", "test", "cross", "unseen"} <= set.union(*sides.values())


def test_every_clip_is_sound_at_16_khz_with_its_origin(corpus: Path) -> None:
    for clip in read_manifest(corpus / "manifest.jsonl"):
        samples, rate = soundfile.read(corpus / clip.audio)
        assert rate == RATE_HZ
        assert samples.ndim == 1
        assert clip.duration_s is not None
        assert abs(len(samples) / rate - clip.duration_s) < 1e-3
        assert np.abs(samples).max() > 0.01
        assert len(clip.sha256) == 64
        assert clip.license
        assert clip.source_path
        assert clip.version == "1.2-3"
        assert len(clip.captions) >= 4


def test_what_could_not_be_used_is_told(corpus: Path) -> None:
    summary = json.loads((corpus / "corpus.json").read_text())
    assert list(summary["skipped"]) == ["/usr/dogs/broken.wav"]
    assert summary["unmatched"] == ["mini: nothing.wav"]
    assert [name for name in summary["repeated"] if name.startswith("away/")] == ["away/a-dogs-copy"]


def test_single_strokes_become_a_rhythm(corpus: Path) -> None:
    doors = [clip for clip in read_manifest(corpus / "manifest.jsonl") if clip.labels == ("door",)]
    assert [clip.id for clip in doors] == ["mini/usr-doors-door-rhythm-0", "mini/usr-doors-door-rhythm-1"]
    assert all(4.0 < (clip.duration_s or 0) <= 6.1 for clip in doors)


def test_pictures_are_small_and_divided(corpus: Path) -> None:
    classes = json.loads((corpus / "classes.json").read_text())
    pictures = classes["dog barking"]["pictures"]
    assert len(pictures["train"]) == len(pictures["test"]) == 1
    with Image.open(corpus / pictures["train"][0]) as picture:
        assert max(picture.size) == 224
    assert classes["dog barking"]["texts_test"] == ["hound"]


def test_rendered_clips_follow_the_split_of_their_score(corpus: Path) -> None:
    rendered = [clip for clip in read_manifest(corpus / "manifest.jsonl") if clip.soundfont]
    assert len(rendered) == 10
    assert all(clip.split == split_of(clip.source.removeprefix("score/")) for clip in rendered)


def test_lists_drawn_twice_are_the_same_and_at_equal_power(corpus: Path, tmp_path: Path) -> None:
    by_kind = lambda clip: clip.split in ("train", "test")  # noqa: E731
    plans = [ListPlan("mini", 12, by_kind, by_kind)]
    draw_lists(corpus, tmp_path / "1", plans)
    draw_lists(corpus, tmp_path / "2", plans)
    assert (tmp_path / "1/mini.jsonl").read_bytes() == (tmp_path / "2/mini.jsonl").read_bytes()
    clips = {clip.id: clip for clip in read_manifest(corpus / "manifest.jsonl")}
    renderer = MixtureRenderer(corpus, clips)
    for spec in read_list(tmp_path / "1/mini.jsonl"):
        labels = [clips[item.clip].labels[0] for item in spec.components]
        assert labels[0] == spec.query != labels[1]
        mixture = renderer.render(spec)
        ratio = active_power(mixture.target) / active_power(mixture.interferer)
        assert abs(10 * np.log10(ratio)) < 0.01


def test_a_file_of_two_classes_is_refused(debs: Path, tmp_path: Path) -> None:
    tables(tmp_path / "t")
    (tmp_path / "t/things.toml").write_text(
        '["hound"]\naudio = ["mini: dogs/dog1.wav"]\ntexts = ["h"]\ntexts_test = ["x"]'
    )
    with pytest.raises(DataError, match=r"several classes: dog barking, hound"):
        build(tmp_path / "box", packages=debs, taxonomy=taxonomy.load(tmp_path / "t"), plan=(), workers=1)
    assert not (tmp_path / "box").exists()


def test_a_missing_package_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="3 Debian packages are missing: away, font, mini"):
        make_corpus(tmp_path / "box", tmp_path / "none", tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["x"]\ntexts = ["a"]', "texts_test"),
        ('["x"]\naudio = ["what: a.wav"]\ntexts = ["a"]\ntexts_test = ["b"]', "unknown package 'what'"),
        ('["x"]\naudio = ["mini: a.wav @odd"]\ntexts = ["a"]\ntexts_test = ["b"]', "unknown mark"),
        ('["x"', "cannot be read"),
        ('["door"]\ntexts = ["a"]\ntexts_test = ["b"]', "defined twice"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, text: str, said: str) -> None:
    tables(tmp_path / "t")
    (tmp_path / "t/things.toml").write_text(text)
    with pytest.raises(DataError, match=said):
        taxonomy.load(tmp_path / "t")


def test_curated_classes_have_enough_ways_to_be_asked_for() -> None:
    curated = taxonomy.load()
    assert sum(cls.unseen for cls in curated.classes.values()) >= 13
    said: dict[str, str] = {}
    for cls in curated.classes.values():
        assert len(cls.texts) >= 4, cls.name
        assert cls.texts_test
        assert not set(cls.texts) & set(cls.texts_test)
        for text in cls.texts_test:
            assert said.setdefault(text, cls.name) == cls.name


def test_allocation_gives_every_class_with_three_sources_a_test() -> None:
    for count in range(1, 30):
        found = list(splits.allocate([f"s{k}" for k in range(count)]).values())
        assert ("test" in found) == (count >= 3)
        assert ("val" in found) == (count >= 5)
        assert found.count("train") >= count / 2


def test_a_settled_source_keeps_its_split(tmp_path: Path) -> None:
    tables(tmp_path / "t")
    (tmp_path / "t/splits.toml").write_text('val = ["s0", "s1"]')
    box = taxonomy.load(tmp_path / "t")
    drafts = [_draft(f"c{k}", "mini", np.ones(9, np.float32), f"s{k}") for k in range(5)]
    found = splits.assign(drafts, box)
    assert (found["c0"], found["c1"]) == ("val", "val")
    assert "test" in found.values()


def test_a_source_of_two_classes_is_refused(tmp_path: Path) -> None:
    box = tables(tmp_path / "t")
    one = _draft("a", "mini", np.ones(9, np.float32), "s")
    other = Draft(**{**one.__dict__, "id": "b", "label": "door"})
    with pytest.raises(DataError, match="'s' is in two classes"):
        splits.assign([one, other], box)


def _draft(name: str, package: str, samples: np.ndarray, source: str) -> Draft:
    return Draft(name, "dog barking", "event", source, package, "1", "p", name, samples, b"")


def test_the_same_recording_in_two_packages_becomes_one_source(tmp_path: Path) -> None:
    box = tables(tmp_path / "t")
    rng = np.random.default_rng(1)
    bark = np.convolve(rng.standard_normal(24_000), np.hanning(40), "same").astype(np.float32)
    bark = (bark * np.abs(np.sin(np.arange(24_000) / 2000))).astype(np.float32)
    copy = (0.4 * bark[300:]).astype(np.float32)
    other = (rng.standard_normal(24_000) * np.linspace(1, 0, 24_000)).astype(np.float32)
    kept, dropped = splits.merge_duplicates(
        [_draft("a", "mini", bark, "s1"), _draft("b", "mini", copy, "s2"), _draft("c", "mini", other, "s3")],
        box,
    )
    assert [draft.source for draft in kept] == ["s1", "s1", "s3"]
    assert dropped == {}
    kept, dropped = splits.merge_duplicates(
        [_draft("a", "mini", bark, "s1"), _draft("b", "away", copy, "s2")], box
    )
    assert dropped == {"b": "a"}


def test_opus_bytes_are_the_same_every_time_and_decode() -> None:
    samples = (0.3 * np.sin(np.arange(20_000) / 9)).astype(np.float32)
    data = to_opus(samples)
    assert data == to_opus(samples)
    back, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert (len(back), rate) == (20_000, RATE_HZ)
    error = back - samples
    assert float((error**2).mean()) < 0.01 * float((samples**2).mean())


def test_renumbering_computes_the_checksum_of_the_original_writer() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(9000, np.float32), RATE_HZ, format="OGG", subtype="OPUS")
    data = buffer.getvalue()
    (serial,) = struct.unpack_from("<I", data, 14)
    assert renumber_ogg(data, serial=serial) == data
    assert renumber_ogg(data, serial=serial ^ 1) != data


def test_a_damaged_ogg_is_refused() -> None:
    with pytest.raises(DataError, match="byte 0"):
        renumber_ogg(b"OggX" + bytes(60), serial=1)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"OggS" + bytes(50)])
def test_a_broken_recording_is_an_audio_error(data: bytes) -> None:
    with pytest.raises(AudioError, match=r"x\.wav"):
        decode("x.wav", data)


def test_tidy_keeps_the_peak_and_cuts_the_loudest_part() -> None:
    samples = np.zeros(5 * RATE_HZ, np.float32)
    samples[RATE_HZ : 4 * RATE_HZ] = 0.1 * np.sin(np.arange(3 * RATE_HZ) / 5)
    samples[3 * RATE_HZ : 4 * RATE_HZ] *= 5
    cut = tidy(samples, 1.0)
    assert len(cut) == RATE_HZ
    assert np.abs(cut).max() == pytest.approx(0.5, abs=0.01)
    assert np.abs(tidy(4 * samples, 9.0)).max() == pytest.approx(0.98)


def test_trim_of_silence_is_empty() -> None:
    assert len(trim(np.zeros(1000, np.float32))) == 0
    assert len(tidy(np.zeros(0, np.float32), 1.0)) == 0


def test_a_sequence_repeats_its_takes_at_its_rhythm() -> None:
    take = np.concatenate([np.ones(50), np.zeros(50)]).astype(np.float32)
    out = sequence([take], np.random.default_rng(0), (0.5, 0.5), 6.0)
    onsets = np.flatnonzero((np.abs(out[1:]) > 0.2) & (np.abs(out[:-1]) < 0.2)) / RATE_HZ
    gaps = np.diff(onsets)
    assert len(out) <= 6 * RATE_HZ
    assert len(onsets) >= 5
    assert np.all(np.abs(gaps / 0.25 - np.round(gaps / 0.25)) < 0.35)


@pytest.mark.parametrize("seed", range(12))
def test_a_performance_fits_the_instrument_and_the_time(seed: int) -> None:
    score = scores()[seed]
    strokes = perform(score, np.random.default_rng(seed), pitch_range=(55, 79), voices=2, seconds=9.0)
    assert strokes
    for stroke in strokes:
        assert 0 <= stroke.start_s < stroke.end_s <= 9.0
        assert 55 <= stroke.pitch <= 79
        assert 1 <= stroke.velocity <= 127


def test_a_picture_is_scaled_onto_white() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (448, 100), (0, 0, 0, 0)).save(buffer, "PNG")
    with Image.open(io.BytesIO(scale_picture("x.png", buffer.getvalue()))) as picture:
        assert picture.size == (224, 50)
        assert picture.getpixel((3, 3)) == (255, 255, 255)
    with pytest.raises(DataError, match=r"x\.png"):
        scale_picture("x.png", b"no picture")


def test_packaged_lists_are_those_of_the_plans() -> None:
    plans = (*PLANS, *caption_plans(()))
    names = [plan.name for plan in plans]
    assert sorted(names) == [name for name in list_names() if name.startswith("soundbox-")]
    for plan in plans:
        assert len(read_list(list_path(plan.name))) == plan.count


def test_packaged_lists_never_set_confusable_classes_against_each_other() -> None:
    curated = taxonomy.load()
    for name in [plan.name for plan in PLANS]:
        for spec in read_list(list_path(name)):
            assert spec.query in curated.classes
