from __future__ import annotations

import numpy as np
import pytest

from auralign.evaluation.trial_page import markdown
from auralign.evaluation.trial_score import METRICS, Contender
from auralign.evaluation.trial_statistics import compare_arms, gather, mean_rows, summarise_arms
from auralign.metrics.statistics import bootstrap_interval, shared_intervals
from auralign.report.intervals import Interval, interval_chart

CONTENDERS = (Contender("a", 0, "a0", "A0"), Contender("a", 1, "a1", "A1"), Contender("b", 0, "b0", "B0"))
SCORES = {  # item: source, split, (a0, a1, b0)
    "i": ("take 1", "test", (4.0, 2.0, 1.0)),
    "j": ("take 1", "test", (3.0, 3.0, 3.0)),
    "k": ("take 2", "test", (0.0, 2.0, 5.0)),
    "l": ("take 3", "cross", (1.0, None, 0.0)),
}


def rows(query: str = "text", name: str = "near", shift: float = 0.0) -> list[dict]:
    return [
        {
            "list": name if split == "test" else "far",
            "id": item,
            "query": query,
            "arm": one.arm,
            "seed": one.seed,
            "model": one.sha256,
            "source": source,
            "split": split,
            "reason": "" if value is not None else "silent estimate",
            "si_sdri": None if value is None else value + shift * (one.arm == "a"),
            "judge_rank": None if value is None else 10 - value,
        }
        for item, (source, split, values) in SCORES.items()
        for one, value in zip(CONTENDERS, values, strict=True)
    ]


def found(given: list[dict]) -> dict[tuple, dict]:
    compared = compare_arms(gather(given, CONTENDERS), resamples=2000)
    return {(row["pool"], row["query"], row["metric"]): row for row in compared}


def test_differences_are_means_over_seeds_within_items():
    row = found(rows())["near", "text", "si_sdri"]
    # i: 3 - 1 = 2, j: 0, k: 1 - 5 = -4
    assert row["difference"] == pytest.approx((2 + 0 - 4) / 3)
    assert row["win_rate"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert (row["n"], row["n_unscored"], row["groups"]) == (3, 0, 2)
    assert row["a_seeds"] == pytest.approx([7 / 3, 7 / 3])
    assert row["b_seeds"] == pytest.approx([3.0])
    assert row["seed_differences"] == []
    assert row["ci"][0] == pytest.approx(-4)  # only take 2
    assert row["ci"][1] == pytest.approx(1)  # only take 1
    assert row["item_ci"][1] == pytest.approx(2, abs=0.7)


def test_one_seed_without_a_score_leaves_the_pair_out_and_the_arm_loses():
    row = found(rows()).get(("far", "text", "si_sdri"))
    assert row is None  # nothing left to compare
    given = [{**row, "list": "near"} for row in rows()]
    both = found(given)["near", "text", "si_sdri"]
    assert (both["n"], both["n_unscored"]) == (3, 1)
    assert both["win_rate"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)


def test_a_smaller_rank_wins():
    row = found([row for row in rows() if row["id"] in "ij"])["near", "text", "judge_rank"]
    assert row["difference"] == pytest.approx(-1)
    assert row["win_rate"] == pytest.approx((1 + 0.5) / 2)


def test_lists_of_one_domain_are_pooled_and_queries_too():
    given = rows() + rows("audio") + rows("text", "near 2", shift=1.0)
    table = found(given)
    assert table["near 2", "text", "si_sdri"]["difference"] == pytest.approx(-2 / 3 + 1)
    assert table["in-domain", "text", "si_sdri"]["difference"] == pytest.approx((-2 / 3 + 1 / 3) / 2)
    assert table["in-domain", "all", "si_sdri"]["n"] == 9
    assert table["in-domain", "all", "si_sdri"]["groups"] == 2
    assert not any(pool == "cross-domain" for pool, _, _ in table)  # one list: nothing to pool
    constant = table["near", "all", "si_sdri"]
    assert constant["ci"] == pytest.approx(table["near", "text", "si_sdri"]["ci"])
    assert constant["item_ci"] == pytest.approx(table["near", "text", "si_sdri"]["item_ci"])


def test_equal_numbers_of_seeds_are_paired_in_order():
    contenders = (*CONTENDERS, Contender("b", 1, "b1", "B1"))
    given = rows() + [
        {**row, "model": "B1", "seed": 1, "si_sdri": row["si_sdri"] + 1}
        for row in rows()
        if row["arm"] == "b"
    ]
    row = next(r for r in compare_arms(gather(given, contenders)) if r["pool"] == "near")
    assert row["seed_differences"] == pytest.approx([7 / 3 - 3, 7 / 3 - 4])


def test_rows_of_other_weights_do_not_count():
    stale = [{**row, "model": "old", "si_sdri": 99.0} for row in rows()]
    assert found(rows() + stale) == found(rows())
    assert summarise_arms(gather(rows() + stale, CONTENDERS)) == summarise_arms(gather(rows(), CONTENDERS))


def test_a_mean_row_keeps_the_reason_of_any_model():
    means = {(row["id"], row["system"]): row for row in mean_rows(rows(), CONTENDERS)}
    assert means["i", "a"]["si_sdri"] == 3.0
    assert np.isnan(means["l", "a"]["si_sdri"])
    assert means["l", "a"]["reason"] == "silent estimate"


def test_shared_intervals_are_those_of_a_plain_loop():
    rng = np.random.default_rng(5)
    columns = rng.normal(size=(12, 3))
    columns[3, 1] = np.nan
    clusters = [f"c{n % 5}" for n in range(12)]
    names = sorted(set(clusters))
    generator = np.random.default_rng(0)
    means = []
    for draw in generator.integers(5, size=(200, 5)):
        chosen = np.concatenate(
            [columns[[n for n, c in enumerate(clusters) if c == names[d]]] for d in draw], axis=0
        )
        means.append(np.nanmean(chosen, axis=0))
    expected = np.quantile(means, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(shared_intervals(columns, clusters, resamples=200), expected, rtol=1e-12)


def test_single_items_as_clusters_are_the_plain_bootstrap():
    values = np.random.default_rng(1).normal(size=60)
    low, high = shared_intervals(values[:, None], [f"{n:02d}" for n in range(60)], resamples=4000)[:, 0]
    expected = bootstrap_interval(values, resamples=4000)
    assert (low, high) == pytest.approx(expected, abs=0.02)


def test_copies_of_a_recording_do_not_narrow_the_interval():
    takes = np.random.default_rng(2).normal(size=20)
    copied = np.repeat(takes, 10)[:, None]
    group = [f"{n // 10:02d}" for n in range(200)]
    honest = np.diff(shared_intervals(copied, group, resamples=2000), axis=0)
    naive = np.diff(shared_intervals(copied, [f"{n:03d}" for n in range(200)], resamples=2000), axis=0)
    once = np.diff(shared_intervals(takes[:, None], group[::10], resamples=2000), axis=0)
    np.testing.assert_allclose(honest, once)
    assert naive[0, 0] < 0.5 * honest[0, 0]


def test_fewer_than_two_clusters_have_no_interval():
    assert np.isnan(shared_intervals(np.ones((3, 2)), ["x"] * 3)).all()
    one_left = np.array([[1.0, np.nan], [2.0, 5.0]])
    ends = shared_intervals(one_left, ["x", "y"], resamples=50)
    assert np.isfinite(ends[:, 0]).all()
    assert np.isnan(ends[:, 1]).all()


def test_the_markdown_marks_what_is_sure():
    given = rows() + rows("text", "near 2", shift=9.0)
    scores = gather(given, CONTENDERS)
    summary = {
        "comparisons": compare_arms(scores, resamples=500),
        "rows": summarise_arms(scores),
        "not_askable": {"image": 2},
        "reasons": {"a: silent estimate": 1},
    }
    text = markdown(summary)
    assert "### a minus b" in text
    assert "| near | text | 3 (2) | -0.67 [" in text
    assert "| near 2 | text | 3 (2) | **+8.33** [" in text
    assert "- 2 items cannot be asked by image" in text
    assert "- 1 × a: silent estimate" in text


def test_the_figure_leaves_out_what_is_not_finite_and_escapes_names():
    lines = [Interval("<b>", 0.5, 0.1, 0.9, (0.2, 0.8)), Interval("none", float("nan"), 0.0, 1.0)]
    figure = interval_chart("SI-SDRi", lines, x_label="a minus b")
    assert "&lt;b&gt;" in figure
    assert "none" not in figure
    assert figure.count("<circle") == 1
    assert "no finite values" in interval_chart("x", lines[1:], x_label="")


def test_every_metric_has_its_column():
    assert gather(rows(), CONTENDERS).values["a"].shape == (4, 2, len(METRICS) + 2)
