"""Evaluation of enhancers: one row per recording and system, kept rows, failures, marks, and the command itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auralign.cli import main
from auralign.errors import DataError, ModelUnavailableError, UsageError
from auralign.evaluation import enhancement, enhancement_score, enhancement_systems
from auralign.evaluation.enhancement import EnhancementConfig, run_enhancement
from auralign.evaluation.enhancement_items import SpeechItem, check_items, read_pairs
from auralign.evaluation.enhancement_page import difference_rows, markdown, mean_rows
from auralign.evaluation.enhancement_score import (
    METRICS,
    NO_REFERENCE,
    TURNED_DOWN,
    SpeechScorer,
    check_metrics,
)
from auralign.evaluation.enhancement_systems import System, open_arms, parse_arms
from auralign.metrics.contract import MetricResult

CHEAP = ("estoi", "si_sdr", "si_sdri", "spectral_features")


def items(voice, count: int = 3, name: str = "dry") -> list[SpeechItem]:
    found = []
    for n in range(count):
        clean = torch.from_numpy(voice(1.0, 120.0 + 30 * n, n))
        hiss = torch.randn(16_000, generator=torch.Generator().manual_seed(n))
        gain = clean.square().mean().sqrt() * 10 ** (-(2.5 + 5 * n) / 20)
        found.append(SpeechItem(name, f"r{n}", clean + gain * hiss, clean, 2.5 + 5 * n, f"s{n}", "hiss"))
    return found


class Halver:
    """Leaves half of the noise in, because it knows the clean speech; counts how often it is asked."""

    name, rate_hz = "halver", 16_000

    def __init__(self, known: list[SpeechItem]) -> None:
        self.known, self.asked, self.seeds = known, 0, []

    def enhance_wave(self, wave, *, steps=None, seed=0):
        self.asked += 1
        self.seeds.append(seed)
        item = next(one for one in self.known if torch.equal(one.noisy, wave[0]))
        return ((item.noisy + item.clean) / 2)[None]


@pytest.fixture
def halver(voice, monkeypatch):
    made = Halver(items(voice))
    opened = System.open
    monkeypatch.setattr(
        System, "open", lambda self, **k: made if self.place == "log-mmse" else opened(self, **k)
    )
    return made


def config(**changes) -> EnhancementConfig:
    arms = parse_arms(["noisy", "clean", "half=log-mmse"])
    return EnhancementConfig(arms=arms, **({"metrics": CHEAP} | changes))


def test_every_recording_has_one_row_for_every_system(voice, halver, tmp_path):
    result = run_enhancement(config(), items(voice), tmp_path)
    assert [(row["system"], row["id"]) for row in result.rows] == [
        (arm, f"r{n}") for arm in ("noisy", "clean", "half") for n in range(3)
    ]
    assert result.failed == 0
    by_arm = {row["system"]: row for row in result.summary["rows"]}
    assert by_arm["noisy"]["si_sdri"] == 0.0
    assert by_arm["clean"]["estoi"] == pytest.approx(1.0)
    assert by_arm["half"]["si_sdri"] == pytest.approx(20 * math.log10(2), abs=0.2)
    assert by_arm["half"]["si_sdri_ci"][0] > 5.5
    assert by_arm["half"]["times_real_time"] > 0
    assert {one["system"] for one in result.summary["comparisons"]} == {"half"}
    for name in ("rows.jsonl", "summary.json", "table.md", "report.html"):
        assert (tmp_path / name).stat().st_size > 500
    assert json.loads((tmp_path / "summary.json").read_text())["lists"] == ["dry"]


def test_finished_rows_are_kept_and_what_changed_is_scored_again(voice, halver, tmp_path):
    first = run_enhancement(config(), items(voice, 2), tmp_path)
    assert halver.asked == 2
    again = run_enhancement(config(), items(voice, 3), tmp_path)
    assert halver.asked == 3  # only the recording that is new
    assert again.rows[:2] == first.rows[:2]
    run_enhancement(config(metrics=("estoi",)), items(voice, 3), tmp_path)
    assert halver.asked == 3
    run_enhancement(config(seed=1), items(voice, 3), tmp_path)
    assert halver.asked == 6
    louder = [SpeechItem("dry", one.id, 0.5 * one.noisy, 0.5 * one.clean) for one in items(voice, 1)]
    halver.known = [*halver.known, *louder]
    run_enhancement(config(), louder, tmp_path)
    assert halver.asked == 7


def test_noise_of_an_enhancer_belongs_to_the_recording(voice, halver, tmp_path):
    run_enhancement(config(), items(voice, 3), tmp_path / "a")
    run_enhancement(config(), items(voice, 3)[::-1], tmp_path / "b")
    assert len(set(halver.seeds[:3])) == 3
    assert halver.seeds[3:] == halver.seeds[:3][::-1]


def test_an_error_is_a_row_with_a_reason_and_is_tried_again(voice, halver, tmp_path):
    whole = halver.enhance_wave

    def fails(wave, **kwargs):
        if torch.equal(wave[0], items(voice)[1].noisy):
            raise RuntimeError("no memory\nleft")
        return whole(wave, **kwargs)[:, : 9_000 if torch.equal(wave[0], items(voice)[2].noisy) else None]

    halver.enhance_wave = fails
    result = run_enhancement(config(), items(voice), tmp_path)
    bad = [row for row in result.rows if row["failed"]]
    assert [row["reason"] for row in bad] == [
        "RuntimeError: no memory left",
        "DataError: r2: the output has 9000 samples, the input 16000",
    ]
    assert all(math.isnan(row["estoi"]) for row in bad)
    assert result.failed == 2
    (difference,) = [one for one in result.summary["comparisons"] if one["metric"] == "estoi"]
    assert (difference["n"], difference["n_nan"]) == (1, 2)
    halver.enhance_wave = whole
    assert run_enhancement(config(), items(voice), tmp_path).failed == 0


def test_one_recording_that_cannot_be_scored_leaves_the_others(voice, halver, tmp_path, monkeypatch):
    def scores(**sounds):
        if torch.equal(sounds["ref"], items(voice)[1].clean):
            raise RuntimeError("broken metric")
        return MetricResult(0.5)

    monkeypatch.setattr(enhancement_score, "estoi", scores)
    result = run_enhancement(config(metrics=("estoi",)), items(voice), tmp_path)
    assert result.failed == 3
    assert [row["estoi"] for row in result.rows if not row["failed"]] == [0.5] * 6


def test_real_recordings_have_no_reference(voice, halver, tmp_path):
    real = [SpeechItem("real", one.id, one.noisy) for one in items(voice, 1)]
    result = run_enhancement(EnhancementConfig(parse_arms(["noisy", "clean"]), metrics=CHEAP), real, tmp_path)
    assert result.failed == 0
    assert [row["reason"] for row in result.rows] == [NO_REFERENCE, NO_REFERENCE]
    assert math.isnan(result.summary["rows"][0]["estoi"])


def test_listening_metrics_hear_a_loud_output_turned_down(voice):
    item = items(voice, 1)[0]
    scorer = SpeechScorer(("dnsmos_ovrl", "speaker_similarity"))
    heard = []
    scorer.__dict__["_dnsmos"] = lambda clips, rate: [
        heard.append(float(clip.abs().max())) or {"dnsmos_ovrl": MetricResult(3.0)} for clip in clips
    ]
    scorer.__dict__["_speaker"] = lambda wave: torch.nn.functional.normalize(wave[:, :256], dim=1)
    loud, kept = scorer([item.clean * 5, item.clean * 0.5], [item, item])
    assert heard == pytest.approx([0.99, 0.15], abs=1e-3)
    assert loud["dnsmos_ovrl"] == MetricResult(3.0, TURNED_DOWN)
    assert kept["dnsmos_ovrl"].reason == ""
    assert loud["speaker_similarity"].value == pytest.approx(1.0)
    scorer.loudness = "equal"
    scorer([item.clean * 5, item.clean * 0.5], [item, item])
    assert heard[2] == pytest.approx(heard[3], rel=1e-3)


def test_edges_have_a_reason_each():
    sounds = {
        "silence": torch.zeros(8000),
        "nan": torch.full((8000,), math.nan),
        "one": torch.ones(1) * 0.1,
    }
    for name, sound in sounds.items():
        item = SpeechItem("edge", name, sound.nan_to_num(0.5) + 0.01, sound.nan_to_num(0.5))
        (scores,) = SpeechScorer(CHEAP)([sound], [item])
        assert all(math.isnan(one.value) and one.reason for one in scores.values()), name


def test_metrics_that_a_model_was_trained_on_are_marked(voice, tmp_path, monkeypatch):
    card = {"trained_on": ["dnsmos_ovrl", "estoi"]}
    for n in range(2):
        folder = tmp_path / f"m{n}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes([n]))
        (folder / "card.json").write_text(json.dumps(card if n else {}))
    known = Halver(items(voice, 2))
    monkeypatch.setattr(System, "open", lambda self, **k: None if self.place == "noisy" else known)
    arms = parse_arms(["noisy", f"grpo={tmp_path / 'm0'},{tmp_path / 'm1'}@2"])
    systems = open_arms(arms)
    assert systems[2].trained_on == ("stoi", "estoi", "dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl")
    assert (systems[1].steps, systems[2].steps) == (None, 2)
    result = run_enhancement(EnhancementConfig(arms, metrics=CHEAP), items(voice, 2), tmp_path / "out")
    line = mean_rows(result.summary)[1]
    assert line["ESTOI"].endswith("†")
    assert "†" not in line["SI-SDRi, dB"]
    assert difference_rows(result.summary)[0]["ESTOI"].endswith("†")
    assert len(result.summary["comparisons"][0]["seeds"]) == 2
    (tmp_path / "m0" / "card.json").write_text('{"trained_on": ["loudness"]}')
    assert open_arms(arms)[1].trained_on == ()
    (tmp_path / "m0" / "card.json").write_text('{"trained_on": 5}')
    with pytest.raises(ModelUnavailableError, match="card is damaged"):
        open_arms(arms)


def test_vetoes_and_choice_are_reported(voice, halver, tmp_path):
    cfg = config(base="noisy", best_by="estoi")
    result = run_enhancement(cfg, items(voice), tmp_path)
    (veto,) = result.summary["vetoes"]
    assert (veto["estoi"], veto["spectral_features"], veto["pesq_wb"]) == ("safe", "safe", "not measured")
    assert result.summary["choice"][0]["choice"] == "half"
    assert "dry: half has the best ESTOI" in markdown(result.summary)
    assert "Vetoes" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["=x"], "is no arm"),
        (["a="], "is no arm"),
        (["a=noisy", "a=clean"], "two arms are called 'a'"),
        (["a=noisy,noisy"], "are the same weights"),
        (["a=gtcrn@0"], "asks for no step"),
    ],
)
def test_wrong_arms_are_said(texts, message):
    with pytest.raises(UsageError, match=message):
        open_arms(parse_arms(texts))


def test_wrong_settings_are_said(voice, tmp_path):
    with pytest.raises(UsageError, match="no arm is called 'base'"):
        run_enhancement(config(versus=("base",)), items(voice), tmp_path)
    with pytest.raises(UsageError, match="dnsmos_ovrl is not measured"):
        run_enhancement(config(base="noisy"), items(voice), tmp_path)
    with pytest.raises(UsageError, match="no speech metric is called 'pesq'"):
        check_metrics(["pesq"])
    with pytest.raises(UsageError, match="nothing to enhance"):
        check_items([])
    with pytest.raises(DataError, match="occur twice: dry/r0"):
        check_items([*items(voice, 1), *items(voice, 1)])
    with pytest.raises(DataError, match="5 noisy samples, 4 clean ones"):
        SpeechItem("dry", "a", torch.ones(5), torch.ones(4))
    with pytest.raises(UsageError, match="'folder' names no set"):
        read_pairs(["folder"])


def test_peers_named_in_the_registry_exist():
    systems = open_arms(parse_arms(list(enhancement_systems.PEERS)))
    assert [one.open().name for one in systems] == list(enhancement_systems.PEERS)
    assert METRICS[:4] == ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl", "dnsmos_p808")
    assert enhancement.AT_ONCE > 1


def test_a_frozen_list_is_read_with_what_is_known_of_its_recordings(monkeypatch):
    from types import SimpleNamespace

    from auralign.data import speech_lists
    from auralign.evaluation.enhancement_items import read_lists

    def rendered(name, speech, soundbox):
        assert (speech, soundbox) == (Path("s"), Path("b"))
        wave = np.full(800, 0.1, np.float32)
        told = {"noisy": wave, "speaker": "ann", "noise": ("rain", "bell")}
        real = (
            {"clean": None, "snr_db": None} if name == "speech-real" else {"clean": wave / 2, "snr_db": 5.0}
        )
        return [SimpleNamespace(id=f"{name}-{n}", **told, **real) for n in range(4)]

    monkeypatch.setattr(speech_lists, "load_speech_list", rendered)
    found = read_lists(["speech-dry", "speech-real"], speech=Path("s"), soundbox=Path("b"), limit=2)
    names = [(one.list, one.id, one.snr_db, one.speaker, one.noise) for one in found]
    assert names == [
        ("speech-dry", "speech-dry-0", 5.0, "ann", "rain, bell"),
        ("speech-dry", "speech-dry-2", 5.0, "ann", "rain, bell"),
        ("speech-real", "speech-real-0", None, "ann", "rain, bell"),
        ("speech-real", "speech-real-2", None, "ann", "rain, bell"),
    ]
    assert found[2].clean is None
    assert float(found[0].clean[0]) == pytest.approx(0.05)
    assert read_lists([], speech=Path("s"), soundbox=Path("b")) == []


@pytest.fixture
def pairs(voice, tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for one in items(voice, 2):
        for side, sound in (("noisy", one.noisy), ("clean", one.clean)):
            path = root / "test" / side / f"{one.id}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.asarray(sound), 16_000, subtype="FLOAT")
    return root


def test_the_command_scores_a_folder_of_pairs(pairs, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", "enhancement", "--arm", "gtcrn", "--pairs", f"sgmse={pairs}:test", "-o", str(out)]
    code = main([*command, "--metrics", "pesq_wb,estoi", "--base", "noisy", "--best-by", "estoi"])
    shown = capsys.readouterr().out
    assert code == 0
    assert "gtcrn" in shown
    assert "report.html" in shown
    summary = json.loads((out / "summary.json").read_text())
    assert [(row["list"], row["system"], row["n"]) for row in summary["rows"]] == [
        ("sgmse-test", "noisy", 2),
        ("sgmse-test", "gtcrn", 2),
    ]
    assert summary["rows"][1]["pesq_wb"] > 1
    assert summary["vetoes"][0]["system"] == "gtcrn"


def test_the_command_needs_a_folder_and_an_arm(capsys):
    assert main(["evaluate", "enhancement", "--arm", "gtcrn"]) == 2
    assert main(["evaluate", "enhancement", "-o", "x"]) == 2
    assert "-o DIR" in capsys.readouterr().err
