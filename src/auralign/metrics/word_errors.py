r"""Word error rate: how many words of a text were lost, added or replaced in a transcript.

.. math:: \mathrm{WER} = \frac{S + D + I}{N}

for S substitutions, D deletions and I insertions in a cheapest alignment (Levenshtein 1966) with the N words of the
reference. It is no percentage: a transcript with many added words is beyond 1. A rate over several sentences pools
their counts, so that long sentences weigh more.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from auralign.metrics.contract import MetricResult

NO_WORDS = "the reference has no words"
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'", "`": "'"})


def normalise_words(text: str) -> tuple[str, ...]:
    """The words of a text, without what transcripts do not agree on: case, punctuation, kinds of apostrophes.

    Letters keep their accents, apostrophes inside words stay, a hyphen parts two words, and numbers are not spelt out.

    >>> normalise_words("Don't stop\u2014it's the well-known CAF\u00c9, 'he' said.")
    ("don't", 'stop', "it's", 'the', 'well', 'known', 'caf\u00e9', 'he', 'said')
    """
    folded = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).casefold()
    # letters, the marks on them, and numbers
    kept = "".join(sign if sign == "'" or unicodedata.category(sign)[0] in "LMN" else " " for sign in folded)
    words = (word.strip("'") for word in kept.split())
    return tuple(word for word in words if word)


@dataclass(frozen=True)
class WordErrors:
    """Counts of one cheapest alignment; of several, the one with the most substitutions.

    Args:
        substitutions: Words of the reference that were replaced.
        deletions: Words of the reference that are lost.
        insertions: Words that are not in the reference.
        words: Words of the reference.
    """

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def errors(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors a word of the reference; nan if it has none."""
        return self.errors / self.words if self.words else float("nan")


def word_errors(*, est: Sequence[str], ref: Sequence[str]) -> WordErrors:
    """Align two sequences of words and count what differs, in time and memory of the product of their lengths.

    Args:
        est: Words of the transcript.
        ref: Words of the reference.

    >>> word_errors(est=("the", "cat", "sat", "down"), ref=("a", "cat", "sat"))
    WordErrors(substitutions=1, deletions=0, insertions=1, words=3)
    """
    # a cell holds errors, then minus the substitutions, so that min() prefers more of them; then deletions
    above = [(j, 0, 0) for j in range(len(est) + 1)]
    for i, wanted in enumerate(ref, 1):
        row = [(i, 0, i)]
        for j, heard in enumerate(est, 1):
            wrong = int(heard != wanted)
            cost, swaps, lost = above[j - 1]
            over = (cost + wrong, swaps - wrong, lost)
            cost, swaps, lost = above[j]
            down = (cost + 1, swaps, lost + 1)
            cost, swaps, lost = row[j - 1]
            row.append(min(over, down, (cost + 1, swaps, lost)))
        above = row
    errors, swaps, deletions = above[-1]
    return WordErrors(-swaps, deletions, errors + swaps - deletions, len(ref))


def word_error_rate(*, est: str, ref: str) -> MetricResult:
    """Word error rate of a transcript against a text, both normalised; nan if the text has no words.

    >>> word_error_rate(est="The cat sat down.", ref="a cat sat").value == 2 / 3
    True
    """
    counts = word_errors(est=normalise_words(est), ref=normalise_words(ref))
    return MetricResult(counts.rate, "" if counts.words else NO_WORDS)


def pooled_word_error_rate(counts: Iterable[WordErrors]) -> float:
    """Rate over several sentences: all errors over all words.

    >>> pooled_word_error_rate([WordErrors(1, 0, 0, 1), WordErrors(0, 0, 0, 9)])
    0.1
    """
    every = list(counts)
    words = sum(one.words for one in every)
    return sum(one.errors for one in every) / words if words else float("nan")
