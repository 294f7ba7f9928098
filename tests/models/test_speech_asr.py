"""Recognisers in transformers' layout, on tiny random ones of the real classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from auralign.errors import ModelUnavailableError, UsageError
from auralign.models.speech_asr import Transcriber

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGH"]
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def add_processor(folder: Path) -> None:
    vocabulary = folder / "letters.json"
    vocabulary.write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=True), tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("ctc")
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(LETTERS), pad_token_id=0, **TINY))
    with torch.no_grad():
        model.lm_head.weight *= 200  # untrained, every frame would give one letter
    model.save_pretrained(place)
    add_processor(place)
    return place


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("whisper")
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *"abcdefgh"])}
    (place / "words.json").write_text(json.dumps(vocabulary))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(
        str(place / "words.json"), str(place / "merges.txt"), additional_special_tokens=special[1:]
    )
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=80,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 8
    model.generation_config.no_timestamps_token_id = 2
    model.save_pretrained(place)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(place)
    return place


def test_ctc_collapses_repeats_and_blanks_of_the_best_letters(ctc_folder, voice):
    transcribe = Transcriber.load(str(ctc_folder), offline=True)
    wave = torch.stack([torch.from_numpy(voice(1.0, hz, 0)) for hz in (110.0, 190.0)])
    texts = transcribe(wave)
    for sound, text in zip(wave, texts, strict=True):
        mean, std = sound.mean(), sound.std(correction=0)
        with torch.no_grad():
            best = transcribe.model(((sound - mean) / std)[None]).logits[0].argmax(-1).tolist()
        kept = [now for now, last in zip(best, [None, *best], strict=False) if now != last and now != 0]
        by_hand = "".join(" " if LETTERS[k] == "|" else LETTERS[k] for k in kept if k not in (1, 2, 3))
        assert text.split() == by_hand.split()
        assert text.strip()
    assert texts[0] != texts[1]


def test_ctc_neither_hears_the_level_nor_its_neighbours_and_takes_one_sample(ctc_folder, voice):
    transcribe = Transcriber.load(str(ctc_folder), offline=True)
    wave = torch.stack([torch.from_numpy(voice(0.5, hz, 0)) for hz in (110.0, 190.0)])
    assert transcribe(0.1 * wave) == transcribe(wave)
    assert transcribe(wave[1:]) == transcribe(wave)[1:]
    assert len(transcribe(torch.zeros(2, 1))) == 2


def test_whisper_repeats_itself_and_refuses_what_it_cannot_hear(whisper_folder, voice):
    transcribe = Transcriber.load(str(whisper_folder), offline=True)
    wave = torch.from_numpy(voice(0.5, 110.0, 0))[None].repeat(2, 1)
    first, second = transcribe(wave)
    assert first == second == transcribe(wave[:1])[0]
    assert set(first) <= set("abcdefgh")
    with pytest.raises(UsageError, match=r"30\.1 s, Whisper hears 30 s"):
        transcribe(torch.zeros(1, 481_600))


def test_a_model_without_a_trained_head_is_refused_and_not_drawn_at_random(tmp_path):
    torch.manual_seed(0)
    HubertModel(HubertConfig(vocab_size=len(LETTERS), **TINY)).save_pretrained(tmp_path)
    add_processor(tmp_path)
    with pytest.raises(ModelUnavailableError, match=r"no trained head.*lm_head"):
        Transcriber.load(str(tmp_path), offline=True)


def test_folders_that_hold_no_recogniser_are_refused(tmp_path, ctc_folder):
    with pytest.raises(ModelUnavailableError, match="cannot be loaded"):
        Transcriber.load(str(tmp_path), offline=True)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="'bert' is no recogniser"):
        Transcriber.load(str(tmp_path), offline=True)


def test_pickled_weights_are_refused(tmp_path, ctc_folder):
    for name in ("config.json", "preprocessor_config.json"):
        if (ctc_folder / name).exists():
            (tmp_path / name).write_bytes((ctc_folder / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelUnavailableError, match="cannot be loaded"):
        Transcriber.load(str(tmp_path), offline=True)


def test_without_transformers_the_error_says_what_to_install(monkeypatch, ctc_folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelUnavailableError, match=r"pip install 'auralign\[clap\]'"):
        Transcriber.load(str(ctc_folder), offline=True)
