from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

import auralign.separation
from auralign import cli
from auralign.errors import AudioError, ModelUnavailableError
from auralign.separation import FileOutcome, Query, SeparateOptions

RATE_HZ = 8000


class Recorder:
    """Stands for the model: keeps what it was asked and writes stems of half the recording each."""

    def __init__(self) -> None:
        self.calls: list[types.SimpleNamespace] = []

    def load(self, name, *, device):
        if name == "absent":
            raise ModelUnavailableError("not here", where=name)
        self.loaded = (name, device)
        return self

    def separate_files(self, inputs, queries, options, on_progress=None):
        self.calls.append(types.SimpleNamespace(inputs=inputs, queries=queries, options=options))
        return [self._one(Path(path), queries, options) for path in inputs]

    def _one(self, source, queries, options):
        if not source.exists():
            return FileOutcome(str(source), False, error=AudioError("no such file", where=str(source)))
        samples, rate = soundfile.read(source)
        folder = options.out / source.stem
        folder.mkdir(parents=True)
        stems = {}
        for stem in [*(query.stem for query in queries), "residual"]:
            stems[stem] = folder / f"{stem}.wav"
            soundfile.write(stems[stem], samples / (len(queries) + 1), rate)
        manifest = {
            "input": str(source.resolve()),
            "stems": {stem: path.name for stem, path in stems.items()},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return FileOutcome(
            str(source), True, tuple(stems.values()), presence={"violin": 0.2}, note="not there"
        )


@pytest.fixture
def model(monkeypatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(auralign.separation, "Separator", recorder)
    return recorder


@pytest.fixture
def mix(tmp_path) -> Path:
    path = tmp_path / "mix.wav"
    wave = np.sin(np.arange(RATE_HZ) * 0.3) * 0.5
    soundfile.write(path, wave, RATE_HZ)
    return path


def test_every_option_reaches_the_separator(model, mix, tmp_path, capsys):
    words = ["-q", "violin", "--query", "a dog", "--image", str(mix), "--audio", str(mix), "--not", "speech"]
    words += ["-o", str(tmp_path / "o"), "--level", "peak", "--format", "flac"]
    words += ["--rate", "44100", "--overwrite"]
    words += ["--name", "{track}-{stem}.{ext}", "--model", "tiny", "--device", "cpu", "--dry-run"]
    assert cli.main(["separate", str(mix), *words]) == 0
    (call,) = model.calls
    assert model.loaded == ("tiny", "cpu")
    assert call.queries == [
        Query(texts=("violin",), exclude=("speech",)),
        Query(texts=("a dog",), exclude=("speech",)),
        Query(images=(mix,), exclude=("speech",)),
        Query(audios=(mix,), exclude=("speech",)),
    ]
    assert call.options == SeparateOptions(
        out=tmp_path / "o",
        level="peak",
        format="flac",
        rate_hz=44100,
        name="{track}-{stem}.{ext}",
        overwrite=True,
        dry_run=True,
    )
    shown = capsys.readouterr()
    assert all(Path(line).exists() for line in shown.out.splitlines())
    assert shown.out.splitlines()[-1] == str(tmp_path / "o" / "mix" / "residual.wav")
    assert "not there" in shown.err


def test_combine_makes_one_query_of_all(model, mix, tmp_path):
    words = ["-q", "violin", "-q", "fiddle", "--audio", str(mix), "--combine", "-o", str(tmp_path / "o")]
    assert cli.main(["separate", str(mix), *words]) == 0
    assert model.calls[0].queries == [Query(texts=("violin", "fiddle"), audios=(mix,))]


def test_a_bad_file_does_not_stop_the_batch_and_exits_1(model, mix, tmp_path, capsys):
    words = ["-q", "violin", "-o", str(tmp_path / "o"), "--json"]
    assert cli.main(["separate", "gone.wav", str(mix), *words]) == 1
    shown = capsys.readouterr()
    bad, good = json.loads(shown.out)
    assert (bad["ok"], good["ok"]) == (False, True)
    assert "no such file" in bad["error"]
    assert good["presence"] == {"violin": 0.2}
    assert Path(good["outputs"][0]).exists()
    assert "1 of 2 inputs failed" in shown.err


def test_a_missing_model_exits_3(model, mix):
    assert cli.main(["separate", str(mix), "-q", "violin", "--model", "absent"]) == 3


def test_the_report_is_written_and_named_last(model, mix, tmp_path, capsys):
    assert cli.main(["separate", str(mix), "-q", "violin", "-o", str(tmp_path / "o"), "--report"]) == 0
    page = tmp_path / "o" / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert "violin" in page.read_text()
    page.unlink()
    assert cli.main(["report", str(tmp_path / "o")]) == 0
    assert "violin" in page.read_text()


def test_a_pipe_goes_in_and_wav_comes_out(model, mix, monkeypatch):
    stdin, stdout = io.BytesIO(mix.read_bytes()), io.BytesIO()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stdin, isatty=lambda: False))
    monkeypatch.setattr(
        sys, "stdout", types.SimpleNamespace(buffer=stdout, isatty=lambda: False, flush=lambda: None)
    )
    assert cli.main(["separate", "-", "-q", "violin", "-o", "-"]) == 0
    stdout.seek(0)
    samples, rate = soundfile.read(stdout)
    original, _ = soundfile.read(mix)
    assert rate == RATE_HZ
    np.testing.assert_allclose(samples, original / 2, atol=1e-4)


def test_an_empty_pipe_is_a_usage_error(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: False))
    assert cli.main(["separate", "-", "-q", "violin"]) == 2
    assert "standard input is empty" in capsys.readouterr().err
