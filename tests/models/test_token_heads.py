"""Words as queries: what stands for learned heads, and how several texts become one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from auralign.errors import UsageError
from auralign.models.text_tokens import join_query, split_query
from auralign.models.token_heads import TokenHeads

POOLED, TOKENS, WIDTH = 5, 4, 3


def query(words: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    pooled = F.normalize(torch.randn(1, POOLED, generator=draw), dim=1)
    return join_query(pooled, torch.randn(1, words, WIDTH, generator=draw), TOKENS)[0]


@pytest.fixture
def heads() -> TokenHeads:
    return TokenHeads(pooled_dim=POOLED, tokens=TOKENS, token_dim=WIDTH)


def test_words_pass_as_they_are_and_nothing_is_learned(heads):
    raw = torch.stack([query(2), query(3, 1)])
    assert heads(raw, "text") is raw
    assert heads.dim == POOLED + TOKENS * WIDTH == raw.shape[1]
    assert not list(heads.parameters())
    assert not heads.state_dict()


@pytest.mark.parametrize("modality", ["audio", "image"])
def test_other_queries_are_refused_by_name(heads, modality):
    with pytest.raises(UsageError, match=f"takes no {modality} query"):
        heads(torch.zeros(1, heads.dim), modality)


def test_several_texts_are_their_words_in_turn_and_the_mean_sentence(heads):
    one, other = query(2), query(1, 1)
    merged = heads.merge(torch.stack([one, other]))
    pooled, tokens, valid = split_query(merged[None, None], POOLED, WIDTH)
    torch.testing.assert_close(pooled[0, 0], F.normalize((one + other)[:POOLED] / 2, dim=0))
    assert valid[0, 0].tolist() == [True, True, True, False]
    words = [*one[POOLED:].view(-1, WIDTH)[:2], other[POOLED : POOLED + WIDTH]]
    torch.testing.assert_close(tokens[0, 0, :3], torch.stack(words))


def test_words_beyond_the_rows_are_cut_from_the_end(heads):
    merged = heads.merge(torch.stack([query(3), query(3, 1)]))
    expected = torch.cat([query(3)[POOLED : POOLED + 3 * WIDTH], query(3, 1)[POOLED : POOLED + WIDTH]])
    torch.testing.assert_close(merged[POOLED:], expected)
    assert merged.shape == (heads.dim,)


def test_one_text_merges_to_itself(heads):
    torch.testing.assert_close(heads.merge(query(2)[None]), query(2))


def test_without_token_rows_only_the_mean_sentence_is_left():
    heads = TokenHeads(pooled_dim=POOLED, tokens=0, token_dim=1)
    rows = torch.stack([query(1)[:POOLED], query(1, 1)[:POOLED]])
    assert heads.dim == POOLED
    torch.testing.assert_close(heads.merge(rows), F.normalize(rows.mean(dim=0), dim=0))


def test_the_nearest_text_of_a_bank_is_chosen_by_its_sentence(heads):
    bank = torch.stack([query(2, seed) for seed in range(4)])
    asked = bank[2] + 0.05 * query(3, 9)
    asked[POOLED:] = 100 * bank[1, POOLED:]  # its words are not looked at
    assert torch.equal(heads.nearest(asked, bank), bank[2])
