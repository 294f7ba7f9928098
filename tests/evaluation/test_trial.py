from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from auralign.errors import DataError, UsageError
from auralign.evaluation import trial_pool
from auralign.evaluation.items import SoundboxItems
from auralign.evaluation.presets import PRESETS
from auralign.evaluation.run import Answerer
from auralign.evaluation.trial import TrialConfig, open_arms, parse_arm, run_trial
from auralign.evaluation.trial_judge import TrialJudge
from auralign.evaluation.trial_queries import Queries
from auralign.evaluation.trial_rows import RowFiles
from auralign.models.judge import load_judge
from auralign.models.separator import SeparatorModel


@pytest.fixture
def cfg(trial_corpus: Path, tiny_models: list[Path]) -> TrialConfig:
    a, b, c = map(str, tiny_models)
    return TrialConfig(
        arms=(("new", (a, b)), ("old", (c,))),
        corpus=trial_corpus,
        lists=(str(trial_corpus / "tiny.jsonl"),),
        queries=("text", "image", "audio", "combined"),
        workers=1,
    )


@pytest.fixture(scope="module")
def finished(trial_corpus: Path, tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole trial, to look at."""
    out = tmp_path_factory.mktemp("finished")
    a, b, c = map(str, tiny_models)
    arms = (("new", (a, b)), ("old", (c,)))
    run_trial(TrialConfig(arms, trial_corpus, (str(trial_corpus / "tiny.jsonl"),), workers=1), out)
    return out


def rows_of(folder: Path) -> list[dict]:
    return list(RowFiles(folder / "rows").read().values())


def test_every_model_answers_every_query_that_the_item_has(finished):
    rows = rows_of(finished)
    assert len(rows) == 3 * (4 * 3 + 1)  # three models; text, audio, combined of four items, one picture
    assert all(row["reason"] == "" and not row["failed"] for row in rows)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["not_askable"] == {"image": 3}
    assert {row["query"] for row in rows if row["id"] == "m-1"} == {"text", "audio", "combined"}


def test_rows_have_the_scores_of_the_ordinary_evaluation(finished, trial_corpus, tiny_models):
    items = SoundboxItems(trial_corpus)
    spec = items.read(str(trial_corpus / "tiny.jsonl"))[0]
    mixture = items.renderer.render(spec)
    for row in rows_of(finished):
        if row["id"] != "m-0" or row["seed"] != 0:
            continue
        folder = tiny_models[0] if row["arm"] == "new" else tiny_models[2]
        answer = Answerer(SeparatorModel.load(folder), items)
        target, residual, presence = answer(mixture.mixture, items.ask(spec, "bell", row["query"]))
        refs = (mixture.target, mixture.interferer)
        scores = PRESETS["auralign"].score(
            target=target, residual=residual, refs=refs, mixture=mixture.mixture
        )
        for name in ("si_sdri", "snri", "sdr_v3_512", "sir_v3_512", "sar_v3_512"):
            assert row[name] == pytest.approx(scores[name].value, abs=1e-3), (row["query"], name)
        assert row["presence"] == pytest.approx(presence, abs=1e-5)


def test_a_combined_query_weighs_its_modalities_equally(trial_corpus, tiny_models):
    items = SoundboxItems(trial_corpus)
    model = SeparatorModel.load(tiny_models[0])
    spec = items.read(str(trial_corpus / "tiny.jsonl"))[0]
    single, answer = Queries(items, {}), Answerer(model, items)
    combined = items.ask(spec, "bell", "combined")
    assert (combined.texts, len(combined.images), len(combined.clips)) == (("bell",), 1, 2)
    parts = [single.vector(model, items.ask(spec, "bell", kind)) for kind in ("text", "image", "audio")]
    expected = torch.nn.functional.normalize(torch.stack(parts).mean(0), dim=-1)
    torch.testing.assert_close(single.vector(model, combined), expected)
    torch.testing.assert_close(answer.vector(combined).vector, expected)
    assert items.ask(spec, "harp", "combined").images == ()


def test_an_interrupted_trial_repeats_nothing_that_is_finished(cfg, tmp_path, finished, monkeypatch):
    cfg = replace(cfg, queries=("text",))
    done: list[str] = []
    score = trial_pool.Scorer.score

    def counted(self, work):
        done.append(work.spec.id)
        return score(self, work)

    monkeypatch.setattr(trial_pool.Scorer, "score", counted)
    run_trial(replace(cfg, limit=2), tmp_path)
    before = {path.name: path.read_text() for path in (tmp_path / "rows").iterdir()}
    first = next(iter(before))
    torn = before[first] + '{"list": "tiny", "id": "m-3", "que'
    (tmp_path / "rows" / first).write_text(torn)
    result = run_trial(cfg, tmp_path)
    assert done == ["m-0", "m-1", "m-2", "m-3"]
    assert all((tmp_path / "rows" / name).read_text().startswith(text) for name, text in before.items())
    whole = json.loads((finished / "summary.json").read_text())["comparisons"]
    for mine, other in zip(
        result.summary["comparisons"], [c for c in whole if c["query"] == "text"], strict=True
    ):
        assert mine["difference"] == pytest.approx(other["difference"], abs=1e-5)
    monkeypatch.setattr(trial_pool, "Scorer", None)  # nothing is even loaded
    assert run_trial(cfg, tmp_path).summary["comparisons"] == result.summary["comparisons"]


def test_other_weights_in_an_arm_are_scored_and_the_old_rows_do_not_count(cfg, tmp_path, tiny_models):
    moved = tmp_path / "model"
    shutil.copytree(tiny_models[0], moved)
    two = replace(cfg, arms=(("new", (str(moved),)), cfg.arms[1]), queries=("text",), limit=1)
    before = run_trial(two, tmp_path / "out").summary["rows"][0]["si_sdri"]
    shutil.rmtree(moved)
    shutil.copytree(tiny_models[1], moved)
    result = run_trial(two, tmp_path / "out")
    assert result.summary["cost"]["mixtures_scored"] == 1
    assert result.summary["rows"][0]["models"] == 1
    assert result.summary["rows"][0]["si_sdri"] != before


def test_what_cannot_be_rendered_is_a_row_with_its_reason_and_is_tried_again(cfg, tmp_path, trial_corpus):
    broken = replace(cfg, lists=(str(trial_corpus / "broken.jsonl"),), queries=("text",))
    result = run_trial(broken, tmp_path)
    assert result.failed == 3
    failed = [row for row in rows_of(tmp_path) if row["failed"]]
    assert {row["id"] for row in failed} == {"gone"}
    assert all("lost-0" in row["reason"] and row["si_sdri"] is None for row in failed)
    means = {row["arm"]: row for row in result.summary["rows"]}
    assert (means["new"]["n"], means["new"]["unscored"]) == (2, 1)
    assert run_trial(broken, tmp_path).summary["cost"]["mixtures_scored"] == 1


def test_a_model_that_fails_on_one_item_leaves_the_others_standing(cfg, tmp_path, monkeypatch):
    answer = trial_pool.Scorer._answer

    def sometimes(self, model, wave, query):
        if model is self.models[1]:
            raise RuntimeError("no\nmemory")
        return answer(self, model, wave, query)

    monkeypatch.setattr(trial_pool.Scorer, "_answer", sometimes)
    result = run_trial(replace(cfg, queries=("text",), limit=1), tmp_path)
    reasons = {(row["arm"], row["seed"]): row["reason"] for row in rows_of(tmp_path)}
    assert reasons == {("new", 0): "", ("new", 1): "RuntimeError: no memory", ("old", 0): ""}
    assert result.failed == 1
    assert result.summary["comparisons"] == []  # nothing is left to pair


def test_a_silent_answer_has_no_ratio_and_loses(cfg, tmp_path, monkeypatch):
    answer = trial_pool.Scorer._answer

    def mute(self, model, wave, query):
        found, presence = answer(self, model, wave, query)
        return (found * 0 if model is self.models[2] else found), presence

    monkeypatch.setattr(trial_pool.Scorer, "_answer", mute)
    run_trial(replace(cfg, queries=("text",), limit=1), tmp_path)
    silent = [row for row in rows_of(tmp_path) if row["arm"] == "old"]
    assert all(row["si_sdri"] is None and "silent estimate" in row["reason"] for row in silent)
    assert all(row["level_change_db"] == -150.0 and not row["failed"] for row in silent)


def test_a_folder_keeps_one_kind_of_trial(cfg, tmp_path):
    small = replace(cfg, queries=("text",), limit=1)
    run_trial(small, tmp_path)
    with pytest.raises(UsageError, match="other settings"):
        run_trial(replace(small, seed=1), tmp_path)


def test_arms_that_would_mislead_are_refused(tiny_models):
    a, b, _ = map(str, tiny_models)
    with pytest.raises(UsageError, match="two or more arms"):
        open_arms((("new", (a,)),))
    with pytest.raises(UsageError, match="same weights"):
        open_arms((("new", (a, a)), ("old", (b,))))
    with pytest.raises(UsageError, match="is no arm"):
        parse_arm("new=")
    assert [one.seed for one in open_arms((("new", (a, b)), ("old", (b,))))] == [0, 1, 0]


def test_a_damaged_row_is_named_with_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"list": "l"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:1"):
        RowFiles(tmp_path).read()


@pytest.fixture(scope="module")
def heard() -> tuple[np.ndarray, torch.Tensor]:
    """Two sounds and the judge's own embeddings of them."""
    rng = np.random.default_rng(0)
    waves = (0.1 * rng.standard_normal((2, 30_000))).astype(np.float32)
    waves[1] = 0.2 * np.sin(np.arange(30_000) * 0.2)
    import soxr

    fast = np.stack([soxr.resample(wave, 16_000, 44_100) for wave in waves])
    with torch.inference_mode():
        return waves, load_judge().embed(torch.from_numpy(fast))


def test_the_trials_judge_hears_what_the_judge_hears(heard):
    waves, expected = heard
    found = TrialJudge(load_judge(), "float32").embed(list(waves))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    narrow = TrialJudge(load_judge(), "bfloat16").embed(list(waves))
    assert float((narrow * expected).sum(-1).min()) > 0.999


def test_judge_scores_are_cosines_to_the_anchors(heard):
    prototypes = {"noise": heard[1][0].numpy(), "tone": heard[1][1].numpy()}
    judge = TrialJudge(load_judge(), "float32", prototypes)
    target, other = heard[1]
    mixture = torch.nn.functional.normalize(target + other, dim=-1)
    scores = judge.scores(torch.stack([target, other]), torch.stack([target, other, mixture]), "noise")
    across = float(target @ other)
    assert scores["judge_similarity"] == pytest.approx([1, across], abs=1e-5)
    assert scores["judge_margin_interferer"] == pytest.approx([1 - across, across - 1], abs=1e-5)
    assert scores["judge_rank"] == [1.0, 2.0]
    assert scores["judge_top1"] == [1.0, 0.0]
    assert scores["anchor_mixture"][0] == pytest.approx(math.sqrt((1 + across) / 2), abs=1e-5)
    assert "judge_rank" not in judge.scores(target[None], torch.stack([target, other, mixture]), "unknown")


def test_judged_rows_are_added_where_a_trial_had_none(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(SoundboxItems, "prototypes", lambda self: {"bell": [np.ones(9000, np.float32)]})
    plain = replace(cfg, queries=("text",), limit=2)
    run_trial(plain, tmp_path)
    judged = replace(plain, judge=True, judge_limit=1, judge_precision="bfloat16")
    result = run_trial(judged, tmp_path)
    assert result.summary["cost"]["mixtures_scored"] == 1
    have = {row["id"]: row["judge_similarity"] is not None for row in rows_of(tmp_path)}
    assert have == {"m-0": True, "m-1": False}
    metrics = {row["metric"]: row["n"] for row in result.summary["comparisons"]}
    assert (metrics["judge_similarity"], metrics["si_sdri"]) == (1, 2)
