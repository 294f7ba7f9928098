from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign import cli
from auralign.data.phrases import (
    EXTRACTORS,
    ParsedCaption,
    clauses,
    phrase_extractor,
    phrase_statistics,
    published,
    read_caption_table,
    write_phrases_json,
)
from auralign.data.readers.audiocaps import read_phrases
from auralign.errors import DataError, UsageError

VOCABULARY = (
    "a an the dog man woman cat engine rain thunder barks growls talking laughing plays loudly and with while as "
    "over before after then followed by , . ; in background distance the sound of someone hears is are heard on "
    "off road gravel nearby it they violin music And continuously which"
)
SENTENCES = st.lists(st.sampled_from(VOCABULARY.split()), min_size=1, max_size=14).map(" ".join)


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A dog barks and is followed by thunder", ("A dog barks", "Thunder")),
        ("A man and woman talking as rain falls", ("A man and woman talking", "Rain falls")),
        ("Loud hissing on and off and a beep", ("Loud hissing on and off and a beep",)),
        ("Then a bell, then then a horn", ("Then a bell", "A horn")),
        ("A saw strengthens nearby a man", ("A saw strengs", "A man")),
        ("Wind after which Rain and a Duck", ("Wind", "Rain", "A duck")),
        ("A horn precedes laughter", ("A horn", "Laughter")),
        ("", ()),
    ],
)
def test_published_cuts_as_the_released_splitter(caption: str, phrases: tuple[str, ...]) -> None:
    assert published(caption) == phrases


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A man and a woman talking while birds chirp", ("A man and a woman talking", "Birds chirp")),
        ("A violin and a dog barking", ("A violin", "A dog barking")),
        ("A dog barks, growls and pants", ("A dog barks, growls and pants",)),
        (
            "A woman laughing and talking loudly over a radio",
            ("A woman laughing and talking loudly", "A radio"),
        ),
        ("A car driving over gravel with wind in the background", ("A car driving over gravel", "Wind")),
        ("Someone hears a flute, a drum and a bell", ("A flute", "A drum", "A bell")),
        ("A siren wails as it passes by", ("A siren wails",)),
        ("Thunder, repeatedly, and then rain", ("Thunder", "Rain")),
        ("As a harp is playing, bubbles are heard", ("A harp is playing", "Bubbles")),
        ("The sound of rain", ("Rain",)),
        ("Rain and rain with rain", ("Rain",)),
        ("An engine turning on and off", ("An engine turning on and off",)),
        ("A clock ticks. A cat meows.", ("A clock ticks", "A cat meows")),
        ("background", ("Background",)),
    ],
)
def test_clauses_cut_where_one_sound_ends(caption: str, phrases: tuple[str, ...]) -> None:
    assert clauses(caption) == phrases


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_blank_captions_have_no_phrase(name: str) -> None:
    assert phrase_extractor(name)("  \n ") == ()


@settings(deadline=None, max_examples=300)
@given(SENTENCES)
def test_clauses_of_a_caption_are_some_different_and_stable(caption: str) -> None:
    found = clauses(caption)
    assert found
    assert len(set(found)) == len(found)
    assert all(phrase.strip() == phrase != "" for phrase in found)
    for phrase in found:
        assert clauses(phrase) == (phrase,)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_any_text_is_survived(caption: str) -> None:
    assert bool(clauses(caption)) == bool(caption.strip())
    assert all(phrase == phrase.strip() for phrase in published(caption))


@settings(deadline=None, max_examples=100)
@given(SENTENCES)
def test_clauses_do_not_depend_on_spaces_or_capitals(caption: str) -> None:
    assert clauses(caption) == clauses(f"  {caption.upper()}  ".replace(" ", "  "))


def test_statistics_count_captions_not_phrases() -> None:
    found = phrase_statistics([("A b",), ("A b", "C"), ("A b",) * 6, ("D", "E", "F", "G")])
    assert found.captions == 4
    assert found.shares == (0.25, 0.25, 0.0, 0.25, 0.25)
    assert found.mean == 13 / 4
    assert found.one_word == 0.5
    assert phrase_statistics([]).mean == 0.0


def test_what_is_written_is_read_by_the_reader_of_the_published_form(tmp_path: Path) -> None:
    parsed = {"7": ParsedCaption("-a_bcdefghi_30", "Wind and Läuten", ("Wind", "Läuten"))}
    write_phrases_json(tmp_path / "p.json", parsed)
    read = read_phrases(tmp_path / "p.json")["7"]
    assert (read.key.name, read.caption, read.phrases) == (
        "-a_bcdefghi_30",
        "Wind and Läuten",
        ("Wind", "Läuten"),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_an_unknown_extractor_names_the_known() -> None:
    with pytest.raises(UsageError, match="clauses, published"):
        phrase_extractor("spacy")


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "captions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


AUDIOCAPS = (
    "audiocap_id,youtube_id,start_time,caption\n"
    '91,-a_bcdefghi,30,"A dog barks, then a bell rings and rings"\n'
    "92,Zb_cdefghij,0,Rain\n"
)


def test_the_command_writes_the_published_form_and_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, AUDIOCAPS)
    assert cli.main(["data", "phrases", str(path), "--method", "published", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["captions"] == 2
    assert shown["shares"] == [0.5, 0.0, 0.5, 0.0, 0.0]
    assert json.loads((tmp_path / "captions_phrases.json").read_text())["91"] == {
        "file_id": "-a_bcdefghi_30",
        "caption": "A dog barks, then a bell rings and rings",
        "sources": ["A dog barks", "A bell rings", "Rings"],
    }
    assert cli.main(["data", "phrases", str(path), "-o", str(tmp_path / "x.json")]) == 0
    assert "1 phrase                   50.0%" in capsys.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text())["91"]["sources"] == [
        "A dog barks",
        "A bell rings and rings",
    ]


def test_a_table_with_captions_only_names_them_by_row(tmp_path: Path) -> None:
    parsed = read_caption_table(table(tmp_path, "caption\nRain and wind\n\nA bell\n"), clauses)
    assert {name: one.phrases for name, one in parsed.items()} == {"0": ("Rain", "Wind"), "1": ("A bell",)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,text\n1,Rain\n", "no column 'caption'"),
        ("", "no rows"),
        ("caption\n", "no rows"),
        (b"caption\nR\xe4in\n", "not valid UTF-8"),
        (b"caption\nRa\x00in\n", "not text"),
        ("audiocap_id,caption\n1,Rain\n2,\n", "the cell is empty"),
        ("audiocap_id,caption\n1,Rain\n1,Wind\n", "another row has this id"),
        ("audiocap_id,caption\n1,Rain,Wind\n", "3 cells"),
    ],
)
def test_a_wrong_table_is_named_and_nothing_is_written(
    tmp_path: Path, content: str | bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, content)
    with pytest.raises(DataError, match=said):
        read_caption_table(path, clauses)
    assert cli.main(["data", "phrases", str(path)]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_caption_table(tmp_path / "none.csv", clauses)
