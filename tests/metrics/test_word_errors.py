"""Word errors: against every alignment written out, invariants, and texts that only look different."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import pytest

from auralign.metrics.contract import METRICS
from auralign.metrics.word_errors import (
    NO_WORDS,
    WordErrors,
    normalise_words,
    pooled_word_error_rate,
    word_error_rate,
    word_errors,
)


def every_alignment(est: tuple[str, ...], ref: tuple[str, ...]) -> set[tuple[int, int, int]]:
    """Substitutions, deletions and insertions of every way to turn the reference into the transcript."""

    @lru_cache(None)
    def ways(i: int, j: int) -> frozenset[tuple[int, int, int]]:
        if i == 0 and j == 0:
            return frozenset({(0, 0, 0)})
        found = set()
        if i and j:
            found |= {(s + (ref[i - 1] != est[j - 1]), d, n) for s, d, n in ways(i - 1, j - 1)}
        if i:
            found |= {(s, d + 1, n) for s, d, n in ways(i - 1, j)}
        if j:
            found |= {(s, d, n + 1) for s, d, n in ways(i, j - 1)}
        return frozenset(found)

    return set(ways(len(ref), len(est)))


SHORT = [words for length in range(4) for words in itertools.product("ab", repeat=length)]


@pytest.mark.parametrize("ref", SHORT, ids="".join)
def test_counts_are_those_of_the_cheapest_of_all_alignments(ref: tuple[str, ...]) -> None:
    for est in SHORT:
        found = word_errors(est=est, ref=ref)
        every = every_alignment(est, ref)
        least = min(sum(counts) for counts in every)
        most_swaps = max(counts[0] for counts in every if sum(counts) == least)
        assert found.errors == least
        assert (found.substitutions, found.deletions, found.insertions) in every
        assert (found.substitutions, found.words) == (most_swaps, len(ref))


def test_longer_random_texts_obey_the_metric_axioms() -> None:
    rng = np.random.default_rng(0)
    texts = [tuple(rng.choice(list("abcd"), size=rng.integers(0, 12))) for _ in range(12)]
    for one, other, third in itertools.product(texts, repeat=3):
        far = word_errors(est=one, ref=other).errors
        assert (far == 0) == (one == other)
        assert far <= word_errors(est=one, ref=third).errors + word_errors(est=third, ref=other).errors
    for one, other in itertools.product(texts, repeat=2):
        there, back = word_errors(est=one, ref=other), word_errors(est=other, ref=one)
        assert (there.substitutions, there.deletions, there.insertions) == (
            back.substitutions,
            back.insertions,
            back.deletions,
        )
        assert there.insertions - there.deletions == len(one) - len(other)


def test_a_lost_an_added_and_a_replaced_word_are_told_apart() -> None:
    ref = tuple(["please", "call", "stella", "now"])
    assert word_errors(est=("please", "stella", "now"), ref=ref) == WordErrors(0, 1, 0, 4)
    assert word_errors(est=("please", "do", "call", "stella", "now"), ref=ref) == WordErrors(0, 0, 1, 4)
    assert word_errors(est=("please", "fall", "stella", "now"), ref=ref) == WordErrors(1, 0, 0, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Please, CALL Stella.", ("please", "call", "stella")),
        ("don\u2019t  \n stop\u2014now", ("don't", "stop", "now")),
        ("\u2018he\u2019 said: \u201cno\u201d", ("he", "said", "no")),
        ("well-known", ("well", "known")),
        ("caf\u00e9 cafe\u0301", ("caf\u00e9", "caf\u00e9")),
        ("STRASSE stra\u00dfe", ("strasse", "strasse")),
        (
            "\ufb01ve 12 \u0939\u093f\u0928\u094d\u0926\u0940",
            ("five", "12", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ),
        ("' - ... '", ()),
        ("", ()),
    ],
)
def test_normalisation_drops_what_transcripts_do_not_agree_on(text: str, words: tuple[str, ...]) -> None:
    assert normalise_words(text) == words
    assert normalise_words(" ".join(words)) == words


def test_rates_have_no_ceiling_and_no_value_without_words() -> None:
    assert word_error_rate(est="Call Stella!", ref="call stella").value == 0
    assert word_error_rate(est="", ref="call stella").value == 1
    assert word_error_rate(est="a b c d", ref="x").value == 4
    nothing = word_error_rate(est="words", ref=" ... ")
    assert math.isnan(nothing.value)
    assert nothing.reason == NO_WORDS
    assert math.isnan(pooled_word_error_rate([]))
    assert not METRICS["wer"].larger_is_better


def test_pooling_weighs_sentences_by_their_words() -> None:
    counts = [WordErrors(1, 1, 0, 2), WordErrors(0, 0, 1, 8)]
    assert pooled_word_error_rate(counts) == 0.3
    assert sum(one.rate for one in counts) / 2 == 0.5625
