"""`auralign enhance` as a user runs it, with the classic enhancer."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign import cli
from auralign.audio.writer import AudioWriter

CLASSIC = ("--model", "log-mmse")


@pytest.fixture
def noisy(tmp_path, speech, noise) -> Path:
    path = tmp_path / "noisy.wav"
    both = np.concatenate([speech, speech])[:, :24_000] + noise(2, 24_000) * 1.5
    soundfile.write(path, both.T, 48_000, subtype="PCM_16")
    return path


def pipe_in(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))


def test_the_list_of_commands_names_it(capsys):
    assert cli.main(["--help"]) == 0
    assert "\n  enhance " in capsys.readouterr().out


def test_results_are_named_on_stdout(noisy, tmp_path, capsys):
    out = tmp_path / "o"
    assert cli.main(["enhance", str(noisy), "-o", str(out), "--residual", *CLASSIC]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(out / "noisy" / "enhanced.wav"),
        str(out / "noisy" / "residual.wav"),
    ]
    before, after, rest = (
        soundfile.read(path)[0]
        for path in (noisy, *(out / "noisy" / f"{n}.wav" for n in ("enhanced", "residual")))
    )
    np.testing.assert_allclose(after + rest, before, atol=2.1 / 32768)
    assert np.square(rest).mean() > 0.05 * np.square(before).mean()


def test_without_residual_one_file_and_a_record_are_written(noisy, tmp_path):
    assert cli.main(["enhance", str(noisy), "-o", str(tmp_path / "o"), *CLASSIC]) == 0
    assert {path.name for path in (tmp_path / "o" / "noisy").iterdir()} == {"enhanced.wav", "manifest.json"}
    found = json.loads((tmp_path / "o" / "noisy" / "manifest.json").read_text())
    assert found["task"] == "enhancement"
    assert found["scores"]["enhanced"]["level_change_db"] < -0.3
    assert found["settings"]["options"]["strength"] == 1.0
    assert (
        "Above 8 kHz, which the model does not hear, the recording is attenuated like 4 to 8 kHz"
        in found["about"]
    )
    assert "same gain" in found["about"]


def test_the_report_plays_before_after_and_residual(noisy, tmp_path, capsys):
    out = tmp_path / "o"
    assert cli.main(["enhance", str(noisy), "-o", str(out), "--report", "--upper", "drop", *CLASSIC]) == 0
    page = out / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    text = page.read_text()
    assert text.count("<audio controls") == 3
    for said in ("Enhanced: o", "1 before", "2 enhanced", "3 residual", "the recording is removed"):
        assert said in text


def test_every_option_reaches_the_manifest_and_changes_make_it_again(noisy, tmp_path, capsys):
    words = ["enhance", str(noisy), "-o", str(tmp_path / "o"), *CLASSIC]
    more = ["--strength", "0.5", "--steps", "3", "--seed", "7", "--upper", "pass", "--channels", "separate"]
    more += ["--format", "flac", "--rate", "16000", "--level", "peak"]
    assert cli.main([*words, *more]) == 0
    found = json.loads((tmp_path / "o" / "noisy" / "manifest.json").read_text())
    assert found["settings"]["options"] == {
        "level": "peak",
        "format": "flac",
        "rate_hz": 16_000,
        "steps": 3,
        "seed": 7,
        "strength": 0.5,
        "upper": "pass",
        "channels": "separate",
    }
    assert "6.0 dB lower" in found["about"]
    assert cli.main([*words, *more]) == 0
    assert "already enhanced" in capsys.readouterr().err
    assert cli.main([*words, *more, "--seed", "8"]) == 0
    assert "already enhanced" not in capsys.readouterr().err


def test_patterns_folders_and_json(noisy, tmp_path, capsys):
    (tmp_path / "takes").mkdir()
    for name in ("a.wav", "b.wav"):
        (tmp_path / "takes" / name).write_bytes(noisy.read_bytes())
    words = [
        "enhance",
        str(tmp_path / "takes" / "*.wav"),
        str(noisy),
        "-o",
        str(tmp_path / "o"),
        "--json",
        *CLASSIC,
    ]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(one["input"]).name for one in found] == ["a.wav", "b.wav", "noisy.wav"]
    assert all(one["ok"] and len(one["outputs"]) == 1 for one in found)


def test_one_result_can_be_named_as_a_file(noisy, tmp_path, capsys):
    target = tmp_path / "o" / "clean {1}.flac"
    assert cli.main(["enhance", str(noisy), "-o", str(target), *CLASSIC]) == 0
    assert capsys.readouterr().out.splitlines() == [str(target)]
    assert soundfile.info(target).format == "FLAC"
    assert {path.name for path in target.parent.iterdir()} == {target.name, "noisy.manifest.json"}
    assert cli.main(["enhance", str(noisy), "other.wav", "-o", str(target), *CLASSIC]) == 2
    assert "several results" in capsys.readouterr().err
    before = noisy.read_bytes()
    assert cli.main(["enhance", str(noisy), "-o", str(noisy), *CLASSIC]) == 2
    assert "would replace an input" in capsys.readouterr().err
    assert noisy.read_bytes() == before


def test_a_dry_run_writes_nothing(noisy, tmp_path, capsys):
    assert cli.main(["enhance", str(noisy), "-o", str(tmp_path / "o"), "--dry-run", *CLASSIC]) == 0
    assert "0.5 s, 48000 Hz, 2 channels" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strength", "1.5"], "strength 1.5"),
        (["--steps", "-1"], "negative"),
        (["--steps", "9999"], "9999 steps"),
        (["--seed", "-1"], "negative"),
        (["--rate", "-5"], "negative"),
        (["--format", "xyz"], "cannot be written as 'xyz'"),
        (["--level", "loud"], "no level policy"),
        (["--name", "../{stem}.{ext}"], "lies outside"),
        (["--device", "abacus"], "unknown device"),
        (["--model", "no-such-model"], "no-such-model"),
        (["-o", "-", "--residual"], "standard output"),
        (["-o", "-", "--report"], "standard output"),
        (["-o", "a.wav", "--residual"], "several results"),
    ],
)
def test_wrong_requests_exit_2_and_say_why(words, said, noisy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["enhance", str(noisy), *CLASSIC, *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_words_that_are_no_choice_exit_2(noisy, capsys):
    for words in (["--upper", "shine"], ["--channels", "both"], ["--strenght", "1"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["enhance", str(noisy), *words])
        assert stopped.value.code == 2


def test_a_folder_that_holds_no_enhancer_exits_3(noisy, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    assert (
        cli.main(["enhance", str(noisy), "--model", str(tmp_path / "model"), "-o", str(tmp_path / "o")]) == 3
    )
    assert str(tmp_path / "model") in capsys.readouterr().err


def test_a_pipe_goes_in_and_wav_comes_out(noisy, monkeypatch):
    pipe_in(monkeypatch, noisy.read_bytes())
    out = io.BytesIO()
    monkeypatch.setattr(
        sys, "stdout", types.SimpleNamespace(buffer=out, isatty=lambda: False, flush=lambda: None)
    )
    assert cli.main(["enhance", "-", "-o", "-", "--strength", "0", *CLASSIC]) == 0
    out.seek(0)
    samples, rate_hz = soundfile.read(out)
    assert rate_hz == 48_000
    np.testing.assert_array_equal(samples, soundfile.read(noisy)[0])


def test_what_comes_from_a_pipe_is_called_standard_input(tmp_path, capsys, monkeypatch):
    pipe_in(monkeypatch, b"no sound")
    assert cli.main(["enhance", "-", "-o", str(tmp_path / "p"), *CLASSIC]) == 1
    shown = capsys.readouterr().err
    assert "standard input: " in shown
    assert "auralign-" not in shown


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)]
)
@pytest.mark.parametrize("place", ["write", "close"])
def test_an_interruption_or_a_full_disk_leaves_nothing(
    error, code, place, noisy, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(AudioWriter, place, fail)
    assert cli.main(["enhance", str(noisy), "-o", str(tmp_path / "o"), "--residual", *CLASSIC]) == code
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_exits_130_and_leaves_no_half_files(number, noise, tmp_path):
    soundfile.write(tmp_path / "long.wav", noise(2, 16_000 * 600).T, 16_000)
    out = tmp_path / "o"
    words = ["enhance", str(tmp_path / "long.wav"), "-o", str(out), *CLASSIC]
    process = subprocess.Popen([sys.executable, "-m", "auralign", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.rglob("*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert not out.exists()
