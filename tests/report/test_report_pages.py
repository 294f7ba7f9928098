from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from auralign.audio.sound import Sound
from auralign.errors import DataError, UsageError
from auralign.report import spectrogram
from auralign.report.charts import line_chart
from auralign.report.excerpt import choose
from auralign.report.folder import write_folder_report
from auralign.report.page import ReportItem, write_report
from auralign.report.table_page import write_table_report
from auralign.runtime.run import Run

RATE_HZ = 16000


def _tone(hz=1000.0, seconds=1.0, gain=0.5, channels=1, rate_hz=RATE_HZ) -> Sound:
    wave = gain * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
    return Sound(np.repeat(wave[None], channels, axis=0).astype(np.float32), rate_hz)


def _sounds(page: str) -> list[tuple[np.ndarray, int]]:
    found = re.findall(r"data:audio/flac;base64,([^\"]+)\"", page)
    return [
        soundfile.read(io.BytesIO(base64.b64decode(text)), dtype="float32", always_2d=True) for text in found
    ]


class _Checker(HTMLParser):
    """Complains about elements that are left open or closed in the wrong order, and repeated ids."""

    void = frozenset({"meta", "img", "input", "br", "link", "path", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[key] for key in ("src", "href") if values.get(key)]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img" and not values.get("alt"):
            self.problems.append("img without alt")
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.void:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")


def _check(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    assert checker.problems == []
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert all(one.startswith(("data:", "#")) for one in checker.addresses)
    assert "http://" not in page
    assert "https://" not in page
    return checker


def test_a_tone_is_brightest_at_its_frequency():
    shown = spectrogram.picture(_tone(1000.0), width=40, height=160)
    row = int(shown.power.mean(axis=1).argmax())
    place = 1 - (row + 0.5) / 160
    hz = shown.lowest_hz * (shown.highest_hz / shown.lowest_hz) ** place
    assert hz == pytest.approx(1000.0, rel=0.04)
    expected = dict(spectrogram.frequency_ticks(shown))["1 kHz"]
    assert place == pytest.approx(expected, abs=0.01)


def test_power_follows_the_square_of_the_amplitude_and_averages_channels():
    loud = spectrogram.picture(_tone(1000.0, gain=1.0), width=20, height=120).power
    quiet = spectrogram.picture(_tone(1000.0, gain=0.5, channels=2), width=20, height=120).power
    np.testing.assert_allclose(quiet, loud / 4, rtol=1e-4, atol=1e-12)
    assert -6.0 < 10 * math.log10(loud.max()) <= 0.0


def test_a_click_is_brightest_at_its_time():
    samples = np.zeros((2, RATE_HZ), np.float32)
    samples[:, 12000] = 1.0
    shown = spectrogram.picture(Sound(samples, RATE_HZ), width=200, height=50)
    assert int(shown.power.sum(axis=0).argmax()) == pytest.approx(150, abs=2)


@pytest.mark.parametrize(("frames", "rate_hz"), [(1, 8000), (7, 192000), (16000, 100)])
def test_odd_sounds_have_pictures_too(frames, rate_hz):
    shown = spectrogram.picture(Sound(np.ones((1, frames), np.float32), rate_hz), width=30, height=20)
    image = Image.open(io.BytesIO(spectrogram.png(shown, reference=1.0)))
    assert image.size == (30, 20)
    assert np.isfinite(shown.power).all()


def test_levels_share_one_reference_and_silence_is_darkest():
    pictures = [spectrogram.picture(_tone(gain=gain), width=20, height=40) for gain in (0.5, 0.05, 0.0)]
    reference = float(pictures[0].power.max())
    images = [
        np.asarray(Image.open(io.BytesIO(spectrogram.png(one, reference=reference)))) for one in pictures
    ]
    assert images[0].max() == 255
    assert images[1].max() == pytest.approx(255 * (1 - 20 / spectrogram.RANGE_DB), abs=2)
    assert images[2].max() == 0


def test_the_colour_scale_gets_steadily_lighter():
    light = spectrogram.palette() @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) >= -1e-9).all()
    assert len(spectrogram.palette()) == 256


def test_the_page_holds_every_stem_and_needs_nothing_else(tmp_path):
    mix, violin = _tone(300, channels=2), _tone(2000, gain=0.25, channels=2)
    residual = Sound(mix.samples - violin.samples, RATE_HZ)
    item = ReportItem(
        "a <b> & 'c'.wav",
        {"mixture": mix, "vio<lin": violin, "residual": residual},
        {"presence": 0.97, "bad": math.nan, "vio<lin": {"si_sdr_db": 5.126}},
        note="note <i>",
        details={"input": {"rate_hz": 16000}},
    )
    path = write_report(tmp_path / "deep" / "r.html", "Title <&>", [item], details={"model": "omnisep-small"})
    page = path.read_text()
    _check(page)
    assert "<b> & 'c'" not in page
    assert "5.13 dB" in page
    assert "input.rate_hz" in page
    assert not list(path.parent.glob("*.tmp"))
    heard = _sounds(page)
    assert [rate for _, rate in heard] == [RATE_HZ] * 3
    for (samples, _), sound in zip(heard, (mix, violin, residual), strict=True):
        np.testing.assert_allclose(samples.T, sound.samples, atol=1 / 32768)


def test_stems_stay_in_step_and_add_up_even_when_turned_down(tmp_path):
    mix, loud = _tone(300, gain=2.0, seconds=1.0), _tone(700, gain=1.0, seconds=0.5)
    path = write_report(tmp_path / "r.html", "t", [ReportItem("x", {"mixture": mix, "short": loud})])
    page = path.read_text()
    (first, _), (second, _) = _sounds(page)
    assert first.shape == second.shape
    assert np.abs(first).max() <= 1.0
    assert "turned down by 6.0 dB" in page
    np.testing.assert_allclose(second[: RATE_HZ // 2, 0] * 2, loud.samples[0], atol=1e-3)


def test_long_sounds_become_the_part_where_the_target_is_loudest(tmp_path):
    mixture = _tone(200, seconds=60)
    target = np.zeros_like(mixture.samples)
    target[:, 40 * RATE_HZ : 45 * RATE_HZ] = 0.1
    soundfile.write(tmp_path / "t.wav", target.T, RATE_HZ, subtype="FLOAT")
    parts = [
        choose({"mixture": mixture, "dog": stem}, longest_s=10.0)
        for stem in (Sound(target, RATE_HZ), tmp_path / "t.wav")
    ]
    for part in parts:
        assert 35.0 <= part.start_s <= 40.0
        assert part.duration_s == 10.0
        assert "10.0 s of 60" not in part.note
        assert "of 60.0 s" in part.note
        np.testing.assert_array_equal(part.stems["dog"].samples.sum(), parts[0].stems["dog"].samples.sum())


def test_sounds_beyond_the_limit_are_left_out_and_it_says_so(tmp_path):
    noise = Sound(np.random.default_rng(0).uniform(-0.5, 0.5, (1, RATE_HZ)).astype(np.float32), RATE_HZ)
    items = [ReportItem(f"item {i}", {"mixture": noise}) for i in range(5)]
    page = write_report(tmp_path / "r.html", "t", items, limit_mb=0.1).read_text()
    _check(page)
    assert len(_sounds(page)) == 2
    assert page.count("Sounds are left out") == 3
    assert page.count("data:image/png") == 5
    assert page.count("<li><a href") == 5


def test_an_item_without_stems_and_a_page_without_items_are_fine(tmp_path):
    page = write_report(
        tmp_path / "r.html", "t", [ReportItem("broken.wav", {}, note="no samples")]
    ).read_text()
    _check(page)
    assert "no samples" in page
    _check(write_report(tmp_path / "e.html", "t", []).read_text())


def test_a_failed_write_leaves_the_old_page(tmp_path):
    path = write_report(tmp_path / "r.html", "old", [])
    with pytest.raises(Exception, match=r"missing\.wav"):
        write_report(path, "new", [ReportItem("x", {"mixture": tmp_path / "missing.wav"})])
    assert "old" in path.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["r.html"]


ROWS = [
    {"id": "a", "system": "ours", "si_sdri_db": 5.0, "present": True, "reason": ""},
    {"id": "b", "system": "ours", "si_sdri_db": -3.0, "present": True, "reason": ""},
    {"id": "c", "system": "ours", "si_sdri_db": math.nan, "present": False, "reason": "silent <target>"},
    {"id": "a", "system": "untrained", "si_sdri_db": 1.0, "present": True, "reason": ""},
]


def test_a_table_page_shows_every_row_the_worst_first_and_unscored_ones(tmp_path):
    page = write_table_report(
        tmp_path / "t.html", "Eval", ROWS, summary=[{"system": "ours", "items": 3}], details={"seed": 0}
    ).read_text()
    _check(page)
    items = page[page.index('id="items"') :]
    assert items.count("<tr>") == 1 + len(ROWS)
    worst = page[page.index("worst by") : page.index('id="items"')]
    assert worst.index("−3.00 dB") < worst.index("1.00 dB") < worst.index("5.00 dB")
    assert "4 rows; 1 with a value" in page
    assert "silent &lt;target&gt;" in page
    assert 'data-value="-3.0"' in items
    assert page.count('class="s1"') >= 1


def test_a_table_page_without_numbers_or_rows_is_fine(tmp_path):
    _check(write_table_report(tmp_path / "t.html", "Eval", []).read_text())
    _check(write_table_report(tmp_path / "t.html", "Eval", [{"id": "a", "reason": "x"}]).read_text())
    with pytest.raises(UsageError, match="no column"):
        write_table_report(tmp_path / "t.html", "Eval", ROWS, worst_by="nope")


def test_chart_lines_stay_inside_the_frame_and_skip_nan():
    points = [(float(i), float(i * i)) for i in range(2000)] + [(5.0, math.nan)]
    figure = line_chart("loss", {"a": points, "b": [(0.0, -1.0)]}, x_label="step")
    numbers = [float(n) for path in re.findall(r' d="M([^"]+)"', figure)[:2] for n in re.split(r"[ L]", path)]
    assert min(numbers) >= 0
    assert max(numbers) <= 360
    assert "nan" not in figure
    assert "no finite values" in line_chart("x", {"a": [(0.0, math.nan)]}, x_label="step")


def test_a_constant_curve_is_drawn():
    figure = line_chart("x", {"a": [(0.0, 2.0), (1.0, 2.0)]}, x_label="step")
    assert "nan" not in figure
    assert "<path" in figure


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 3


def test_a_run_page_has_curves_sounds_and_configuration(tmp_path):
    run = Run.create(tmp_path, Config(), "small", algorithm="omnisep")
    with run.tracker() as tracker:
        for step in range(100):
            tracker.log(step, {"train/loss": 1 / (step + 1)})
        for step in (10, 90):
            for stem in ("residual", "mixture", "violin"):
                tracker.sound(step, f"one/{stem}", _tone(step * 10).samples, RATE_HZ)
    page = write_folder_report(run.path).read_text()
    _check(page)
    assert "train/loss" in page
    assert "step 90" in page
    assert re.findall(r'aria-label="(mixture|violin|residual)"', page) == ["mixture", "violin", "residual"]
    for gone in ("metrics.jsonl", "env.json", "samples"):
        part = run.path / gone
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    _check(write_folder_report(run.path).read_text())


def test_a_folder_page_is_rebuilt_from_manifests_and_evaluations(tmp_path):
    track = tmp_path / "out" / "mix"
    track.mkdir(parents=True)
    for name in ("violin", "residual"):
        soundfile.write(track / f"{name}.wav", _tone().samples.T, RATE_HZ)
    manifest = {"input": "../../gone.wav", "stems": {"violin": "violin.wav", "residual": "residual.wav"}}
    (track / "manifest.json").write_text(json.dumps(manifest | {"scores": {"violin": {"presence": 0.5}}}))
    page = write_folder_report(tmp_path / "out").read_text()
    _check(page)
    assert len(_sounds(page)) == 2
    assert "no longer there" in page
    (track / "violin.wav").unlink()
    with pytest.raises(DataError, match=r"violin\.wav"):
        write_folder_report(tmp_path / "out")

    folder = tmp_path / "eval"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[:2]))
    kept = {
        "title": "Mine",
        "rows": [{"n": 2, "ci": [1.0, 2.5]}],
        "comparisons": [{"versus": "mixture"}],
        "seed": 0,
    }
    (folder / "summary.json").write_text(json.dumps(kept))
    page = write_folder_report(folder, tmp_path / "page.html").read_text()
    _check(page)
    assert "1.00 … 2.50" in page
    assert page.index("Summary</h2>") < page.index("Comparisons</h2>") < page.index("mixture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="nothing to report on"):
        write_folder_report(tmp_path / "empty")


def test_the_scripts_are_valid_javascript():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    folder = Path(spectrogram.__file__).parent
    for name in ("player.js", "table.js"):
        subprocess.run([node, "--check", str(folder / name)], check=True)
