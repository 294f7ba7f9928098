"""Level policies: parsing, gains, silence."""

from __future__ import annotations

import math

import pytest

from auralign.audio.level import Level
from auralign.errors import UsageError


def test_policies_are_parsed() -> None:
    assert Level.parse("keep") == Level()
    assert Level.parse("PEAK") == Level("peak", -1.0)
    assert Level.parse("lufs:-16") == Level("lufs", -16.0)


@pytest.mark.parametrize("text", ["", "loud", "keep:-3", "peak:", "peak:x", "peak:3", "lufs:nan", "rms:-20"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="level"):
        Level.parse(text)


def test_gains_reach_their_target_and_silence_stays() -> None:
    assert Level().gain_db(peak=2.0) == 0
    assert Level("peak", -1.0).gain_db(peak=0.5) == pytest.approx(5.0206, abs=1e-4)
    assert Level("lufs", -23.0).gain_db(peak=1.0, lufs=-20.0) == -3
    assert Level("peak", -1.0).gain_db(peak=0.0) == 0
    assert Level("lufs", -23.0).gain_db(peak=0.0, lufs=-math.inf) == 0
    assert Level("lufs", -23.0).gain_db(peak=0.1) == 0
