"""BiSep on AudioCaps in the layout of its authors: the reader's clips train by the same code as a corpus of ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auralign.algorithms.bisep import build, prepare, update
from auralign.algorithms.training import Averager, TrainState
from auralign.data.captioned import load_captioned
from auralign.errors import DataError
from auralign.runtime.distributed import World

SOUNDS = {
    "11": ("-_a_b_c_d_e_7", "Wind and rain", ["Wind", "Rain"]),
    "22": ("7fmOlUlwoNg_20", "A dog barks as a bell rings", ["A dog barks", "A bell rings"]),
    "33": ("aaaaaaaaaaa_1", "Rattling", []),
    "44": ("bbbbbbbbbbb_2", "A man speaks then a horn", ["A man speaks", "A horn"]),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    parsed = {n: {"file_id": f, "caption": c, "sources": p} for n, (f, c, p) in SOUNDS.items()}
    (tmp_path / "parsed_all_caps.json").write_text(json.dumps(parsed))
    (tmp_path / "train_ids.csv").write_text("11\n22\n33\n")
    (tmp_path / "audio").mkdir()
    for n, (name, _, _) in SOUNDS.items():
        wave = 0.1 * np.random.default_rng(int(n)).standard_normal(9000)
        soundfile.write(tmp_path / "audio" / f"{name}.wav", wave, 16_000)
    (tmp_path / "val_ids.csv").write_text("44\n")
    return tmp_path


def test_captions_and_phrases_of_the_parsed_file_are_kept_apart(root):
    sounds = load_captioned(root, ("train",), samples=4096)
    assert [clip.captions for clip in sounds.clips] == [(SOUNDS[n][1],) for n in ("11", "22", "33")]
    assert sounds.phrases(0) == ("Wind", "Rain")
    assert sounds.phrases(2) == ("Rattling",)  # a caption without phrases is its own
    assert len(load_captioned(root, ("train", "val"), samples=4096)) == 4


def test_a_relative_folder_is_read_too(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert len(load_captioned(Path(root.name), ("train",), samples=4096)) == 3


def test_a_sound_that_is_not_there_is_counted_and_an_unknown_split_named(root, caplog):
    (root / "audio" / "aaaaaaaaaaa_1.wav").unlink()
    assert len(load_captioned(root, ("train",), samples=4096)) == 2
    assert "1 clips of train have no sound on disk" in caplog.text
    with pytest.raises(DataError, match="train-2"):
        load_captioned(root, ("train-2",), samples=4096)


def test_a_training_step_runs_on_it(root, bisep_config, tiny_bisep):
    soundfile.write(root / "audio" / "ccccccccccc_3.wav", np.sin(np.arange(9000) / 9) / 9, 16_000)
    parsed = json.loads((root / "parsed_all_caps.json").read_text())
    parsed["55"] = {"file_id": "ccccccccccc_3", "caption": "A tone", "sources": ["A tone"]}
    (root / "parsed_all_caps.json").write_text(json.dumps(parsed))
    (root / "val_ids.csv").write_text("44\n55\n")
    cfg = bisep_config(corpus=root, mixtures=("train",), held_out=("val",))
    model = build(cfg)
    mixer, teacher, watcher = prepare(cfg, model)
    before = [p.detach().clone() for p in model.parameters()]
    state = TrainState(model, Averager(model, 0.9), torch.optim.AdamW(model.parameters()))
    values = update(cfg, mixer, teacher, state, World())
    assert {"cnt", "crl", "url", "loss"} <= values.keys()
    assert np.isfinite(values["loss"])
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert np.isfinite(watcher(model)["mixtures_si_sdri"])
