"""`auralign separate` as a user runs it, with a model that takes half of everything."""

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
import torch

from auralign import cli
from auralign.audio.writer import AudioWriter
from auralign.models.separator import QueryVector
from auralign.separation import Separator


@pytest.fixture(autouse=True)
def _half(monkeypatch, answering):
    separator = Separator(answering(0.5, presence=0.3), "half")
    monkeypatch.setattr(Separator, "load", classmethod(lambda cls, name, device="auto": separator))
    monkeypatch.setattr(
        "auralign.separation.session.encode",
        lambda model, query: QueryVector(torch.ones(256) / 16, model.space),
    )


@pytest.fixture
def mix(tmp_path, noise) -> Path:
    path = tmp_path / "mix.wav"
    soundfile.write(path, noise(2, 6000).T, 16000, subtype="PCM_16")
    return path


def pipe_in(monkeypatch, data: bytes) -> None:
    stdin = types.SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)


def test_stems_are_named_on_stdout_and_notes_on_stderr(mix, tmp_path, capsys):
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", str(tmp_path / "o")]) == 0
    shown = capsys.readouterr()
    folder = tmp_path / "o" / "mix"
    assert shown.out.splitlines() == [str(folder / "violin.wav"), str(folder / "residual.wav")]
    assert f"{mix}: violin: probably not in this recording (presence 0.30)" in shown.err
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", str(tmp_path / "o"), "--quiet"]) == 0
    assert "already" not in capsys.readouterr().err


def test_the_report_of_real_stems_is_one_page(mix, tmp_path, capsys):
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", str(tmp_path / "o"), "--report"]) == 0
    page = tmp_path / "o" / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    text = page.read_text()
    assert "violin" in text
    assert "residual" in text
    assert "mix" in text


def test_a_report_that_fails_does_not_hide_the_stems(mix, tmp_path, capsys):
    words = ["separate", str(mix), "-q", "violin", "-o", str(tmp_path / "o"), "--report"]
    (tmp_path / "o" / "old").mkdir(parents=True)
    (tmp_path / "o" / "old" / "manifest.json").write_text("no json")
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    assert str(tmp_path / "o" / "mix" / "violin.wav") in shown.out
    assert "old" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to look for"),
        (["-q", ""], "empty"),
        (["-q", "violin", "--format", "xyz"], "cannot be written as 'xyz'"),
        (["-q", "violin", "--level", "loud"], "no level policy"),
        (["-q", "violin", "--rate", "-5"], "negative"),
        (["-q", "violin", "--name", "../{stem}.{ext}"], "lies outside"),
        (["-q", "violin", "--image", "gone.png"], "gone.png"),
        (["-q", "violin", "-o", "-", "--report"], "standard output"),
        (["-q", "violin", "-q", "violin"], "several stems"),
    ],
)
def test_wrong_requests_exit_2_and_say_why(words, said, mix, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["separate", str(mix), *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_flag_exits_2_and_names_the_nearest(mix, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["separate", str(mix), "-q", "violin", "--fromat", "wav"])
    assert stopped.value.code == 2
    assert "--format" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_exits_2(mix, tmp_path, capsys):
    (tmp_path / "o").write_text("mine")
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", str(tmp_path / "o")]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the root user may write everywhere")
def test_an_output_folder_that_is_read_only_exits_1(mix, tmp_path, capsys):
    folder = tmp_path / "o"
    folder.mkdir(mode=0o500)
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", str(folder)]) == 1
    assert "cannot write here" in capsys.readouterr().err


def test_a_full_disk_exits_1_and_leaves_nothing(mix, tmp_path, capsys, monkeypatch):
    def full(writer, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AudioWriter, "write", full)
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", str(tmp_path / "o")]) == 1
    shown = capsys.readouterr().err
    assert "No space left on device" in shown
    assert str(mix) in shown
    assert not (tmp_path / "o").exists()


def test_an_interruption_exits_130_and_leaves_nothing(mix, tmp_path, capsys, monkeypatch):
    def stop(writer, block):
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioWriter, "write", stop)
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", str(tmp_path / "o")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_comes_from_a_pipe_is_called_standard_input(mix, tmp_path, capsys, monkeypatch):
    pipe_in(monkeypatch, mix.read_bytes())
    assert cli.main(["separate", "-", "-q", "violin", "-o", str(tmp_path / "o"), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["input"] == "-"
    pipe_in(monkeypatch, b"no sound")
    assert cli.main(["separate", "-", "-q", "violin", "-o", str(tmp_path / "p")]) == 1
    shown = capsys.readouterr().err
    assert "standard input: " in shown
    assert "auralign-" not in shown


def test_a_pipe_again_is_separated_again(mix, tmp_path, capsys, monkeypatch):
    for _ in range(2):
        pipe_in(monkeypatch, mix.read_bytes())
        assert cli.main(["separate", "-", "-q", "violin", "-o", str(tmp_path / "o")]) == 0
    pipe_in(monkeypatch, mix.read_bytes()[:8000])
    assert cli.main(["separate", "-", "-q", "violin", "-o", str(tmp_path / "o")]) == 1
    assert "truncated" in capsys.readouterr().err


def test_a_pipe_through_keeps_the_stem_and_the_note(mix, capsys, monkeypatch):
    pipe_in(monkeypatch, mix.read_bytes())
    out = io.BytesIO()
    monkeypatch.setattr(
        sys, "stdout", types.SimpleNamespace(buffer=out, isatty=lambda: False, flush=lambda: None)
    )
    assert cli.main(["separate", "-", "-q", "violin", "-o", "-"]) == 0
    out.seek(0)
    samples, rate_hz = soundfile.read(out)
    assert rate_hz == 16000
    np.testing.assert_allclose(samples, soundfile.read(mix)[0] / 2, atol=1 / 32768)
    assert "probably not in this recording" in capsys.readouterr().err


def test_a_sound_is_never_printed_on_a_terminal(mix, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", "-"]) == 2
    assert "terminal" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_exits_130_and_leaves_no_half_files(number, tiny, noise, tmp_path):
    tiny.save(tmp_path / "model", {"name": "tiny"})
    soundfile.write(tmp_path / "long.wav", noise(2, 16000 * 600).T, 16000)
    out = tmp_path / "o"
    words = ["separate", str(tmp_path / "long.wav"), "-q", "violin", "-o", str(out)]
    program = [sys.executable, "-m", "auralign.cli", *words, "--model", str(tmp_path / "model")]
    if not (Path(cli.__file__).parent / "__main__.py").exists():
        program[1:3] = ["-c", "import sys; from auralign.cli import main; sys.exit(main())"]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.rglob("*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "interrupted" in shown
    assert not out.exists()
