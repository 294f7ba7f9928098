from __future__ import annotations

import numpy as np
import pytest

from auralign.data.captions import as_clause, file_description, with_article, wordings, write_caption
from auralign.data.phrases import clauses
from auralign.errors import DataError

CLASSES = {
    "dog barking": {"kind": "event", "texts": ["barking dogs", "a dog barks", "a puppy yapping"]},
    "accordion": {"kind": "instrument", "texts": ["an accordion", "accordion music", "accordion playing"]},
    "water flowing": {"kind": "event", "texts": ["running water", "a stream", "dog barking"]},
    "electric guitar": {"kind": "instrument", "texts": ["jazz guitar", "someone playing guitar"]},
    "acoustic guitar": {"kind": "instrument", "texts": ["an electric guitar", "guitar music"]},
    "mute": {"kind": "event", "texts": ["tap!"]},
    "walking": {"kind": "event", "texts": ["remember to (wash) hands", "eddie the helicopter"]},
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("oboe", "an oboe"),
        ("bass drum", "a bass drum"),
        ("electric bass", "an electric bass"),
        ("chorus", "a chorus"),
        ("rotor blades", "rotor blades"),
        ("speech of a man", "speech of a man"),
        ("someone walking", "someone walking"),
        ("the sea", "the sea"),
        ("thunder", "thunder"),
        ("a dog barks", "a dog barks"),
    ],
)
def test_only_what_can_be_counted_and_is_one_has_an_article(text: str, said: str) -> None:
    assert with_article(text) == said
    assert with_article(said) == said


@pytest.mark.parametrize(
    ("phrase", "clause"),
    [
        ("a bell ringing", "a bell is ringing"),
        ("a tolling bell", "a tolling bell is heard"),
        ("voices singing together", "voices are singing together"),
        ("people talking", "people are talking"),
        ("water flowing", "water is flowing"),
        ("a horse whinnies", "a horse whinnies"),
        ("someone playing the piano", "someone is playing the piano"),
        ("a lightning strike", "a lightning strike is heard"),
        ("a trumpet of an elephant", "a trumpet of an elephant is heard"),
        ("birds", "birds are heard"),
    ],
)
def test_a_clause_has_one_verb_that_agrees(phrase: str, clause: str) -> None:
    assert as_clause(phrase, "event") == clause


def test_an_instrument_plays() -> None:
    assert as_clause("a double bass", "instrument") == "a double bass is playing"
    assert as_clause("accordion playing", "instrument") == "an accordion is playing"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a/opensfx.cat/Heavy wind.wav", "heavy wind"),
        ("a/heavyWind_03.ogg and 2 more", "heavy wind"),
        ("a/wind_loop.ogg", ""),
        ("a/wind.ogg", ""),
        ("a/loop_wind.ogg", ""),
        ("a/my_wind.ogg", ""),
        ("", ""),
    ],
)
def test_a_file_name_speaks_only_when_it_ends_in_the_sound(path: str, said: str) -> None:
    assert file_description(path, ["wind", "a howling wind"]) == said


@pytest.mark.parametrize("sounds", [2, 3, 4])
def test_captions_say_every_sound_once_and_in_order(sounds: int) -> None:
    rng = np.random.default_rng(sounds)
    labels = ["dog barking", "accordion", "water flowing", "electric guitar"][:sounds]
    seen = set()
    for _ in range(200):
        caption = write_caption(labels, CLASSES, rng)
        places = [caption.text.casefold().index(text.casefold()) for text in caption.intended]
        assert places == sorted(places)
        assert caption.text[0].isupper()
        assert not any(f" {word} " in f" {caption.text} " for word in ("before", "after", "then", "followed"))
        assert len(clauses(caption.text)) == sounds
        seen.add(caption.text)
    assert len(seen) > 100


def test_a_text_that_names_another_class_is_not_used() -> None:
    rng = np.random.default_rng(0)
    said = {write_caption(["acoustic guitar", "mute"], CLASSES, rng).intended[0] for _ in range(60)}
    assert not any("electric" in text for text in said)
    assert any("guitar music" in text for text in said)


def test_what_is_known_of_a_sound_itself_is_used_for_about_half() -> None:
    rng = np.random.default_rng(0)
    used = [
        "porsche" in write_caption(["dog barking", "mute"], CLASSES, rng, ["", "porsche engine"]).text
        for _ in range(400)
    ]
    assert 0.4 < np.mean(used) < 0.6


def test_the_same_seed_gives_the_same_sentence() -> None:
    one, two = (
        [write_caption(["accordion", "mute"], CLASSES, rng).text for _ in range(20)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert one == two


def test_captions_that_cannot_be_written_are_errors() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="no caption for 5 sounds"):
        write_caption(["mute"] * 5, CLASSES, rng)
    with pytest.raises(DataError, match="'walking' has no text"):
        write_caption(["mute", "walking"], CLASSES, rng)


def test_wordings_are_different_and_speakable() -> None:
    texts = ["dog", "a dog", "dog's bark", "Dog", "walking", "one two three four five six seven", ""]
    assert wordings(texts[:-1]) == ("a dog", "a dog's bark")
