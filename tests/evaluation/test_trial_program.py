from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from auralign.evaluation import bench_rl


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "auralign", "evaluate", *words],
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )


def words(corpus: Path, models: list[Path], out: Path, *more: str) -> list[str]:
    a, b, c = models
    arms = ["--arm", f"new={a},{b}", "--arm", f"old={c}"]
    place = ["--corpus", str(corpus), "--list", str(corpus / "tiny.jsonl")]
    return ["trial", *arms, *place, "--query", "text", "-o", str(out), *more]


@pytest.mark.timeout(2000)
def test_the_program_writes_rows_summary_table_and_page(trial_corpus, tiny_models, tmp_path):
    found = program(*words(trial_corpus, tiny_models, tmp_path, "--workers", "2", "--json"))
    assert found.returncode == 0, found.stderr
    summary = json.loads(found.stdout)
    assert summary["cost"]["mixtures_scored"] == 4
    assert {row["metric"] for row in summary["comparisons"]} >= {"si_sdri", "sir_v3_512", "presence"}
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4 * 2
    assert "### new minus old" in (tmp_path / "table.md").read_text()
    assert "<svg" in (tmp_path / "report.html").read_text()
    again = program(*words(trial_corpus, tiny_models, tmp_path, "--limit", "3"))
    assert again.returncode == 0, again.stderr
    first = again.stdout.splitlines()[0].split()
    assert first[:4] == ["new", "old", "tiny", "text"]
    assert json.loads((tmp_path / "summary.json").read_text())["cost"] == {
        "mixtures_scored": 0,
        "rows_kept": 9,
        "wall_s": 0.0,
        "workers": 2,
        "ms_per_mixture": dict.fromkeys(("render", "query", "trunk", "masks", "ratios", "bss", "judge"), 0.0),
    }


def test_a_trial_says_what_it_lacks(trial_corpus, tiny_models, tmp_path, capsys):
    from auralign import cli

    place = ["--corpus", str(trial_corpus)]
    for given, hint in (
        (["--arm", f"a={tiny_models[0]}", *place], "-o DIR"),
        (["--arm", f"a={tiny_models[0]}", *place, "-o", str(tmp_path / "x")], "two or more arms"),
        (["--arm", "a", *place, "-o", str(tmp_path / "x")], "NAME=MODEL"),
        (["-o", str(tmp_path / "x"), "--workers", "0"], "workers"),
    ):
        assert cli.main(["evaluate", "trial", *given]) == 2
        assert hint in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_bench_times_both_steps_on_the_same_batch(monkeypatch):
    drawn: list[tuple[str, float]] = []
    for name, module in (("rl", bench_rl.mars_sep), ("supervised", bench_rl.omnisep)):
        draw = module.draw

        def seen(cfg, corpus, banks, step, micro, name=name, draw=draw):
            batch = draw(cfg, corpus, banks, step, micro)
            drawn.append((name, float(batch.mixture.square().sum())))
            return batch

        monkeypatch.setattr(module, "draw", seen)
    work = bench_rl.Work("small", 2, 16_384)
    (entry,) = bench_rl.bench(cases={"tiny": work}, repeats=1).values()
    assert entry["times_supervised"] == pytest.approx(entry["ours_s"] / entry["peer_s"])
    assert entry["work"] == "small, 2 mixtures of 1.02 s, G = 4"
    sums = {name: [value for who, value in drawn if who == name] for name in ("rl", "supervised")}
    assert sums["rl"] == sums["supervised"]
    assert len(sums["rl"]) == 2
    assert "rl_step_vs_supervised_step" in bench_rl.CASES
