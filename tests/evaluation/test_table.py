from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from auralign.errors import DataError, UsageError
from auralign.evaluation.table import Table, compare


def table(values: dict[str, float], system: str = "model", metric: str = "si_sdri", **settings) -> Table:
    rows = [
        {
            "id": name,
            "system": system,
            "class": name[0],
            metric: value,
            "reason": "silent estimate" if math.isnan(value) else "",
        }
        for name, value in values.items()
    ]
    return Table(rows, (metric,), **settings)


def test_every_item_keeps_its_row_and_nan_is_counted():
    scores = table({"a1": 1.0, "a2": math.nan, "b1": 4.0})
    line = scores.summary("si_sdri")
    assert (len(scores.rows), line.n, line.n_nan, line.mean) == (3, 2, 1, 2.5)
    assert scores.reasons() == {"silent estimate": 1}


def test_headline_follows_the_aggregation():
    values = {"a1": 1.0, "a2": 2.0, "a3": 9.0, "b1": 10.0}
    assert table(values).headline("si_sdri") == 5.5
    assert table(values, aggregation="class mean").headline("si_sdri") == 7.0
    assert table(values, aggregation="class median").headline("si_sdri") == 6.0


def test_a_silent_output_does_not_win_and_an_unscorable_item_does_not_count():
    scores = table({"a1": 1.0, "a2": -1.0, "b1": math.nan, "b2": 2.0})
    assert scores.win_rate("si_sdri") == 0.5
    unscorable = {"id": "c", "system": "model", "si_sdri": math.nan, "reason": "silent reference"}
    absent = {
        "id": "d",
        "system": "model",
        "si_sdri": math.nan,
        "reason": "silent estimate",
        "present": False,
    }
    more = Table([*scores.rows, unscorable, absent], ("si_sdri",))
    assert more.win_rate("si_sdri") == 0.5
    crashed = {"id": "e", "system": "model", "si_sdri": math.nan, "reason": "RuntimeError: silent reference"}
    assert Table([*scores.rows, crashed], ("si_sdri",)).win_rate("si_sdri") == 0.4


def test_the_same_id_twice_is_an_error_but_two_systems_share_ids():
    row = {"id": "a", "system": "model", "reason": ""}
    with pytest.raises(DataError, match="occur twice: model/a"):
        Table([row, row], ())
    both = Table([row, {**row, "system": "input"}], ())
    assert both.systems == ("model", "input")
    assert len(both.system("input").rows) == 1


def test_a_summary_over_two_systems_at_once_is_refused():
    row = {"id": "a", "system": "model", "snr": 1.0, "reason": ""}
    both = Table([row, {**row, "system": "input"}], ("snr",))
    with pytest.raises(UsageError, match="choose one"):
        both.summary("snr")
    with pytest.raises(UsageError, match="use one of model, input"):
        both.system("oracle")


def test_comparison_pairs_by_id_whatever_the_order_and_lists_what_is_missing():
    a = table({"a1": 3.0, "a2": 4.0, "b1": 5.0, "only-a": 0.0})
    b = table({"b1": 3.0, "only-b": 9.0, "a2": 3.0, "a1": 2.0})
    result = compare(a, b, "si_sdri")
    assert (result.difference.n, result.difference.win_rate) == (3, 1.0)
    assert result.difference.mean == pytest.approx(4 / 3)
    assert result.only_in_a == ("only-a",)
    assert result.only_in_b == ("only-b",)
    turned = Table(a.rows[::-1], a.metrics)
    assert compare(turned, b, "si_sdri") == result


def test_comparison_counts_pairs_with_nan():
    result = compare(table({"a": 1.0, "b": math.nan}), table({"a": 0.0, "b": 1.0}), "si_sdri")
    assert (result.difference.n, result.difference.n_nan) == (1, 1)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_written_table_reads_back_the_same(tmp_path, suffix):
    before = table(
        {"a1": 1.25, "a2": math.nan}, definition="SI-SDRi", aggregation="class mean", trained_on=("si_sdri",)
    )
    path = before.write(tmp_path / f"scores{suffix}")
    after = Table.read(path)
    assert after.metrics == before.metrics
    np.testing.assert_array_equal(after.column("si_sdri"), before.column("si_sdri"))
    assert [row["reason"] for row in after.rows] == ["", "silent estimate"]
    if suffix == ".json":
        assert (after.definition, after.aggregation, after.trained_on) == (
            "SI-SDRi",
            "class mean",
            ("si_sdri",),
        )


def test_json_is_strict_and_carries_cards_and_summaries(tmp_path):
    path = table({"a1": 1.0, "a2": math.nan}).write(tmp_path / "scores.json")
    document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["rows"][1]["si_sdri"] is None
    assert document["summary"]["model"]["si_sdri"]["n_nan"] == 1
    assert document["summary"]["model"]["si_sdri"]["win_rate"] == 0.5
    assert document["cards"][0]["unit"] == "dB"


def test_csv_has_every_column_of_every_row(tmp_path):
    rows = [
        {"id": "a", "system": "m", "snr": 1.0, "reason": ""},
        {"id": "b,", "system": "m", "extra": "x", "reason": "é"},
    ]
    path = Table(rows, ("snr",)).write(tmp_path / "scores.csv")
    with path.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["id", "system", "snr", "reason", "extra"]
    assert read[1] == {"id": "b,", "system": "m", "snr": "", "reason": "é", "extra": "x"}


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = table({"a": 1.0}).write(tmp_path / "scores.json")
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("auralign.evaluation.table.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        table({"a": 2.0}).write(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_unknown_suffix_and_damaged_files_are_clear_errors(tmp_path):
    with pytest.raises(UsageError, match=r"use \.json"):
        table({"a": 1.0}).write(tmp_path / "scores.xlsx")
    for text in ("{", '{"rows": 3}', "[]", '{"rows": [1]}', '{"rows": [], "aggregation": "mode"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match="cannot be read as a table"):
            Table.read(tmp_path / "bad.json")
    with pytest.raises(DataError, match=r"missing\.json"):
        Table.read(tmp_path / "missing.json")


def test_markdown_shows_counts_interval_marks_and_reasons():
    text = table(
        {"a": 1.0, "b": 3.0, "c": math.nan}, definition="Words.", trained_on=("si_sdri",)
    ).summary_markdown()
    assert text.startswith("Words.\n")
    assert "| model | si_sdri† | 2 | 1 | 2.00 ± 1.00 | 1.00 … 3.00 | 2.00 |" in text
    assert "- model: 1 × silent estimate" in text
