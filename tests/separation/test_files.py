from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.audio.io import read
from auralign.audio.writer import AudioWriter
from auralign.batch.names import FORMATS, RESIDUAL, plan
from auralign.errors import AudioError, UsageError
from auralign.separation import Query, SeparateOptions, Separator

RATE_HZ = 16000


@pytest.fixture
def half(answering) -> Separator:
    """Takes half of everything, whatever is asked; no encoder is needed for its queries."""
    separator = Separator(answering(0.5), "half")
    return separator


@pytest.fixture(autouse=True)
def _quick_queries(monkeypatch):
    """Queries as random vectors: these tests are about files, and need no encoder."""
    import torch

    from auralign.models.separator import QueryVector

    monkeypatch.setattr(
        "auralign.separation.session.encode",
        lambda model, query: QueryVector(torch.ones(256) / 16, model.space),
    )


@pytest.fixture
def mix(tmp_path, noise) -> Path:
    path = tmp_path / "mix.wav"
    soundfile.write(path, noise(2, 6000).T, RATE_HZ, subtype="PCM_16")
    return path


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def sums(outcome) -> np.ndarray:
    return np.sum([soundfile.read(path, always_2d=True)[0] for path in outcome.outputs], axis=0)


def test_stems_have_the_recordings_rate_channels_length_and_bits_and_add_up(half, mix, tmp_path):
    (outcome,) = half.separate_files(
        [str(mix)], ["violin", "dog barking"], SeparateOptions(out=tmp_path / "o")
    )
    assert outcome.ok
    assert [path.name for path in outcome.outputs] == ["violin.wav", "dog-barking.wav", "residual.wav"]
    for path in outcome.outputs:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (RATE_HZ, 2, 6000, "PCM_16")
    np.testing.assert_allclose(sums(outcome), soundfile.read(mix)[0], atol=2.1 / 32768)
    assert everything(tmp_path / "o") == {
        "mix",
        "mix/violin.wav",
        "mix/dog-barking.wav",
        "mix/residual.wav",
        "mix/manifest.json",
    }


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_every_format_that_is_offered_can_be_written(suffix, half, mix, tmp_path):
    rate_hz = 48000 if suffix == "opus" else None
    options = SeparateOptions(out=tmp_path / "o", format=suffix, rate_hz=rate_hz)
    (outcome,) = half.separate_files([str(mix)], ["violin"], options)
    assert outcome.ok, outcome.error
    assert all(path.suffix == f".{suffix}" for path in outcome.outputs)
    sound = read(outcome.outputs[0])
    assert sound.channels == 2
    assert sound.rate_hz == (rate_hz or RATE_HZ)
    assert abs(sound.duration_s - 6000 / RATE_HZ) < (0.15 if suffix == "mp3" else 0.01)


def test_the_input_format_is_kept_where_it_loses_nothing(half, tmp_path, noise):
    for name, subtype, kept in (
        ("a.flac", "PCM_24", ".flac"),
        ("b.aiff", "PCM_16", ".aiff"),
        ("c.ogg", "VORBIS", ".wav"),
        ("d", "PCM_16", ".wav"),
    ):
        kind = {"d": "WAV"}.get(name)
        soundfile.write(tmp_path / name, noise(1, 3000).T, RATE_HZ, subtype=subtype, format=kind)
        (outcome,) = half.separate_files(
            [str(tmp_path / name)], ["violin"], SeparateOptions(out=tmp_path / "o")
        )
        assert [path.suffix for path in outcome.outputs] == [kept, kept]


def test_another_rate_keeps_the_duration_and_the_sum(half, mix, tmp_path):
    (outcome,) = half.separate_files([mix], ["violin"], SeparateOptions(out=tmp_path / "o", rate_hz=44100))
    info = soundfile.info(outcome.outputs[0])
    assert (info.samplerate, info.frames) == (44100, round(6000 * 44100 / RATE_HZ))
    expected = read(mix, rate_hz=44100).samples.T
    np.testing.assert_allclose(sums(outcome), expected, atol=3 / 32768)


@pytest.mark.parametrize(("level", "most"), [("peak", 10 ** (-1 / 20)), ("peak:-6", 10 ** (-6 / 20))])
def test_a_level_policy_is_one_gain_for_all_stems(level, most, answering, mix, tmp_path):
    options = SeparateOptions(out=tmp_path / "o", level=level, format="wav")
    (outcome,) = Separator(answering(0.3), "third").separate_files([mix], ["violin"], options)
    peaks = [np.abs(soundfile.read(path)[0]).max() for path in outcome.outputs]
    assert max(peaks) == pytest.approx(most, rel=1e-3)
    gain = 10 ** (json.loads((tmp_path / "o/mix/manifest.json").read_text())["gain_db"] / 20)
    np.testing.assert_allclose(sums(outcome), gain * soundfile.read(mix)[0], atol=2e-4)
    assert "gain" in outcome.note


def test_a_container_that_would_clip_gets_one_gain_on_all_stems(answering, tmp_path, noise):
    loud = noise(1, 4000) * 40
    soundfile.write(tmp_path / "loud.wav", loud.T, RATE_HZ, subtype="FLOAT")
    options = SeparateOptions(out=tmp_path / "o", format="flac")
    (outcome,) = Separator(answering(0.3), "third").separate_files(
        [tmp_path / "loud.wav"], ["violin"], options
    )
    total = sums(outcome)[:, 0]
    gain = float(total @ loud[0] / (loud[0] @ loud[0]))
    assert gain < 0.9
    np.testing.assert_allclose(total, gain * loud[0], atol=1e-4)
    assert "on all stems, because FLAC would clip" in outcome.note


def test_a_container_that_holds_it_keeps_the_level(half, tmp_path, noise):
    loud = noise(1, 4000) * 40
    soundfile.write(tmp_path / "loud.wav", loud.T, RATE_HZ, subtype="FLOAT")
    (outcome,) = half.separate_files([tmp_path / "loud.wav"], ["violin"], SeparateOptions(out=tmp_path / "o"))
    np.testing.assert_allclose(sums(outcome)[:, 0], loud[0], atol=1e-5)


def test_inputs_of_one_name_get_folders_of_their_own(half, tmp_path, noise):
    inputs = []
    for n, place in enumerate(("a/mix.wav", "b/mix.wav", "b/mix.flac", "Mix!.wav")):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise(1, 2000, seed=n).T, RATE_HZ)
        inputs.append(str(path))
    outcomes = half.separate_files(inputs, ["violin"], SeparateOptions(out=tmp_path / "o"))
    assert [one.ok for one in outcomes] == [True] * 4
    paths = [path for one in outcomes for path in one.outputs]
    assert len(set(paths)) == 8
    for name, outcome in zip(inputs, outcomes, strict=True):
        np.testing.assert_allclose(sums(outcome), soundfile.read(name, always_2d=True)[0], atol=3 / 32768)


def test_the_same_input_twice_is_separated_twice_under_two_names(half, mix, tmp_path):
    outcomes = half.separate_files([mix, mix], ["violin"], SeparateOptions(out=tmp_path / "o"))
    assert len({path for one in outcomes for path in one.outputs}) == 4


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("../{track}-{stem}.{ext}", "lies outside"),
        ("/etc/{stem}.{ext}", "lies outside"),
        ("{track}/../../{stem}.{ext}", "lies outside"),
        ("{track}.{ext}", "two files would be written"),
        ("{stem}.{ext}", "two files would be written"),
        ("{nothing}/{stem}.{ext}", "cannot be filled"),
        ("{0}.{ext}", "cannot be filled"),
        ("{track.nothing}.{ext}", "cannot be filled"),
        ("{track", "cannot be filled"),
        ("{track}/{stem}", "no sound file"),
        ("{track}/{stem}.exe", "no sound file"),
        ("manifest.json", "no sound file"),
    ],
)
def test_templates_that_escape_or_collide_are_refused_before_any_work(template, words, half, mix, tmp_path):
    other = tmp_path / "other.wav"
    other.write_bytes(mix.read_bytes())
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=words):
        half.separate_files([mix, other], ["violin"], SeparateOptions(out=tmp_path / "o", name=template))
    assert everything(tmp_path) == before


def test_an_input_is_never_replaced(half, tmp_path, noise):
    path = tmp_path / "violin.wav"
    soundfile.write(path, noise(1, 2000).T, RATE_HZ)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="would replace an input"):
        half.separate_files([path], ["violin"], SeparateOptions(out=tmp_path, name="{stem}.{ext}"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": "xyz"}, "cannot be written as 'xyz'"),
        ({"level": "loud"}, "no level policy"),
        ({"rate_hz": 0}, "sample rate 0"),
        ({"rate_hz": 10**9}, "sample rate"),
    ],
)
def test_wrong_options_are_refused_before_any_work(changed, words, half, mix, tmp_path):
    with pytest.raises(UsageError, match=words):
        half.separate_files([mix], ["violin"], SeparateOptions(out=tmp_path / "o", **changed))
    assert not (tmp_path / "o").exists()


def test_an_output_folder_that_is_a_file_is_refused_before_any_work(half, mix, tmp_path):
    (tmp_path / "o").write_text("mine")
    for out in (tmp_path / "o", tmp_path / "o" / "below"):
        with pytest.raises(UsageError, match="is a file"):
            half.separate_files([mix], ["violin"], SeparateOptions(out=out))
    assert (tmp_path / "o").read_text() == "mine"


def test_one_bad_file_does_not_stop_the_others_and_leaves_nothing(half, mix, tmp_path):
    (tmp_path / "words.wav").write_text("these are words")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "cut.wav").write_bytes(mix.read_bytes()[:9000])
    names = ["words.wav", "empty.wav", "gone.wav", "cut.wav", "mix.wav"]
    outcomes = half.separate_files(
        [str(tmp_path / n) for n in names], ["violin"], SeparateOptions(out=tmp_path / "o")
    )
    assert [one.ok for one in outcomes] == [False] * 4 + [True]
    for name, outcome in zip(names[:4], outcomes, strict=False):
        assert isinstance(outcome.error, AudioError)
        assert name in str(outcome.error)
        assert outcome.outputs == ()
    assert {path.split("/")[0] for path in everything(tmp_path / "o")} == {"mix"}


def test_finished_files_are_skipped_and_their_presence_is_still_told(half, mix, tmp_path):
    options = SeparateOptions(out=tmp_path / "o")
    (first,) = half.separate_files([mix], ["violin"], options)
    times = {path: path.stat().st_mtime_ns for path in first.outputs}
    (second,) = half.separate_files([mix], ["violin"], options)
    assert second.note == "already separated"
    assert second.presence == first.presence
    assert {path: path.stat().st_mtime_ns for path in second.outputs} == times
    (third,) = half.separate_files([mix], ["violin"], SeparateOptions(out=tmp_path / "o", overwrite=True))
    assert third.note != "already separated"


def test_anything_that_changed_is_done_again(half, answering, mix, tmp_path, noise):
    options = SeparateOptions(out=tmp_path / "o")

    def again(separator=half, query="violin", options=options) -> bool:
        (outcome,) = separator.separate_files([mix], [query], options)
        return outcome.note != "already separated"

    assert again()
    assert not again()
    assert again(query=Query(texts=("violin",), exclude=("dog",), name="violin"))
    assert again(options=SeparateOptions(out=tmp_path / "o", level="peak"))
    assert again()
    assert again(separator=Separator(answering(0.25), "other"))
    assert again()
    (tmp_path / "o/mix/violin.wav").write_bytes(b"cut")
    assert again()
    (tmp_path / "o/mix/residual.wav").unlink()
    assert again()
    (tmp_path / "o/mix/manifest.json").write_text("[]")
    assert again()
    soundfile.write(mix, noise(2, 5000, seed=5).T, RATE_HZ)
    assert again()
    assert not again()


def test_a_model_trained_further_under_the_same_name_separates_again(tiny, mix, tmp_path):
    import copy

    options = SeparateOptions(out=tmp_path / "o")
    Separator(tiny, "same").separate_files([mix], ["violin"], options)
    assert Separator(tiny, "same").separate_files([mix], ["violin"], options)[0].note == "already separated"
    further = copy.deepcopy(tiny)
    further.net.net.head.filters.bias.data += 0.5
    (outcome,) = Separator(further, "same").separate_files([mix], ["violin"], options)
    assert outcome.note != "already separated"


def test_a_picture_that_changed_under_its_name_is_another_query(half, mix, tmp_path):
    picture = tmp_path / "what.png"
    picture.write_bytes(b"one")
    options = SeparateOptions(out=tmp_path / "o")
    query = Query(images=(picture,))
    half.separate_files([mix], [query], options)
    assert half.separate_files([mix], [query], options)[0].note == "already separated"
    picture.write_bytes(b"two")
    assert half.separate_files([mix], [query], options)[0].note != "already separated"


def test_stems_of_another_recording_are_not_replaced(half, tmp_path, noise):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        soundfile.write(tmp_path / place / "mix.wav", noise(1, 2000, seed=ord(place)).T, RATE_HZ)
    options = SeparateOptions(out=tmp_path / "o")
    assert half.separate_files([tmp_path / "a/mix.wav"], ["violin"], options)[0].ok
    kept = (tmp_path / "o/mix/violin.wav").read_bytes()
    (refused,) = half.separate_files([tmp_path / "b/mix.wav"], ["violin"], options)
    assert not refused.ok
    assert "holds the stems of" in str(refused.error)
    assert (tmp_path / "o/mix/violin.wav").read_bytes() == kept
    forced = SeparateOptions(out=tmp_path / "o", overwrite=True)
    assert half.separate_files([tmp_path / "b/mix.wav"], ["violin"], forced)[0].ok


def test_a_dry_run_touches_nothing(half, mix, tmp_path, monkeypatch):
    monkeypatch.setattr("auralign.separation.session.encode", lambda *_: pytest.fail("a query was encoded"))
    before = everything(tmp_path)
    options = SeparateOptions(out=tmp_path / "o", dry_run=True)
    good, bad = half.separate_files([mix, tmp_path / "gone.wav"], ["violin"], options)
    assert everything(tmp_path) == before
    assert good.ok
    assert "0.4 s, 16000 Hz, 2 channels" in good.note
    assert [path.name for path in good.outputs] == ["violin.wav", "residual.wav"]
    assert not bad.ok


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("place", ["write", "close", "manifest"])
def test_an_interruption_anywhere_leaves_no_file(error, place, half, mix, tmp_path, monkeypatch):
    calls = 0
    target = "auralign.batch.manifest.digest_of" if place == "manifest" else None
    original = None if target else getattr(AudioWriter, place)

    def fail(*arguments, **options):
        nonlocal calls
        calls += 1
        if place == "manifest" or calls == 2:
            raise error
        return original(*arguments, **options)

    if target:
        monkeypatch.setattr(target, fail)
    else:
        monkeypatch.setattr(AudioWriter, place, fail)
    before = everything(tmp_path)
    options = SeparateOptions(out=tmp_path / "new" / "o")
    if isinstance(error, OSError):
        (outcome,) = half.separate_files([mix], ["violin"], options)
        assert "No space left" in str(outcome.error)
        assert "mix.wav" in str(outcome.error)
    else:
        with pytest.raises(error):
            half.separate_files([mix], ["violin"], options)
    assert everything(tmp_path) == before


def test_after_an_interrupted_overwrite_nothing_old_passes_for_new(half, mix, tmp_path, monkeypatch):
    options = SeparateOptions(out=tmp_path / "o")
    half.separate_files([mix], ["violin"], options)
    with monkeypatch.context() as patch:
        closed = AudioWriter.close

        def stop(writer, **gain):
            closed(writer, **gain)
            raise KeyboardInterrupt

        patch.setattr(AudioWriter, "close", stop)
        patch.setattr(  # as when the power fails: what is there stays
            "auralign.batch.files._undo", lambda writers, _: [one.discard() for one in writers]
        )
        with pytest.raises(KeyboardInterrupt):
            half.separate_files([mix], ["violin"], SeparateOptions(out=tmp_path / "o", level="peak"))
    (outcome,) = half.separate_files([mix], ["violin"], options)
    assert outcome.note != "already separated"
    np.testing.assert_allclose(sums(outcome), soundfile.read(mix)[0], atol=2.1 / 32768)


def test_errors_of_the_progress_callback_are_the_callers(half, mix, tmp_path):
    def stop(done, total, stage):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half.separate_files([mix], ["violin"], SeparateOptions(out=tmp_path / "o"), on_progress=stop)
    assert not (tmp_path / "o").exists()


def test_progress_goes_from_nothing_to_all_files(half, mix, tmp_path, noise):
    other = tmp_path / "other.wav"
    soundfile.write(other, noise(1, 40_000).T, RATE_HZ)
    seen = []
    half.separate_files(
        [mix, other],
        ["violin"],
        SeparateOptions(out=tmp_path / "o"),
        on_progress=lambda *now: seen.append(now),
    )
    shares = [done / total for done, total, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {stage for *_, stage in seen} == {"mix.wav", "other.wav"}


def test_the_manifest_tells_everything_and_names_paths_from_its_own_place(half, mix, tmp_path):
    half.separate_files(
        [mix], [Query(texts=("violin",), exclude=("dog",))], SeparateOptions(out=tmp_path / "o")
    )
    folder = tmp_path / "o" / "mix"
    found = json.loads((folder / "manifest.json").read_text())
    assert (folder / found["input"]).resolve() == mix.resolve()
    assert set(found["stems"]) == {"violin-not-dog", RESIDUAL}
    assert all((folder / path).is_file() for path in found["stems"].values())
    assert found["rate_hz"] == RATE_HZ
    assert found["channels"] == 2
    assert found["gain_db"] == 0.0
    assert found["scores"]["violin-not-dog"]["presence"] == 1.0
    assert found["presence_timeline"]["start_s"] == [0.0]
    assert found["settings"]["model"]["name"] == "half"
    assert found["settings"]["queries"]["violin-not-dog"]["exclude"] == ["dog"]
    assert found["written"][RESIDUAL]["subtype"] == "PCM_16"
    assert found["seconds"] > 0
    assert len(found["input_sha256"]) == 64


def test_manifests_without_a_folder_of_their_own_are_named_after_the_track(half, mix, tmp_path):
    options = SeparateOptions(out=tmp_path / "o", name="{track}-{stem}.{ext}")
    half.separate_files([mix], ["violin"], options)
    assert everything(tmp_path / "o") == {"mix-violin.wav", "mix-residual.wav", "mix.manifest.json"}
    assert half.separate_files([mix], ["violin"], options)[0].note == "already separated"


def test_a_silent_file_gives_silence_the_input_and_says_so(half, tmp_path):
    soundfile.write(tmp_path / "quiet.wav", np.zeros((3000, 2), np.float32), RATE_HZ)
    (outcome,) = half.separate_files(
        [tmp_path / "quiet.wav"], ["violin"], SeparateOptions(out=tmp_path / "o")
    )
    assert outcome.ok
    assert outcome.presence == {"violin": 0.0}
    assert "the recording is silent" in outcome.note
    for path in outcome.outputs:
        assert soundfile.info(path).frames == 3000
        assert not soundfile.read(path)[0].any()


def test_a_sound_that_is_probably_absent_is_noted(answering, mix, tmp_path):
    absent = Separator(answering(0.5, presence=0.1), "absent")
    (outcome,) = absent.separate_files([mix], ["violin"], SeparateOptions(out=tmp_path / "o"))
    assert outcome.presence["violin"] == pytest.approx(0.1)
    assert "violin: probably not in this recording (presence 0.10)" in outcome.note
    present = Separator(answering(0.5, presence=0.9), "present")
    assert present.separate_files([mix], ["violin"], SeparateOptions(out=tmp_path / "p"))[0].note == ""


@pytest.mark.parametrize("name", ["Größe und Ärger.wav", "猫の声.wav", "a b\tc.wav", "-dash.wav", "🎻.wav"])
def test_names_in_any_script_work(name, half, tmp_path, noise):
    path = tmp_path / name
    soundfile.write(path, noise(1, 2000).T, RATE_HZ)
    (outcome,) = half.separate_files([path], ["violin"], SeparateOptions(out=tmp_path / "ö"))
    assert outcome.ok
    assert all(out.is_file() for out in outcome.outputs)


def test_names_that_are_no_unicode_work(half, tmp_path, noise):
    good = tmp_path / "good.wav"
    soundfile.write(good, noise(1, 2000).T, RATE_HZ)
    raw = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    try:
        os.rename(good, raw)
    except OSError:
        pytest.skip("the file system knows Unicode names only")
    (outcome,) = half.separate_files([os.fsdecode(raw)], ["violin"], SeparateOptions(out=tmp_path / "o"))
    assert outcome.ok
    again = half.separate_files([os.fsdecode(raw)], ["violin"], SeparateOptions(out=tmp_path / "o"))
    assert again[0].note == "already separated"


@pytest.mark.parametrize("text", ["x" * 3000, "猫" * 500, "🎻 " * 300, "../../etc/passwd", "a/b\\c:d*?"])
def test_any_query_text_makes_a_file_name(text, half, mix, tmp_path):
    (outcome,) = half.separate_files([mix], [text], SeparateOptions(out=tmp_path / "o"))
    assert outcome.ok, outcome.error
    assert outcome.outputs[0].parent == tmp_path / "o" / "mix"
    assert len(os.fsencode(outcome.outputs[0].name)) <= 170


def test_queries_of_one_name_get_names_of_their_own(half, mix, tmp_path):
    asked = [Query(texts=("violin",)), Query(images=(mix.with_name("violin.png"),))]
    mix.with_name("violin.png").write_bytes(b"p")
    (outcome,) = half.separate_files([mix], asked, SeparateOptions(out=tmp_path / "o"))
    assert [path.stem for path in outcome.outputs] == ["violin", "violin-image", "residual"]
    with pytest.raises(UsageError, match="several stems would be called 'violin'"):
        half.separate_files([mix], ["violin", "violin"], SeparateOptions(out=tmp_path / "o"))


def test_plans_name_paths_for_every_stem_of_every_input(tmp_path):
    jobs = plan(["x/a.flac", "b.mp3"], ["dog", "cat", RESIDUAL], SeparateOptions(out=tmp_path))
    assert [job.track for job in jobs] == ["a", "b"]
    assert jobs[0].paths == {stem: tmp_path / "a" / f"{stem}.flac" for stem in ("dog", "cat", RESIDUAL)}
    assert jobs[1].paths[RESIDUAL] == tmp_path / "b" / "residual.wav"
    assert jobs[1].manifest == tmp_path / "b" / "manifest.json"
