"""Phrases of a caption: which single sounds a sentence names, by one of several extractors.

Learning to separate from mixtures alone needs, beside the caption of a mixture, one phrase for each sound in
it. ``published`` behaves as the splitter that BiSep released (21 connectives, one after another);
``clauses`` keeps together what is one sound and leaves out what is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from auralign.data import phrase_words as words
from auralign.data.readers.tables import read_rows
from auralign.errors import UsageError

PhraseExtractor = Callable[[str], tuple[str, ...]]
"""Turns a caption into its phrases; a caption that is not blank has at least one."""

_PUBLISHED_CUTS = (
    " and is followed by",
    " followed by ",
    " after which",
    " which is ",
    " proceeded by ",
    " at a close distance",
    " and ",
    ", ",
    " as ",
    " while ",
    " then ",
    " with ",
    " before ",
    " after ",
    " during ",
    " nearby ",
    " over ",
    " among ",
    " precedes ",
    " proceeded ",
    " which ",
)
_PUBLISHED_VETOES = (
    "on and off",
    "man and woman",
    "and is",
    "bells and a horn",
    "clanking and clunking",
    "and continuously",
)


def published(caption: str) -> tuple[str, ...]:
    """Split as BiSep's released preprocessing does, its oddities included.

    Each connective cuts what the ones before it left, as plain text; a veto protects a piece from being cut at
    " and " only; the letters "then" vanish wherever they stand. Facts from
    github.com/microsoft/BiModalAudioSeparation, preprocessing/audiocaps/parser.py.

    >>> published("A man and woman talking as a dog barks, then strengthening wind")
    ('A man and woman talking', 'A dog barks', 'Strenging wind')
    """
    pieces = [caption]
    for cut in _PUBLISHED_CUTS:
        guarded = _PUBLISHED_VETOES if cut == " and " else ()
        pieces = [
            part
            for piece in pieces
            for part in ([piece] if any(veto in piece for veto in guarded) else piece.split(cut))
        ]
    phrases = []
    for piece in pieces:
        bare = piece.strip().replace("then ", "").replace("then", "").replace(",", "")
        phrase = bare.capitalize().strip().replace("And ", "").capitalize().strip()
        if phrase:
            phrases.append(phrase)
    return tuple(phrases)


def clauses(caption: str) -> tuple[str, ...]:
    """Split where one sound ends and another begins; one phrase for each sound, none twice.

    Cuts at connectives that stand as whole words. People who share a verb stay together ("a man and a woman
    talking"), and so do verbs that share a subject ("a dog barks and growls"). Openings that name no sound
    ("the sound of", "someone hears"), closings that only say where ("in the background") and fragments that
    name nothing ("continuously", "it passes by") go. Phrases are written as the published ones: a capital,
    then small letters. Extracting from a phrase gives that phrase.

    >>> clauses("The sound of a man and a woman talking while a dog barks and growls in the background")
    ('A man and a woman talking', 'A dog barks and growls')
    >>> clauses("Rain, thunder and continuously howling wind, repeatedly")
    ('Rain', 'Thunder', 'Continuously howling wind')
    """
    done: list[str] = []
    waiting = [" ".join(caption.split())]
    while waiting:
        text = waiting.pop(0)
        parts = _once(text)
        if len(parts) == 1 and parts[0].casefold() == text.casefold():
            done.append(_written(parts[0]))
        else:
            waiting[:0] = parts
    return tuple(dict.fromkeys(phrase for phrase in done if phrase))


EXTRACTORS: Mapping[str, PhraseExtractor] = {"published": published, "clauses": clauses}
"""The extractors by name."""


def phrase_extractor(name: str) -> PhraseExtractor:
    """Look an extractor up by its name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in EXTRACTORS:
        raise UsageError(
            f"there is no phrase extractor {name!r}", hint=f"extractors: {', '.join(sorted(EXTRACTORS))}"
        )
    return EXTRACTORS[name]


@dataclass(frozen=True)
class PhraseStatistics:
    """How many phrases captions have.

    Args:
        captions: How many captions there are.
        shares: Shares of captions with 1, 2, 3, 4, and 5 or more phrases.
        mean: Mean number of phrases.
        one_word: Share of captions with a phrase of one word.
    """

    captions: int
    shares: tuple[float, float, float, float, float]
    mean: float
    one_word: float


def phrase_statistics(found: Iterable[tuple[str, ...]]) -> PhraseStatistics:
    """Count phrases over captions; all zero for no captions.

    >>> phrase_statistics([("A dog barks", "Rain"), ("A bell rings",)])
    PhraseStatistics(captions=2, shares=(0.5, 0.5, 0.0, 0.0, 0.0), mean=1.5, one_word=0.5)
    """
    rows = list(found)
    total = max(len(rows), 1)
    numbers = [len(row) for row in rows]
    one, two, three, four = (sum(n == k for n in numbers) / total for k in (1, 2, 3, 4))
    more = sum(n >= 5 for n in numbers) / total
    short = sum(any(len(phrase.split()) == 1 for phrase in row) for row in rows) / total
    return PhraseStatistics(len(rows), (one, two, three, four, more), sum(numbers) / total, short)


@dataclass(frozen=True)
class ParsedCaption:
    """A caption with its phrases.

    Args:
        file_id: Names the sound; ``<video id>_<start second>`` in AudioCaps.
        caption: The caption.
        phrases: What an extractor found in it.
    """

    file_id: str
    caption: str
    phrases: tuple[str, ...]


def write_phrases_json(path: Path, parsed: Mapping[str, ParsedCaption]) -> None:
    """Write ``{caption id: {"file_id", "caption", "sources": [phrase, ...]}}``, the published form."""
    content = {
        name: {"file_id": one.file_id, "caption": one.caption, "sources": list(one.phrases)}
        for name, one in parsed.items()
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_caption_table(path: Path, extract: PhraseExtractor) -> dict[str, ParsedCaption]:
    """Read a table of captions and extract their phrases.

    Args:
        path: CSV with a column ``caption``. A column ``audiocap_id`` names the captions (else their row does);
            ``youtube_id`` and ``start_time``, or ``file_id``, or ``file_name`` name the sounds.
        extract: Finds the phrases.

    Raises:
        DataError: The table cannot be read, has no such column, an empty caption, or an id twice.
    """
    parsed: dict[str, ParsedCaption] = {}
    for number, row in enumerate(read_rows(path, required=("caption",))):
        name = row.text("audiocap_id") if "audiocap_id" in row else str(number)
        if name in parsed:
            raise row.bad("audiocap_id", "another row has this id", hint="remove one of the two rows")
        file_id = name
        if "youtube_id" in row and "start_time" in row:
            file_id = f"{row.text('youtube_id')}_{row.text('start_time')}"
        elif column := next((one for one in ("file_id", "file_name") if one in row), ""):
            file_id = row.text(column)
        caption = row.text("caption")
        phrases = extract(caption)
        if not phrases:
            raise row.bad("caption", "no phrase was found in it", hint="write a sentence about sounds")
        parsed[name] = ParsedCaption(file_id, caption, phrases)
    return parsed


def _once(text: str) -> list[str]:
    """Cut once through; a text that cannot be cut or trimmed comes back alone, as it is."""
    bare = _trimmed(text)
    if not bare:
        return [text] if text else []
    pieces: list[str] = []
    links: list[str] = []
    start = 0
    for match in words.CONNECTIVE.finditer(bare):
        if match.start() < start or words.guarded(bare, match):
            continue
        pieces.append(bare[start : match.start()])
        links.append(" ".join(match.group().casefold().split()))
        start = match.end()
    pieces.append(bare[start:])
    joined = _joined([_trimmed(piece) for piece in pieces], links)
    kept = [piece for piece in joined if words.names_a_sound(piece)]
    return kept or [bare]


def _joined(pieces: list[str], links: list[str]) -> list[str]:
    """Put back together what was cut inside one sound."""
    result = pieces[:1]
    for link, piece in zip(links, pieces[1:], strict=True):
        before = result[-1]
        if before and piece and words.belongs_together(before, link, piece):
            result[-1] = f"{before} {link} {piece}" if link != "," else f"{before}, {piece}"
        else:
            result.append(piece)
    return result


def _trimmed(text: str) -> str:
    """Take openings, closings and stray marks away until nothing changes; what is left names the sound."""
    while True:
        shorter = words.EDGES.sub("", text)
        shorter = words.OPENING.sub("", shorter)
        ending = words.CLOSING.sub("", shorter)
        shorter = ending if ending.strip() else shorter
        if shorter == text:
            return text
        text = shorter


def _written(phrase: str) -> str:
    return re.sub(r"\s+", " ", phrase).strip().capitalize()
