"""Flat queries of a sentence vector and token states, from MiniLM and from a tiny random CLAP."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from auralign.errors import UsageError
from auralign.models.clap import ClapEncoder
from auralign.models.encoders import Backbones
from auralign.models.text_tokens import (
    CLAP_TOKENS,
    TOKEN_DIM,
    TOKENS,
    ClapTokenBackbones,
    TokenBackbones,
    join_query,
    split_query,
)

WORDS = ["<pad>", "<unk>", "a", "dog", "barks", "violin", "<s>", "</s>"]
LONG = "a violin plays while rain falls on the roof and people talk loudly near a big road with cars passing by fast"


@pytest.fixture(scope="module")
def minilm() -> TokenBackbones:
    return TokenBackbones()


def test_a_query_is_minilms_vector_then_its_token_states(minilm):
    flat = minilm.texts(["a dog barks", LONG])
    assert flat.shape == (2, minilm.dims["text"]) == (2, 384 + 24 * 384)
    pooled, tokens, valid = split_query(flat[None], TOKEN_DIM, TOKEN_DIM)
    torch.testing.assert_close(pooled[0], Backbones().texts(["a dog barks", LONG]), atol=1e-6, rtol=1e-5)
    assert valid[0].sum(dim=1).tolist() == [6, TOKENS], "[CLS] a dog bark ##s [SEP], and a longer one cut"
    model = minilm.minilm
    ids = torch.tensor([model.tokenizer.encode_batch(["a dog barks"])[0].ids])
    with torch.no_grad():
        states = model(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    torch.testing.assert_close(tokens[0, 0, :6], states, atol=1e-5, rtol=1e-4)
    assert (tokens[0, 0, 6:] == 0).all()


def test_a_texts_query_does_not_depend_on_its_neighbours(minilm):
    together, alone = minilm.texts(["rain", LONG]), minilm.texts(["rain"])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


def test_nothing_to_embed_gives_no_row_and_an_empty_text_is_refused(minilm):
    assert minilm.texts([]).shape == (0, minilm.dims["text"])
    with pytest.raises(UsageError, match="empty"):
        minilm.texts(["dog", "  "])
    assert len(minilm.probe()) == minilm.dims["text"]


def test_words_only_encoders_refuse_sounds_and_pictures():
    encoder = TokenBackbones()
    with pytest.raises(UsageError, match="no audio query"):
        encoder.audio(torch.zeros(1, 100))
    with pytest.raises(UsageError, match="no picture query"):
        encoder.images(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UsageError, match=r"a\.png"):
        encoder.read_picture("a.png")
    assert set(encoder.dims) == {"text"}


def test_split_is_the_inverse_of_join():
    pooled, states = torch.randn(2, 3), torch.randn(2, 4, 5)
    for rows in (2, 4, 6):
        flat = join_query(pooled, states, rows)
        assert flat.shape == (2, 3 + rows * 5)
        back, tokens, valid = split_query(flat[:, None], 3, 5)
        assert torch.equal(back[:, 0], pooled)
        kept = min(rows, 4)
        assert torch.equal(tokens[:, 0, :kept], states[:, :kept])
        assert valid.sum().item() == 2 * kept
    with pytest.raises(UsageError, match="does not fit"):
        split_query(torch.zeros(1, 1, 7), 3, 5)
    with pytest.raises(UsageError, match="does not fit"):
        split_query(torch.zeros(1, 1, 3), 3, 5)


# --- CLAP ---


@pytest.fixture(scope="module")
def clap() -> ClapEncoder:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    text = tower | {"vocab_size": len(WORDS), "max_position_embeddings": 90, "pad_token_id": 0}
    audio = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 1]}
    audio |= {"hidden_size": 16, "num_mel_bins": 64, "spec_size": 256}
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=10))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", WORDS.index("<s>")), ("</s>", WORDS.index("</s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=80
    )
    return ClapEncoder(model, ClapFeatureExtractor(), fast)


@pytest.fixture
def place(clap, monkeypatch) -> str:
    monkeypatch.setattr(ClapEncoder, "from_path", classmethod(lambda cls, place: clap))
    return "somewhere"


def test_a_clap_query_is_its_text_vector_then_its_last_hidden_states(clap, place):
    encoder = ClapTokenBackbones(place)
    assert encoder.spec == "clap-tokens:somewhere"
    flat = encoder.texts(["a dog barks", "violin"])
    assert flat.shape == (2, encoder.dims["text"]) == (2, 10 + CLAP_TOKENS * 16)
    pooled, tokens, valid = split_query(flat[None], 10, 16)
    torch.testing.assert_close(pooled[0], clap.embed_text(["a dog barks", "violin"]), atol=1e-5, rtol=1e-4)
    assert valid[0].sum(dim=1).tolist() == [5, 3]
    ids = torch.tensor([[6, 2, 3, 4, 7]])
    with torch.no_grad():
        states = clap.model.text_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(tokens[0, 0, :5], states[0], atol=1e-5, rtol=1e-4)


def test_the_released_clap_query_keeps_the_states_of_padding(place):
    kept, clean = ClapTokenBackbones(place, keep_padding=True), ClapTokenBackbones(place)
    assert kept.spec == "clap-padded-tokens:somewhere"
    texts = ["a dog barks", "dog " * 100]
    _, with_padding, valid = split_query(kept.texts(texts)[None], 10, 16)
    _, without, _ = split_query(clean.texts(texts)[None], 10, 16)
    assert valid.all()
    assert torch.equal(with_padding[0, 0, :5], without[0, 0, :5])
    assert torch.equal(with_padding[0, 1], without[0, 1]), "a text of 77 tokens has no padding"
    assert kept.texts([]).shape == (0, kept.dims["text"])
    with pytest.raises(UsageError, match="empty"):
        kept.texts([""])
