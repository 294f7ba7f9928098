"""MiniLM against transformers on the same weights, on meaning, and on odd texts."""

from __future__ import annotations

import pytest
import torch

from auralign.models.minilm import MAX_TOKENS, load_minilm
from auralign.runtime import weights

TEXTS = [
    "a violin",
    "The loud vacuum cleaner of my neighbour, early in the morning!",
    "",
    "été 犬 🎻",
    "dog " * 400,
]


@pytest.fixture(scope="module")
def net():
    return load_minilm()


def test_token_vectors_equal_transformers(net):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        layer_norm_eps=1e-12,
    )
    oracle = BertModel(config).eval()
    state = {k: v for k, v in weights.tensors("minilm").items() if not k.endswith("position_ids")}
    oracle.load_state_dict(state)
    encoded = net.tokenizer.encode_batch(TEXTS)
    tokens = torch.tensor([item.ids for item in encoded])
    mask = torch.tensor([item.attention_mask for item in encoded])
    with torch.no_grad():
        theirs = oracle(tokens, attention_mask=mask).last_hidden_state
    difference = (net(tokens, mask.bool()) - theirs) * mask[..., None]
    assert difference.abs().max() < 1e-5
    pooled = (theirs * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(pooled, dim=-1)
    assert (net.encode(TEXTS) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("one", "other", "cosine"),
    [
        ("dog", "puppy", 0.80),
        ("violin music", "a cello playing", 0.63),
        ("vacuum cleaner", "a dog barking", 0.11),
    ],
)
def test_cosines_are_the_published_models(net, one, other, cosine):
    first, second = net.encode([one, other])
    assert float(first @ second) == pytest.approx(cosine, abs=0.006)


def test_every_text_gets_a_unit_vector_the_same_in_any_batch(net):
    together = net.encode(TEXTS)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(TEXTS)))
    alone = torch.cat([net.encode([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0.0)


def test_text_after_256_tokens_is_cut(net):
    start = " ".join(["dog"] * (MAX_TOKENS - 2))
    torch.testing.assert_close(net.encode([start]), net.encode([start + " violin"]), atol=1e-6, rtol=0.0)
    assert not torch.allclose(net.encode(["dog"]), net.encode(["dog violin"]), atol=1e-2)


def test_case_is_folded_and_lone_surrogates_and_no_text_are_survived(net):
    torch.testing.assert_close(net.encode(["Violin"]), net.encode(["violin"]))
    assert torch.isfinite(net.encode(["\ud800", "\x00", " \n\t"])).all()
    assert net.encode([]).shape == (0, 384)


def test_weights_are_frozen_and_no_graph_is_kept(net):
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.encode(["dog"]).requires_grad
