from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from auralign.errors import DataError, UsageError
from auralign.runtime import environment, tracker
from auralign.runtime.device import pick
from auralign.runtime.run import Run
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker, read_metrics


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 3


def _run(tmp_path) -> Run:
    run = Run.create(tmp_path, Config(9), "small recipe", algorithm="omnisep")
    with run.tracker() as record:
        record.log(1, {"loss": 0.5})
        record.sound(1, "mix", np.zeros((1, 8), np.float32), 8000)
    run.checkpoints.save(1, {"a": torch.ones(2)})
    run.report_path.write_text("page")
    return run


def test_runs_are_numbered_and_never_share_a_folder(tmp_path):
    names = [Run.create(tmp_path, Config(), "a/b c").path.name for _ in range(3)]
    assert names == ["a-b-c-001", "a-b-c-002", "a-b-c-003"]
    with pytest.raises(UsageError, match="auralign resume"):
        Run.create(tmp_path, Config(), "x", folder=tmp_path / names[0])


@pytest.mark.parametrize(
    "gone", ["config.toml", "env.json", "metrics.jsonl", "checkpoints", "samples", "report.html"]
)
def test_deleting_any_part_leaves_the_others_usable(tmp_path, gone, caplog):
    path = _run(tmp_path).path
    part = path / gone
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    run = Run.open(path)
    assert run.config(Config) == Config(9)
    assert run.algorithm() == "omnisep"
    assert len(run.metrics()) == (0 if gone == "metrics.jsonl" else 1)
    if gone == "checkpoints":
        with pytest.raises(DataError, match="no checkpoint"):
            run.checkpoints.load_latest()
    else:
        assert run.checkpoints.load_latest().state["a"].sum() == 2
    with run.tracker(resumed_step=1) as record:
        record.log(2, {"loss": 0.4})
    assert run.metrics()[-1]["loss"] == 0.4
    assert ("using the copy" in caplog.text) == (gone == "config.toml")


def test_a_folder_without_configuration_and_checkpoints_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        Run.open(tmp_path)
    with pytest.raises(UsageError, match="no such run folder"):
        Run.open(tmp_path / "none")
    path = _run(tmp_path).path
    (path / "config.toml").unlink()
    run = Run.open(path)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(DataError, match="configuration is gone"):
        run.table()


def test_resuming_cuts_the_records_beyond_the_checkpoint(tmp_path):
    with Tracker(tmp_path) as record:
        for step in range(5):
            record.log(step, {"loss": step, "bad": math.nan, "text": "é"})
    with record.path.open("a") as file:
        file.write('{"step": 5, "lo')
    with Tracker(tmp_path, resumed_step=2) as record:
        record.log(3, {"loss": 30.0})
    records = read_metrics(record.path)
    assert [one["step"] for one in records] == [0, 1, 2, 3]
    assert records[0]["bad"] is None
    assert records[0]["text"] == "é"
    assert records[-1]["elapsed_s"] >= records[-2]["elapsed_s"]
    json.loads(record.path.read_text().splitlines()[0], parse_constant=pytest.fail)


def test_a_damaged_line_inside_the_records_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_logged_sound_keeps_rate_and_channels_and_never_clips(tmp_path):
    wave = np.stack([np.linspace(-4, 4, 100), np.zeros(100)]).astype(np.float32)
    with Tracker(tmp_path) as record:
        path = record.sound(7, "item/violin", wave, 22050)
        with pytest.raises(ValueError, match="not finite"):
            record.sound(7, "bad", np.full((1, 2), np.nan, np.float32), 22050)
    back, rate = soundfile.read(path, dtype="float32", always_2d=True)
    gain_db = read_metrics(record.path)[0]["sound/item/violin/gain_db"]
    assert rate == 22050
    assert gain_db == pytest.approx(-20 * math.log10(4), abs=0.01)
    np.testing.assert_allclose(back.T, wave * 10 ** (gain_db / 20), atol=1e-6)


def test_an_optional_tracker_that_is_absent_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        Tracker(tmp_path, also=["wandb"])
    with pytest.raises(UsageError, match="unknown tracker"):
        Tracker(tmp_path, also=["excel"])


def test_adapters_get_numbers_and_time_first_pcm(tmp_path, monkeypatch):
    seen: dict[str, object] = {}

    class Session:
        def log(self, values, step):
            seen.update(values, step=step)

        def finish(self):
            seen["finished"] = True

    fake = types.SimpleNamespace(
        init=lambda **settings: seen.update(settings) or Session(),
        Audio=lambda pcm, sample_rate: (pcm.dtype, pcm.shape, sample_rate),
    )
    monkeypatch.setattr(tracker.importlib, "import_module", lambda name: fake)
    with Tracker(tmp_path / "my-run", also=["trackio"], config={"a": 1}) as record:
        record.log(3, {"loss": 1.0})
        record.sound(4, "mix", np.zeros((2, 10), np.float32), 8000)
    assert seen["name"] == "my-run"
    assert seen["config"] == {"a": 1}
    assert seen["loss"] == 1.0
    assert seen["sound/mix"] == (np.int16, (10, 2), 8000)
    assert seen["finished"]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(kind):
    before = signal.getsignal(kind)
    with GracefulStop() as outer, GracefulStop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), kind)
        assert stop.requested
        assert outer.requested
        assert outer.signal_name == kind.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), kind)
    assert signal.getsignal(kind) is before


def test_the_automatic_device_is_usable_and_says_why():
    choice = pick("auto")
    torch.zeros(1, device=choice.device)
    assert "present" in str(choice)


@pytest.mark.parametrize("name", ["tpu-ish", "cuda:99", "xpu"])
def test_an_unusable_device_is_a_usage_error(name):
    with pytest.raises(UsageError, match="device"):
        pick(name)


def test_the_environment_names_versions_and_can_be_written():
    found = json.loads(json.dumps(environment.snapshot()))
    assert found["packages"]["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert environment.versions(("no-such-package-here",)) == {"no-such-package-here": None}
