from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.runtime import config


@dataclasses.dataclass(frozen=True)
class Layer:
    width: int = 32
    kind: Literal["film", "gate", 3] = "film"


@dataclasses.dataclass(frozen=True)
class Recipe:
    steps: int
    rate: float = 1e-3
    name: str = "small"
    fast: bool = False
    corpus: Path = Path("corpora/soundbox")
    best: Path | None = None
    limit: int | None = 5
    label: int | str = 0
    betas: tuple[float, float] = (0.9, 0.999)
    widths: tuple[int, ...] = (1, 2)
    names: list[str] = dataclasses.field(default_factory=list)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    layer: Layer = Layer()
    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps = {self.steps} is negative; give 0 or more")


FULL = Recipe(
    steps=7,
    rate=0.1 + 0.2,
    name='quo"te\nü',
    fast=True,
    best=Path("a b"),
    limit=None,
    label="x",
    widths=(),
    names=["a"],
    weights={"sdr": -0.0, "a.b": 1e-300},
    layer=Layer(3, 3),
    layers=(Layer(), Layer(1, "gate")),
)


@pytest.mark.parametrize("cfg", [FULL, Recipe(steps=0)])
def test_a_recipe_comes_back_exactly(cfg):
    assert config.loads(config.dump(cfg, algorithm="omnisep"), Recipe) == cfg


@given(st.floats(allow_nan=False), st.integers(-(2**62), 2**62), st.text())
def test_every_number_and_text_comes_back_exactly(rate, width, name):
    cfg = Recipe(steps=1, rate=rate, name=name, layer=Layer(width))
    back = config.loads(config.dump(cfg), Recipe)
    assert back == cfg
    assert math.copysign(1, back.rate) == math.copysign(1, rate)


def test_an_unknown_key_names_the_nearest_one_and_the_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("steps = 1\n[layer]\nwidht = 3\n")
    with pytest.raises(UsageError, match=r"r\.toml: unknown key 'layer\.widht'.*did you mean 'layer\.width'"):
        config.load(path, Recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 1.5", "steps = 1.5 does not fit: expected a whole number"),
        ("steps = true", "expected a whole number"),
        ("steps = 1\nfast = 1", "fast = 1 does not fit: expected true or false"),
        ("steps = 1\nrate = '1'", "rate = '1' does not fit: expected a number"),
        ("steps = 1\nname = 3", "expected a text"),
        ("steps = 1\nbetas = [1.0]", "expected an array of 2 values"),
        ("steps = 1\nwidths = [1, 'a']", r"widths\.1 = 'a'"),
        ("steps = 1\nwidths = 1", "expected an array"),
        ("steps = 1\nlayer = 1", "expected a table of Layer"),
        ("steps = 1\nlayer.kind = 'fillm'", "expected one of 'film', 'gate', 3.*did you mean 'film'"),
        ("steps = 1\nlabel = 1.5", "expected int or str"),
        ("rate = 1.0", "key 'steps' is missing"),
        ("steps = -1", "steps = -1 is negative"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_what_does_not_fit_is_named_with_value_and_expectation(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        config.loads(text, Recipe, source="my.toml")
    assert str(caught.value).startswith("my.toml")
    assert caught.value.exit_code == 2


def test_overrides_win_and_are_read_by_the_type_of_their_key():
    words = ["steps=3", "rate=.5", "name=true", "fast=true", "best=none", "layer.width=9", "layer.kind=3"]
    cfg = config.loads("steps = 1\nbest = 'x'", Recipe, [*words, "widths=[4, 5]", "weights.sdr=2", "steps=4"])
    assert cfg == Recipe(
        steps=4, rate=0.5, name="true", fast=True, layer=Layer(9, 3), widths=(4, 5), weights={"sdr": 2.0}
    )


@pytest.mark.parametrize("word", ["steps", "=3", "a..b=3", "stpes=3", "steps.inner=3"])
def test_an_override_that_makes_no_sense_is_refused(word):
    with pytest.raises(UsageError):
        config.loads("steps = 1", Recipe, [word])


def test_loading_does_not_change_the_given_table():
    table = {"steps": 1, "layer": {"width": 2}}
    config.from_dict(table, Recipe, ["layer.width=5"])
    assert table == {"steps": 1, "layer": {"width": 2}}


def test_the_algorithm_key_is_read_and_its_absence_explained(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(config.dump(FULL, algorithm="omnisep"))
    assert config.algorithm_of(path) == "omnisep"
    path.write_text("steps = 1")
    with pytest.raises(UsageError, match="names no algorithm"):
        config.algorithm_of(path)


def test_missing_and_unreadable_recipes_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="no such recipe"):
        config.load(tmp_path / "none.toml", Recipe)
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        config.load(tmp_path / "bad.toml", Recipe)
    with pytest.raises(UsageError, match="cannot be read"):
        config.load(tmp_path, Recipe)
