"""Captions for mixtures whose sounds are known: wordings of each class, in sentences that say "at once"."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from auralign.errors import DataError

_MASS_WORDS = """
    aircraft applause birdsong brass breakbeat burning cash cattle chatter children clapping crockery
    cutlery drums fireworks gas gunfire hail hubbub insects iron laughter machinery metal money music noise
    paper people percussion playing poultry rain rainfall sheep shooting someone something speech static
    strings strumming surf thunder traffic typing voices water wind wood
"""
_MASS = frozenset(_MASS_WORDS.split())
_DETERMINERS = {"a", "an", "the", "two", "three", "some", "several", "someone", "something", "people"}
_SINGULAR_S = ("ss", "us", "is")
_NAMES = {"tux", "eddie"}
_WORDING = re.compile(r"[a-z][a-z'\- ]*[a-z]")
_MOST_WORDS = 6
_CLAUSE_SHARE = 0.4
_OWN_SHARE = 0.5
# Words of file names that say what a game does with the sound, not what it is.
_OF_GAMES = {
    "loop",
    "select",
    "death",
    "dead",
    "attack",
    "die",
    "trained",
    "idle",
    "hit",
    "perc",
    "elec",
    "drum",
}

_PHRASE_FRAMES: Mapping[int, tuple[str, ...]] = {
    2: (
        "{0} and {1}",
        "{0} with {1}",
        "{0} over {1}",
        "{0} along with {1}",
        "{0} together with {1}",
        "{0} and {1} at the same time",
        "{0} with {1} in the background",
        "the sound of {0} and {1}",
        "the sounds of {0} and {1}",
        "someone hears {0} and {1}",
        "there is {0} with {1}",
    ),
    3: (
        "{0}, {1} and {2}",
        "{0}, {1}, and {2}",
        "{0} and {1} with {2}",
        "{0} with {1} and {2}",
        "{0} over {1} and {2}",
        "the sound of {0}, {1} and {2}",
        "someone hears {0}, {1} and {2}",
        "{0} and {1} with {2} in the background",
    ),
    4: (
        "{0}, {1}, {2} and {3}",
        "{0}, {1}, {2}, and {3}",
        "{0} and {1} with {2} and {3}",
        "{0}, {1} and {2} over {3}",
        "the sound of {0}, {1}, {2} and {3}",
        "someone hears {0}, {1}, {2} and {3}",
    ),
}
_CLAUSE_FRAMES: Mapping[int, tuple[str, ...]] = {
    2: ("{0} while {1}", "{0} as {1}", "{0} and {1}", "while {0}, {1}", "as {0}, {1}"),
    3: ("{0} while {1} and {2}", "{0} as {1} and {2}", "{0}, {1} and {2}", "as {0}, {1} and {2}"),
    4: ("{0} and {1} while {2} and {3}", "{0}, {1} and {2} as {3}", "as {0}, {1}, {2} and {3}"),
}


@dataclass(frozen=True)
class Caption:
    """A sentence about several sounds at once.

    Args:
        text: The sentence.
        intended: The part of it that names each sound, in the order of the sounds.
    """

    text: str
    intended: tuple[str, ...]


def wordings(texts: Sequence[str]) -> tuple[str, ...]:
    """Keep the texts of a class that can stand in a sentence, with articles.

    Left out are names of one game's characters, whole sentences about a picture, and lone participles, which
    name no source ("walking").

    >>> wordings(["dog barking", "barking dogs", "walking", "eddie the helicopter", "remember to flush!"])
    ('a dog barking', 'barking dogs')
    """
    kept = []
    for text in texts:
        tokens = text.split()
        lone = len(tokens) == 1 and text.endswith("ing")
        if not _WORDING.fullmatch(text) or len(tokens) > _MOST_WORDS or _NAMES & set(tokens) or lone:
            continue
        kept.append(with_article(text))
    return tuple(dict.fromkeys(kept))


def with_article(text: str) -> str:
    """Put "a" or "an" before what can be counted and is one.

    >>> [with_article(text) for text in ("accordion", "dog barking", "footsteps", "running water")]
    ['an accordion', 'a dog barking', 'footsteps', 'running water']
    """
    tokens = text.split()
    if tokens[0] in _DETERMINERS or _many(_head(tokens)):
        return text
    return f"{'an' if tokens[0][0] in 'aeiou' else 'a'} {text}"


def file_description(source_path: str, texts: Sequence[str]) -> str:
    """Read what the name of a recording says of it, if it ends in a word that its class is called by.

    >>> file_description("sounds/opensfx.cat/Heavy wind.wav", ["wind", "howling wind"])
    'heavy wind'
    >>> file_description("sounds/wind_07.ogg", ["wind"]), file_description("sounds/alert.ogg", ["wind"])
    ('', '')
    """
    stem = source_path.split(" and ")[0].rsplit("/", 1)[-1].rsplit(".", 1)[0]
    stem = re.sub(r"([a-z])([A-Z])", r"\1 \2", stem).lower()
    tokens = re.findall(r"[a-z]+", stem)
    called = {token for text in texts for token in text.split()} - _DETERMINERS
    if not 2 <= len(tokens) <= 4 or tokens[-1] not in called or min(map(len, tokens)) < 3:
        return ""
    return (
        ""
        if _OF_GAMES & set(tokens) or any(token.endswith(("est", "med")) for token in tokens)
        else " ".join(tokens)
    )


def as_clause(phrase: str, kind: str) -> str:
    """Turn a wording into a clause with a verb.

    >>> as_clause("a dog barking", "event"), as_clause("footsteps", "event"), as_clause("a harp", "instrument")
    ('a dog is barking', 'footsteps are heard', 'a harp is playing')
    """
    tokens = phrase.split()
    if len(tokens) > 2 and tokens[0] in ("a", "an") and _many(tokens[-1]) and tokens[-1] not in _MASS:
        return phrase  # "a horse whinnies" has its verb
    head = _head(tokens)
    plural = head.endswith("s") and not head.endswith(_SINGULAR_S) and _many(head)
    verb = "are" if plural or head in ("people", "children", "cattle", "sheep") else "is"
    for place in range(1, len(tokens)):
        if _participle(tokens[place]) and tokens[place - 1] == head != "someone":
            if tokens[place] == "playing" and tokens[0] not in _DETERMINERS:
                return f"{with_article(head if place == 1 else ' '.join(tokens[:place]))} is playing"
            return " ".join([*tokens[:place], verb, *tokens[place:]])
    if tokens[0] in ("someone", "something") and len(tokens) > 1:
        return " ".join([tokens[0], "is", *tokens[1:]])
    return f"{phrase} {verb} {'playing' if kind == 'instrument' and verb == 'is' else 'heard'}"


def write_caption(
    labels: Sequence[str],
    classes: Mapping[str, Any],
    rng: np.random.Generator,
    descriptions: Sequence[str] = (),
) -> Caption:
    """Write a sentence that names one sound of each class, in their order.

    A text that is the name of another class is not used.

    Args:
        labels: Classes; at least two.
        classes: ``classes.json`` of a corpus: ``texts`` and ``kind`` of every class.
        rng: Chooses wordings and the sentence.
        descriptions: What is known of each sound itself, empty where nothing is; used for every second one.

    Raises:
        DataError: There is no sentence for that many sounds, or a class has no usable text.
    """
    if len(labels) not in _PHRASE_FRAMES:
        raise DataError(f"there is no caption for {len(labels)} sounds", hint="2, 3 or 4 sounds")
    chosen = []
    for label, own in itertools.zip_longest(labels, descriptions, fillvalue=""):
        texts = [label, *classes[label]["texts"]]
        choices = wordings([text for text in texts if text == label or _bare(text) not in classes])
        if not choices:
            raise DataError(f"the class {label!r} has no text that fits a caption", where="classes.json")
        wording = choices[int(rng.integers(len(choices)))]
        chosen.append(with_article(own) if own and rng.random() < _OWN_SHARE else wording)
    frames = _PHRASE_FRAMES[len(labels)]
    if rng.random() < _CLAUSE_SHARE:
        frames = _CLAUSE_FRAMES[len(labels)]
        chosen = [as_clause(text, classes[label]["kind"]) for text, label in zip(chosen, labels, strict=True)]
    text = frames[int(rng.integers(len(frames)))].format(*chosen)
    return Caption(text[0].upper() + text[1:], tuple(chosen))


def _bare(text: str) -> str:
    """Leave the article out, to compare with names of classes."""
    return re.sub(r"^(?:an?|the) ", "", text)


def _head(tokens: Sequence[str]) -> str:
    """The noun that decides number: before "of" or a participle with more behind it, else the last word."""
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else "a"
        if before in ("a", "an", "the") or (before.endswith("ic") and before != "music"):
            continue
        if token in ("of", "on", "in", "at", "to", "from") or _participle(token):
            return tokens[place - 1]
    return tokens[-1]


def _participle(token: str) -> bool:
    return len(token) > 4 and token.endswith("ing") and token not in ("something", "string", "lightning")


def _many(noun: str) -> bool:
    return noun in _MASS or (noun.endswith("s") and not noun.endswith(_SINGULAR_S))
