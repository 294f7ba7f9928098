from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import auralign
from auralign import cli
from auralign.cli import terminal
from auralign.cli.inputs import expand
from auralign.errors import UsageError

COMMAND = [sys.executable, "-m", "auralign"]


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=120, env=os.environ | env, check=False
    )


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_on_stdout(words):
    found = run(*words)
    assert found.returncode == 0
    assert found.stderr == ""
    assert all(f"\n  {name} " in found.stdout for name in cli.COMMANDS)


def test_every_command_has_its_help(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            cli.main(["help", name])
        assert caught.value.code == 0
        shown = capsys.readouterr()
        assert f"auralign {name}" in shown.out
        assert shown.err == ""


def test_help_and_the_package_load_nothing_heavy():
    heavy = "{'torch', 'scipy', 'numpy', 'soundfile', 'matplotlib', 'PIL', 'transformers', 'onnxruntime'}"
    for words in ([], ["--help"], ["separate", "--help"], ["train", "--help"], ["evaluate", "--help"]):
        program = f"""
            import sys
            import auralign
            from auralign.cli import main
            try:
                {words} and main({words})
            except SystemExit:
                pass
            sys.exit(repr({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)
        """
        found = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, (words, found.stderr)


def test_the_version_is_the_packages():
    assert run("--version").stdout == f"auralign {auralign.__version__}\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["seperate", "x.wav"], "auralign separate"),
        (["xyzzy"], "--help"),
        (["models", "donwload"], "download"),
        (["separate", "x.wav", "--quary", "violin"], "--query"),
        (["separate", "x.wav"], "-q"),
        (["separate", "-q", "violin"], "name files"),
        (["separate", "x.wav", "--image", "none.png"], "none.png"),
        (["separate", "a.wav", "b.wav", "-q", "x", "-o", "-"], "one input"),
        (["separate", "x.wav", "-q", "x", "--level", "loud"], "keep"),
        (["train", "none.toml"], "none.toml"),
        (["resume", "no-such-run"], "no-such-run"),
        (["report", "no-such-folder"], "no-such-folder"),
        (["models", "download", "yamnett"], "yamnet"),
        (["bench", "no-such-area"], "no-such-area"),
        (["evaluate", "cooking"], "separation"),
    ],
)
def test_usage_errors_exit_2_with_a_hint_on_stderr_and_nothing_on_stdout(words, hint, capsys):
    try:
        code = cli.main(words)
    except SystemExit as error:
        code = error.code
    shown = capsys.readouterr()
    assert code == 2
    assert hint in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err


def test_no_word_at_all_shows_help_on_stderr():
    found = run()
    assert found.returncode == 2
    assert found.stdout == ""
    assert "usage:" in found.stderr


def test_weights_that_cannot_be_had_exit_3_and_say_where_was_looked(tmp_path):
    found = run("models", "download", "yamnet", "--json", AURALIGN_CACHE=str(tmp_path), AURALIGN_OFFLINE="1")
    assert found.returncode == 3
    assert json.loads(found.stdout)[0]["ok"] is False
    assert "yamnet" in found.stderr
    assert "Traceback" not in found.stderr


def test_lists_are_tables_for_people_and_json_for_machines(capsys):
    assert cli.main(["models", "list"]) == 0
    table = capsys.readouterr().out
    assert cli.main(["models", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [line.split()[0] for line in table.splitlines()] == [row["name"] for row in rows]
    assert "yamnet" in table


def test_doctor_tells_versions_devices_and_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AURALIGN_CACHE", str(tmp_path))
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"]
    assert found["weights"]["yamnet"] is False
    assert cli.main(["doctor"]) == 0
    assert "auralign models download yamnet" in capsys.readouterr().out


def test_an_unexpected_error_is_reported_without_a_traceback_unless_asked(monkeypatch, capsys):
    def broken(verb, rest):
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "_run", broken)
    monkeypatch.setenv("AURALIGN_DEBUG", "0")
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().err
    assert "boom" in shown
    assert "report" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("AURALIGN_DEBUG", "1")
    assert cli.main(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_exits_130(monkeypatch, capsys):
    def interrupted(verb, rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen(
        [*COMMAND, "models", "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_folders_and_patterns_expand_in_order_and_missing_files_stay(tmp_path):
    for name in ("b.wav", "a.FLAC", "notes.txt", ".hidden.wav", "deep/c.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = str(tmp_path)
    assert expand([folder]) == [f"{folder}/a.FLAC", f"{folder}/b.wav"]
    assert expand([folder], recursive=True)[-1] == f"{folder}/deep/c.mp3"
    assert expand([f"{folder}/*.wav", f"{folder}/b.wav", "gone.wav", "-"]) == [
        f"{folder}/b.wav",
        "gone.wav",
        "-",
    ]
    assert expand([f"{folder}/**/*.mp3"]) == [f"{folder}/deep/c.mp3"]
    for nothing in ([], [f"{folder}/*.ogg"]):
        with pytest.raises(UsageError):
            expand(nothing)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "take[1].wav").touch()
    (tmp_path / "take1.wav").touch()
    assert expand([str(tmp_path / "take[1].wav")]) == [str(tmp_path / "take[1].wav")]


def test_bench_finds_areas_and_prints_their_ratios(tmp_path, capsys):
    (tmp_path / "sums.py").write_text(
        textwrap.dedent("""
            def bench(*, repeats):
                times = {"ours_s": 1.0, "peer_s": 2.0 * repeats, "ratio": 2.0}
                return {"a_vs_b": {**times, "peer": "b", "work": "nap"}}
        """)
    )
    assert cli.main(["bench", "--folder", str(tmp_path)]) == 0
    assert "sums" in capsys.readouterr().out.splitlines()
    assert cli.main(["bench", "sums", "--folder", str(tmp_path), "--repeats", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["a_vs_b"]["peer_s"] == 6.0
    assert cli.main(["bench", "sums", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["a_vs_b", "1.000", "6.000", "2.000", "b", "nap"]


def test_json_never_holds_nan(capsys):
    terminal.print_json({"a": [float("nan"), 1.5], "p": Path("x")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, 1.5], "p": "x"}


ALGORITHM = """
    import dataclasses, time
    import torch
    from auralign.runtime.signals import GracefulStop

    @dataclasses.dataclass(frozen=True)
    class Config:
        steps: int = 3
        pause_s: float = 0.0

    def train(cfg, run):
        store = run.checkpoints
        first = 0 if store.latest() is None else store.load_latest().meta["step"]
        with GracefulStop() as stop, run.tracker(resumed_step=first) as tracker:
            for step in range(first + 1, cfg.steps + 1):
                time.sleep(cfg.pause_s)
                tracker.log(step, {"loss": 1.0 / step})
                if stop.requested or step == cfg.steps:
                    store.save(step, {"w": torch.tensor(step)})
                    return
"""
WITH_ALGORITHM = """
import sys
import auralign.algorithms as algorithms
from auralign.cli import main
algorithms.__path__.append(sys.argv.pop(1))
sys.exit(main())
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "counting.py").write_text(textwrap.dedent(ALGORITHM))
    path = tmp_path / "count.toml"
    path.write_text('algorithm = "counting"\nsteps = 4\n')
    return path


def _start(recipe: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WITH_ALGORITHM, str(recipe.parent), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_stopped_by_sigterm_resumes_to_the_same_records(recipe, tmp_path):
    runs = tmp_path / "runs"
    sets = ["--set", "steps=100", "--set", "pause_s=0.05"]
    process = _start(recipe, "train", str(recipe), "--runs", str(runs), *sets)
    metrics = runs / "count-001" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.strip() == str(runs / "count-001")
    assert f"auralign resume {runs / 'count-001'}" in err
    assert (runs / "count-001" / "report.html").exists()

    (runs / "count-001" / "config.toml").write_text('algorithm = "counting"\nsteps = 100\npause_s = 0.0\n')
    process = _start(recipe, "resume", str(runs / "count-001"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 101))


def test_print_config_shows_the_recipe_with_all_changes(recipe, capsys, monkeypatch):
    from auralign import algorithms

    monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(recipe.parent)])
    assert cli.main(["train", str(recipe), "--set", "pause_s=0.5", "--print-config"]) == 0
    assert capsys.readouterr().out == 'algorithm = "counting"\nsteps = 4\npause_s = 0.5\n'
    recipe.write_text('algorithm = "countng"\n')
    assert cli.main(["train", str(recipe)]) == 2
    assert "did you mean 'counting'" in capsys.readouterr().err
