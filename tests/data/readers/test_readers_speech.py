"""Speech enhancement sets in their published layouts, with what each of them hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auralign.cli import main
from auralign.data.readers import (
    READERS,
    read_dns2020,
    read_librimix,
    read_sgmse,
    read_voicebank_demand,
    read_wham,
)
from auralign.data.readers.measure import measure
from auralign.data.readers.speech import SPEECH_READERS, load_pairs, read_pair
from auralign.data.readers.speech_base import SpeechPair
from auralign.errors import AudioError, DataError, UsageError


def tone(path: Path, *, rate: int = 16000, frames: int = 1600, gain: float = 0.1, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = gain * np.sin(2 * np.pi * 440 * np.arange(frames) / rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate, subtype="FLOAT")
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- VoiceBank-DEMAND


def voicebank(root: Path, *, rate: int = 48000, suffix: str = "") -> Path:
    names = {"testset": ("p232_001", "p257_010"), "trainset_28spk": ("p226_001", "p227_002")}
    for part, stems in names.items():
        for stem in stems:
            for kind in ("clean", "noisy"):
                tone(root / f"{kind}_{part}_wav{suffix}" / f"{stem}.wav", rate=rate, frames=rate // 10)
    write(root / "log_testset.txt", "p232_001 bus 17.5\r\n\r\np257_010.wav living 2.5\r\n")
    write(root / "logfiles" / "log_trainset_28spk.txt", "p226_001 cafeteria 0\np227_002 ssn 15\n")
    write(root / "testset_txt" / "p232_001.txt", "Please call Stella.\n")
    return root


def test_voicebank_pairs_have_speaker_noise_snr_text_and_rate(tmp_path: Path) -> None:
    reading = read_voicebank_demand(voicebank(tmp_path), split="test")
    first, second = reading.pairs
    assert (first.id, first.speaker, first.noise, first.snr_db) == ("p232_001", "p232", "bus", 17.5)
    assert (first.text, second.text) == ("Please call Stella.", "")
    assert (second.noise, second.snr_db) == ("living", 2.5)
    assert (first.rate_hz, first.duration_s) == (48000, 0.1)
    assert "2 noisy recordings at 48000 Hz, read at 16000 Hz" in reading.notes
    assert str(reading.report) == "2 found, 0 missing"
    assert first.clean is not None
    assert "clean_testset_wav" in first.clean
    assert "noisy_testset_wav" in first.noisy


def test_voicebank_validation_speakers_are_part_of_the_training_folder(tmp_path: Path) -> None:
    root = voicebank(tmp_path)
    assert [(pair.id, pair.split) for pair in read_voicebank_demand(root).pairs] == [
        ("p226_001", "valid"),
        ("p227_002", "train"),
        ("p232_001", "test"),
        ("p257_010", "test"),
    ]
    reading = read_voicebank_demand(root, split="train")
    assert [pair.speaker for pair in reading.pairs] == ["p227"]
    assert reading.report.skipped == {"split valid": 1}


def test_voicebank_copies_at_16_khz_are_read_where_originals_are_absent(tmp_path: Path) -> None:
    reading = read_voicebank_demand(voicebank(tmp_path, rate=16000, suffix="_16k"), split="test")
    assert [pair.rate_hz for pair in reading.pairs] == [16000, 16000]
    assert "2 noisy recordings at 16000 Hz" in reading.notes


def test_voicebank_archive_in_a_folder_of_its_own_name_and_hidden_files(tmp_path: Path) -> None:
    for kind in ("clean", "noisy"):
        folder = tmp_path / f"{kind}_testset_wav" / f"{kind}_testset_wav"
        tone(folder / "p232_001.wav")
        write(folder / "._p232_001.wav", "resource fork")
    reading = read_voicebank_demand(tmp_path)
    assert [pair.id for pair in reading.pairs] == ["p232_001"]
    assert any("no log_testset.txt" in note for note in reading.notes)


def test_voicebank_halves_and_listed_files_that_are_absent_count_as_missing(tmp_path: Path) -> None:
    root = voicebank(tmp_path)
    (root / "clean_testset_wav" / "p257_010.wav").unlink()
    tone(root / "clean_testset_wav" / "p257_011.wav")
    with (root / "log_testset.txt").open("a") as file:
        file.write("p257_012 cafe 7.5\n")
    reading = read_voicebank_demand(root, split="test")
    assert {item.id: item.reason.split(" of ")[0] for item in reading.missing} == {
        "p257_010": "a clean file",
        "p257_011": "a noisy file",
        "p257_012": str(root / "noisy_testset_wav" / "p257_012.wav"),
    }
    assert next(item for item in reading.missing if item.id == "p257_012").where.endswith("log_testset.txt:4")


@pytest.mark.parametrize("line", ["p232_002 bus", "p232_002 bus loud", "p232_002 bus nan", "p232_001 bus 5"])
def test_voicebank_log_lines_that_say_nothing_or_twice_are_errors(tmp_path: Path, line: str) -> None:
    root = voicebank(tmp_path)
    with (root / "log_testset.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"log_testset\.txt:4: "):
        read_voicebank_demand(root)


def test_voicebank_with_one_archive_only_is_an_error(tmp_path: Path) -> None:
    tone(tmp_path / "noisy_testset_wav" / "p232_001.wav")
    with pytest.raises(DataError, match="noisy_testset_wav has no clean_testset_wav beside it"):
        read_voicebank_demand(tmp_path)


# ---- DNS 2020

NOISY = "clnsp-01_fileid_9_book_00-a_snr{snr}_tl-21_fileid_{key}"


def dns(root: Path) -> Path:
    place = root / "datasets" / "test_set"
    for key, snr in ((2, "-5"), (10, "12.5")):
        tone(place / "synthetic/no_reverb/noisy" / f"{NOISY.format(key=key, snr=snr)}.wav")
        tone(place / "synthetic/no_reverb/clean" / f"clean_fileid_{key}.wav")
    tone(place / "synthetic/with_reverb/noisy/synthetic_x_fileid_2.wav")
    tone(place / "synthetic/with_reverb/clean/clean_fileid_2.wav")
    tone(place / "real_recordings/ms_realrec_a-b_1.wav")
    return root


def test_dns_pairs_by_the_last_fileid_in_numeric_order(tmp_path: Path) -> None:
    reading = read_dns2020(dns(tmp_path))
    assert [pair.id for pair in reading.pairs] == [
        "no_reverb-2",
        "no_reverb-10",
        "with_reverb-2",
        "real_recordings-ms_realrec_a-b_1",
    ]
    two, ten, reverb, real = reading.pairs
    assert two.clean is not None
    assert (Path(two.clean).name, two.snr_db) == ("clean_fileid_2.wav", -5.0)
    assert (ten.snr_db, ten.source) == (12.5, "clnsp-01_fileid_9_book_00-a")
    assert (reverb.snr_db, real.clean) == (None, None)
    notes = " | ".join(reading.notes)
    assert "1 noisy files of with_reverb do not name their SNR" in notes
    assert "with_reverb is reverberant" in notes
    assert "1 real recordings have no clean speech" in notes


def test_dns_pairs_of_unequal_length_and_without_partner_count_as_missing(tmp_path: Path) -> None:
    root = dns(tmp_path)
    folder = root / "datasets/test_set/synthetic/no_reverb"
    tone(folder / "clean" / "clean_fileid_2.wav", frames=1599)
    tone(folder / "clean" / "clean_fileid_3.wav")
    reading = read_dns2020(root, split="no_reverb")
    assert [pair.id for pair in reading.pairs] == ["no_reverb-10"]
    reasons = {item.id: item.reason for item in reading.missing}
    assert (
        "the clean speech has 1599 samples at 16000 Hz, the noisy recording 1600 at" in reasons["no_reverb-2"]
    )
    assert "a noisy file of the same key" in reasons["no_reverb-3"]
    assert len(read_dns2020(root, split="no_reverb", cut_s=1e-4).pairs) == 2


@pytest.mark.parametrize(
    ("name", "why"), [("extra.wav", "fileid_<k>"), ("clean_fileid_02.wav", "there twice")]
)
def test_dns_names_without_or_with_a_repeated_fileid_are_errors(tmp_path: Path, name: str, why: str) -> None:
    root = dns(tmp_path)
    tone(root / "datasets/test_set/synthetic/no_reverb/clean" / name)
    with pytest.raises(DataError, match=why):
        read_dns2020(root)


# ---- LibriMix

FIRST, SECOND = "4077-13754-0001_5142-33396-0065", "61-70968-0000_8455-210777-0012"


def librimix(root: Path, *, length: int = 1600) -> Path:
    base = root / "Libri2Mix" / "wav16k" / "min"
    rows = {"mix_single": [], "mix_both": []}
    for name in (FIRST, SECOND):
        for folder in ("mix_single", "mix_both", "s1", "s2", "noise"):
            tone(base / "test" / folder / f"{name}.wav")
        there = "/somewhere/else/Libri2Mix/wav16k/min/test"
        single = [name, f"{there}/mix_single/{name}.wav", f"{there}/s1/{name}.wav"]
        rows["mix_single"].append([*single, f"{there}/noise/{name}.wav", str(length)])
        both = [name, f"{there}/mix_both/{name}.wav", f"{there}/s1/{name}.wav", f"{there}/s2/{name}.wav"]
        rows["mix_both"].append([*both, f"{there}/noise/{name}.wav", str(length)])
    heads = {
        "mix_single": "mixture_ID,mixture_path,source_1_path,noise_path,length",
        "mix_both": "mixture_ID,mixture_path,source_1_path,source_2_path,noise_path,length",
    }
    for mix, lines in rows.items():
        text = "\n".join([heads[mix], *(",".join(line) for line in lines)])
        write(base / "metadata" / f"mixture_test_{mix}.csv", text + "\n")
    metrics = f"mixture_ID,source_1_SNR,noise_SNR\n{FIRST},-3.25,3.25\n{SECOND},4.5,-4.5\n"
    write(base / "metadata" / "metrics_test_mix_single.csv", metrics)
    info = f"mixture_ID,speaker_1_ID,speaker_1_sex,speaker_2_ID,speaker_2_sex\n{FIRST},4077.0,M,5142.0,F\n"
    write(root / "metadata" / "Libri2Mix" / "libri2mix_test-clean_info.csv", info)
    return root


@pytest.mark.parametrize("place", [".", "Libri2Mix"])
def test_librimix_single_gives_pairs_from_paths_of_another_machine(tmp_path: Path, place: str) -> None:
    root = librimix(tmp_path)
    reading = read_librimix(root / place)
    first, second = reading.pairs
    assert (first.id, first.speaker, first.snr_db) == (f"test/{FIRST}", "4077", -3.25)
    assert (second.speaker, second.snr_db, second.split) == ("61", 4.5, "test")
    base = root / "Libri2Mix/wav16k/min/test"
    assert first.clean is not None
    assert first.noise_audio is not None
    assert Path(first.clean).samefile(base / "s1" / f"{FIRST}.wav")
    assert Path(first.noisy).samefile(base / "mix_single" / f"{FIRST}.wav")
    assert Path(first.noise_audio).samefile(base / "noise" / f"{FIRST}.wav")
    assert "6 paths of another machine were found by their ends" in reading.notes


def test_librimix_both_gives_one_item_a_speaker_with_the_others_and_the_noise(tmp_path: Path) -> None:
    items = read_librimix(librimix(tmp_path), mix="mix_both").mixtures
    assert [item.id for item in items] == [f"{name}/s{k}" for name in (FIRST, SECOND) for k in (1, 2)]
    folders = [
        Path(path).parent.name for path in (items[1].target, *items[1].interferers, items[1].mixture or "")
    ]
    assert folders == ["s2", "s1", "noise", "mix_both"]
    assert items[0].labels == ("4077", "5142")


def test_librimix_without_lists_is_paired_by_name(tmp_path: Path) -> None:
    root = librimix(tmp_path)
    for path in (root / "Libri2Mix/wav16k/min/metadata").iterdir():
        path.unlink()
    tone(root / "Libri2Mix/wav8k/min/test/mix_single/x.wav", rate=8000)
    reading = read_librimix(root)
    assert [pair.source for pair in reading.pairs] == [FIRST, SECOND]
    assert [pair.snr_db for pair in reading.pairs] == [None, None]
    assert any("paired by name" in note for note in reading.notes)
    assert any("wav8k/min is there too" in note for note in reading.notes)


def test_librimix_files_cut_short_or_absent_count_as_missing(tmp_path: Path) -> None:
    root = librimix(tmp_path, length=1601)
    (root / "Libri2Mix/wav16k/min/test/s1" / f"{SECOND}.wav").unlink()
    with pytest.raises(DataError, match="none of the 2 sounds"):
        read_librimix(root)
    root = librimix(tmp_path)
    (root / "Libri2Mix/wav16k/min/test/s1" / f"{SECOND}.wav").unlink()
    tone(root / "Libri2Mix/wav16k/min" / f"{SECOND}.wav")
    tone(root / "Libri2Mix/wav16k/min/s1" / f"{SECOND}.wav")
    reading = read_librimix(root)
    assert len(reading.pairs) == 1
    # files of the same name in other folders are not taken for it
    assert reading.missing[0].reason.endswith(f"/s1/{SECOND}.wav")


def test_librimix_contradictions_name_the_cell(tmp_path: Path) -> None:
    root = librimix(tmp_path)
    info = root / "metadata/Libri2Mix/libri2mix_test-clean_info.csv"
    for wrong, why in (("4078.0", "4078, 5142 here, 4077, 5142 by its name"), ("4077.5", "'4077.5'")):
        write(info, f"mixture_ID,speaker_1_ID,speaker_2_ID\n{FIRST},{wrong},5142.0\n")
        with pytest.raises(DataError, match=rf"info\.csv:2: .*{why}"):
            read_librimix(root)
    info.unlink()
    listed = root / "Libri2Mix/wav16k/min/metadata/mixture_test_mix_single.csv"
    listed.write_text(listed.read_text().replace(f"{FIRST},/", f"{SECOND}x,/"))
    with pytest.raises(DataError, match=r"mixture_test_mix_single\.csv:2: column 'mixture_path'"):
        read_librimix(root)


# ---- WHAM!

WHAM = "011a0101_1.4715_20aa010f_-1.4715"


def wham(root: Path) -> Path:
    base = root / "wav16k" / "max" / "tt"
    for folder in ("mix_single", "mix_both", "mix_clean", "s1", "s2", "noise"):
        tone(base / folder / f"{WHAM}.wav")
    head = "utterance_id,noise_samples_beginning_16k,noise_samples_end_16k,target_speaker1_snr_db"
    write(root / "wham_noise/metadata/mix_param_meta_tt.csv", f"{head}\n{WHAM}.wav,0,0,-2.75\n")
    head = "utterance_id,noise_file,start_sample_16k,end_sample_16k,noise_snr"
    write(root / "wham_noise/metadata/noise_meta_tt.csv", f"{head}\n{WHAM}.wav,17_bar.wav,0,9,3.0\n")
    return root


def test_wham_takes_its_snr_from_the_list_and_not_from_the_name(tmp_path: Path) -> None:
    (pair,) = read_wham(wham(tmp_path)).pairs
    assert (pair.id, pair.snr_db, pair.speaker, pair.noise) == (f"tt/{WHAM}", -2.75, "011", "17_bar.wav")
    assert pair.clean is not None
    assert Path(pair.clean).parent.name == "s1"
    assert pair.noise_audio is not None


def test_wham_without_lists_says_what_is_unknown_and_separation_items_have_no_noise_in_clean(
    tmp_path: Path,
) -> None:
    root = wham(tmp_path)
    for path in (root / "wham_noise/metadata").iterdir():
        path.unlink()
    reading = read_wham(root, mix="mix_clean")
    assert [len(item.interferers) for item in reading.mixtures] == [1, 1]
    assert any("SNR is unknown" in note for note in reading.notes)
    assert len(read_wham(root, mix="mix_both").mixtures[0].interferers) == 2
    with pytest.raises(DataError, match="use one of 16k, 8k"):
        read_wham(root, rate="44k")


def test_wham_without_the_clean_speech_counts_as_missing(tmp_path: Path) -> None:
    root = wham(tmp_path)
    tone(root / "wav16k/max/tt/mix_single/021a0101_1_20aa010f_-1.wav")
    assert [item.id for item in read_wham(root).missing] == ["021a0101_1_20aa010f_-1"]


# ---- the plain layout


def test_sgmse_layout_pairs_equal_names(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for kind in ("clean", "noisy"):
            tone(tmp_path / split / kind / "a.wav")
    tone(tmp_path / "test" / "noisy" / "b.flac.wav")
    reading = read_sgmse(tmp_path)
    assert [pair.id for pair in reading.pairs] == ["train/a", "valid/a", "test/a"]
    assert [item.id for item in reading.missing] == ["test/b.flac"]
    tone(tmp_path / "test" / "clean" / "a.ogg.wav").rename(tmp_path / "test" / "clean" / "a.flac")
    with pytest.raises(DataError, match=r"'a' is there twice, as a\.flac and a\.wav"):
        read_sgmse(tmp_path)


def test_sgmse_layout_without_clean_speech_is_an_error(tmp_path: Path) -> None:
    tone(tmp_path / "test" / "noisy" / "a.wav")
    with pytest.raises(DataError, match="test/noisy has no test/clean beside it"):
        read_sgmse(tmp_path)


# ---- by name, and the sounds


def test_every_speech_reader_is_one_of_data_check() -> None:
    assert set(SPEECH_READERS) <= set(READERS)
    assert all(READERS[name] is reader for name, reader in SPEECH_READERS.items())


def test_data_check_says_what_is_there_and_fails_when_something_is_missing(tmp_path: Path, capsys) -> None:
    root = voicebank(tmp_path)
    assert main(["data", "check", "voicebank-demand", str(root)]) == 0
    printed = capsys.readouterr()
    assert "voicebank-demand: 4 found, 0 missing" in printed.out
    assert "4 noisy recordings at 48000 Hz, read at 16000 Hz" in printed.out + printed.err
    tone(root / "noisy_testset_wav" / "p232_001.wav", rate=48000, frames=4801)
    assert main(["data", "check", "voicebank-demand", str(root)]) == 1
    printed = capsys.readouterr()
    assert "3 found, 1 missing" in printed.out


def test_loading_is_all_or_says_what_is_missing(tmp_path: Path) -> None:
    root = voicebank(tmp_path)
    assert [pair.id for pair in load_pairs("voicebank-demand", root, "test")] == ["p232_001", "p257_010"]
    (root / "clean_testset_wav" / "p257_010.wav").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pairs are missing or damaged.*'p257_010'"):
        load_pairs("voicebank-demand", root, "test")
    assert len(load_pairs("voicebank-demand", root, "test", partial=True)) == 1
    with pytest.raises(UsageError, match="did you mean 'voicebank-demand'"):
        load_pairs("voicebank_demand", root)


def test_a_pair_is_read_at_16_khz_and_keeps_its_pitch(tmp_path: Path) -> None:
    paths = [str(tone(tmp_path / f"{gain}.wav", rate=48000, frames=9600, gain=gain)) for gain in (0.1, 0.2)]
    clean, noisy = read_pair(SpeechPair("a", noisy=paths[1], clean=paths[0]))
    assert clean is not None
    assert clean.shape == noisy.shape == (3200,)
    assert clean.dtype == noisy.dtype == torch.float32
    # 440 Hz for 0.2 s: the 88th bin of a 3,200-point transform
    assert int(torch.fft.rfft(noisy).abs().argmax()) == 88
    torch.testing.assert_close(noisy, 2 * clean, atol=1e-4, rtol=1e-4)
    want = 0.1 * torch.sin(2 * torch.pi * 440 * torch.arange(3200) / 16000)
    torch.testing.assert_close(clean[200:-200], want[200:-200], atol=1e-3, rtol=0)


def test_lengths_are_never_aligned_behind_the_users_back(tmp_path: Path) -> None:
    clean, noisy = tone(tmp_path / "c.wav", frames=1590), tone(tmp_path / "n.wav", frames=1600)
    pair = SpeechPair("a", str(noisy), str(clean))
    with pytest.raises(DataError, match=r"has 1590 samples at 16000 Hz.*cut_s=0\.0007"):
        read_pair(pair)
    sounds = read_pair(pair, cut_s=0.0007)
    assert sounds[0] is not None
    assert [len(sound) for sound in sounds if sound is not None] == [1590, 1590]
    torch.testing.assert_close(sounds[0], sounds[1])


def test_unequal_rates_cost_at_most_a_sample_and_one_sample_is_a_sound(tmp_path: Path) -> None:
    clean = tone(tmp_path / "c.wav", rate=44100, frames=4411)
    noisy = tone(tmp_path / "n.wav", rate=16000, frames=1600)
    sounds = read_pair(SpeechPair("a", str(noisy), str(clean)))
    assert [len(sound) for sound in sounds if sound is not None] == [1600, 1600]
    one = str(tone(tmp_path / "one.wav", frames=1))
    assert read_pair(SpeechPair("b", one, one))[1].shape == (1,)


def test_real_recordings_have_no_clean_sound_and_channels_must_agree(tmp_path: Path) -> None:
    stereo = str(tone(tmp_path / "s.wav", channels=2))
    mono = str(tone(tmp_path / "m.wav"))
    clean, noisy = read_pair(SpeechPair("a", stereo))
    assert clean is None
    torch.testing.assert_close(noisy, read_pair(SpeechPair("b", mono))[1])
    with pytest.raises(DataError, match="2 channels, the clean speech 1"):
        read_pair(SpeechPair("c", stereo, mono))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for kind in ("clean", "noisy"):
        tone(tmp_path / "test" / kind / "a.wav")
        tone(tmp_path / "test" / kind / "b.wav")
    (tmp_path / "test" / "clean" / "b.wav").write_bytes(b"RIFF")
    assert [item.id for item in read_sgmse(tmp_path).missing] == ["test/b"]
    reading = read_sgmse(tmp_path, headers=False)
    assert len(reading.pairs) == 2
    assert reading.pairs[0].rate_hz is None
    measured = measure(reading)
    assert [pair.rate_hz for pair in measured.pairs] == [16000]
    assert "1 files cannot be opened" in measured.notes
    tone(tmp_path / "test" / "clean" / "a.wav", frames=9)
    assert "1 pairs differ in length" in measure(read_sgmse(tmp_path, headers=False)).notes
    with pytest.raises(AudioError):
        read_pair(reading.pairs[1])
