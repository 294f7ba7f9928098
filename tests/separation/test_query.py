from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auralign.batch.names import slug
from auralign.errors import AudioError, AuralignError, UsageError
from auralign.models.separator import SeparatorModel
from auralign.separation.query import Query, encode, stem_names

SOUNDS = Path(__file__).parents[1] / "fixtures" / "sounds"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Dog barking!", "dog-barking"),
        ("  a  b ", "a-b"),
        ("../../etc/passwd", "etc-passwd"),
        ("...", "query"),
        ("_-_", "query"),
        ("Größe", "größe"),
        ("u\u0308ber", "über"),
        ("猫の声", "猫の声"),
        ("🎻", "query"),
        ("a\0b\nc", "a-b-c"),
        ("\udce9t", "t"),
    ],
)
def test_slugs_are_safe_names_in_any_script(text, name):
    assert slug(text) == name


@pytest.mark.parametrize("text", ["x" * 1000, "猫" * 1000, "é" * 100, "a-" * 100])
def test_slugs_leave_room_for_a_suffix_on_every_file_system(text):
    name = slug(text)
    assert 1 <= len(name) <= 80
    assert len(name.encode()) <= 160
    assert slug(name) == name


def test_a_stem_tells_what_was_asked_for():
    assert Query(texts=("violin", "fiddle"), exclude=("speech",)).stem == "violin-and-fiddle-not-speech"
    assert Query(images=(Path("a/Dog 1.png"),)).stem == "dog-1"
    assert Query(audios=((np.zeros(3), 8000),)).stem == "example"
    assert Query(texts=("violin",), name="My stem").stem == "my-stem"


def test_queries_that_share_a_name_get_their_kind_added():
    violin = Query(texts=("violin",))
    picture, example = Query(images=("violin.png",)), Query(audios=("violin.wav",))
    other = Query(images=("b/violin.png",))
    assert stem_names([violin, picture, example, other]) == [
        "violin",
        "violin-image",
        "violin-example",
        "violin-image-2",
    ]
    assert stem_names([Query(texts=("Residual",)), Query(texts=("a!",)), Query(texts=("a?",))]) == [
        "residual-2",
        "a",
        "a-2",
    ]


@pytest.mark.parametrize(
    "queries",
    [
        [Query(texts=("violin",))] * 2,
        [Query(texts=("a",), name="x"), Query(texts=("b",), name="x")],
        [Query(texts=("a",), name="residual")],
    ],
)
def test_equal_queries_and_equal_given_names_are_refused(queries):
    with pytest.raises(UsageError, match="several stems would be called"):
        stem_names(queries)


@pytest.mark.parametrize("given", [{}, {"texts": ("",)}, {"texts": ("  \n",)}, {"exclude": ("speech",)}])
def test_queries_that_name_no_sound_are_refused(given):
    with pytest.raises(UsageError):
        Query(**given)
    with pytest.raises(UsageError, match="empty"):
        Query(texts=("a",), exclude=(" ",))


def test_a_text_query_is_a_unit_vector_of_the_models_space(tiny):
    found = encode(tiny, Query(texts=("violin",)))
    assert found.space == tiny.space
    assert found.vector.norm() == pytest.approx(1.0, abs=1e-5)


def test_several_queries_combine_to_the_direction_of_their_mean(tiny):
    one, two = (encode(tiny, Query(texts=(text,))).vector for text in ("violin", "a dog barking"))
    both = encode(tiny, Query(texts=("violin", "a dog barking"))).vector
    assert torch.allclose(both, torch.nn.functional.normalize(one + two, dim=0), atol=1e-5)


def test_a_negative_query_moves_away_from_it(tiny):
    wanted, unwanted = (encode(tiny, Query(texts=(text,))).vector for text in ("violin", "speech"))
    moved = encode(tiny, Query(texts=("violin",), exclude=("speech",))).vector
    expected = torch.nn.functional.normalize(1.5 * wanted - 0.5 * unwanted, dim=0)
    assert torch.allclose(moved, expected, atol=1e-5)
    free = encode(tiny, Query(texts=("violin",), exclude=("speech",), strength=0.0)).vector
    assert torch.allclose(free, wanted, atol=1e-5)


def test_query_aug_takes_the_nearest_phrase_seen_in_training(tiny):
    model = SeparatorModel("small", dict(tiny.options), phrases=("violin", "dog barking"))
    model.backbones = tiny.backbones
    bank = [query.vector for query in model.text_queries(model.phrases)]
    found = encode(model.eval(), Query(texts=("violins",), augment=True)).vector
    assert any(torch.allclose(found, one, atol=1e-6) for one in bank)


def test_pictures_and_examples_are_vectors_of_the_same_space(tiny):
    for query in (
        Query(images=(SOUNDS / "violin.png",)),
        Query(audios=(SOUNDS / "crow.flac",)),
        Query(audios=(SOUNDS / "rooster.ogg",), images=(SOUNDS / "rooster.png",), texts=("rooster",)),
    ):
        found = encode(tiny, query)
        assert found.vector.shape == (256,)
        assert found.vector.norm() == pytest.approx(1.0, abs=1e-5)
        assert found.space == tiny.space


def test_an_example_may_be_any_rate_and_channels(tiny):
    samples, rate_hz = soundfile.read(SOUNDS / "crow.flac", dtype="float32")
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    file = encode(tiny, Query(audios=((mono, rate_hz),))).vector
    doubled = encode(tiny, Query(audios=((np.stack([mono, mono]), rate_hz),))).vector
    assert torch.allclose(file, doubled, atol=1e-5)


@pytest.mark.parametrize("samples", [np.zeros(16000, np.float32), np.full(16000, 1e-7, np.float32)])
def test_a_silent_example_is_refused(samples, tiny):
    with pytest.raises(AudioError, match="the example is silent"):
        encode(tiny, Query(audios=((samples, 16000),)))


def test_missing_and_broken_query_files_are_refused_by_name(tiny, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    for query in (
        Query(images=(tmp_path / "gone.png",)),
        Query(images=(tmp_path / "broken.png",)),
        Query(audios=(str(tmp_path / "gone.wav"),)),
        Query(audios=(tmp_path / "broken.wav",)),
    ):
        with pytest.raises(AuralignError, match=r"gone|broken"):
            encode(tiny, query)


@pytest.mark.parametrize("text", ["x" * 20_000, "猫の声", "🎻", "\udce9", "violin\0", "word " * 5000])
def test_any_text_is_a_query(text, tiny):
    assert torch.isfinite(encode(tiny, Query(texts=(text,))).vector).all()


def test_queries_of_another_model_are_refused(tiny):
    other = SeparatorModel("small", dict(tiny.options)).eval()
    other.backbones = tiny.backbones
    with pytest.raises(UsageError, match="another encoder version"):
        tiny.combine([encode(other, Query(texts=("violin",)))])


def test_what_describes_a_query_is_plain():
    query = Query(
        texts=("a",), images=(Path("p.png"),), audios=((np.zeros(2), 8000), "x.wav"), exclude=("b",)
    )
    assert query.describe() == {
        "texts": ["a"],
        "images": ["p.png"],
        "audios": ["<array>", "x.wav"],
        "exclude": ["b"],
        "strength": 0.5,
        "augment": False,
    }
