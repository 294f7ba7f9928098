"""Frozen dataclasses as TOML recipes, and back, without losing a bit.

A recipe is the dataclass written out: one key per field, one table per nested dataclass. Nothing is
guessed: an unknown key, a wrong type or a missing value is a :class:`~auralign.errors.UsageError` that
names the file, the key, the value and what was expected. Supported field types: ``bool int float str Path``,
``Literal``, ``T | None``, unions of those, ``tuple``, ``list``, ``dict[str, T]`` and nested dataclasses.

TOML has no null. A ``None`` that is the field's default is left out, any other is written as ``"none"``.
The top-level key ``algorithm`` says which module of ``auralign.algorithms`` the recipe is for.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import tomli_w

from auralign.errors import UsageError

ALGORITHM_KEY = "algorithm"
NONE_WORD = "none"

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class _Override:
    """A value as the user typed it after ``--set key=``; its type decides how it is read."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a value stands: the file (or option) and the dotted key."""

    source: str
    key: str = ""

    def __truediv__(self, name: str) -> _Place:
        return _Place(self.source, f"{self.key}.{name}" if self.key else name)


def load(path: str | Path, cls: type[Config], overrides: Iterable[str] = ()) -> Config:
    """Reads a recipe as ``cls``, after applying ``overrides`` such as ``"model.width=32"``.

    Args:
        path: TOML file.
        cls: Frozen dataclass that fixes keys, types and defaults.
        overrides: ``dotted.key=value`` texts; later ones win. Values are TOML (strings may go unquoted).

    Raises:
        UsageError: The file cannot be read, or a key, type or value does not fit.
    """
    return from_dict(read_table(path), cls, overrides, source=str(path))


def loads(text: str, cls: type[Config], overrides: Iterable[str] = (), *, source: str = "recipe") -> Config:
    """Like :func:`load`, from a text."""
    return from_dict(parse(text, source), cls, overrides, source=source)


def dump(cfg: Any, *, algorithm: str = "") -> str:
    """The configuration as TOML; ``loads(dump(cfg), type(cfg)) == cfg``.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Training:
    ...     steps: int = 10
    ...     rate: float = 1e-3
    >>> print(dump(Training(steps=20), algorithm="omnisep").strip())
    algorithm = "omnisep"
    steps = 20
    rate = 0.001
    """
    head = {ALGORITHM_KEY: algorithm} if algorithm else {}
    return tomli_w.dumps(head | to_dict(cfg))


def read_table(path: str | Path) -> dict[str, Any]:
    """The raw table of a TOML file.

    Raises:
        UsageError: The file is missing, unreadable or not TOML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError("no such recipe", where=str(path), hint="give the path of a .toml file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the recipe cannot be read", where=str(path), why=str(error)) from error
    return parse(text, str(path))


def algorithm_of(path: str | Path) -> str:
    """Which algorithm a recipe names.

    Raises:
        UsageError: The recipe does not say.
    """
    name = read_table(path).get(ALGORITHM_KEY)
    if not isinstance(name, str) or not name:
        raise UsageError(
            "the recipe names no algorithm",
            where=str(path),
            hint=f'add a line like {ALGORITHM_KEY} = "omnisep" at its top',
        )
    return name


def to_dict(cfg: Any) -> dict[str, Any]:
    """A dataclass as plain TOML values (nested tables, arrays, numbers, texts)."""
    table = {}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if value is None and field.default is None:
            continue
        table[field.name] = _plain(value)
    return table


def from_dict(
    table: Mapping[str, Any], cls: type[Config], overrides: Iterable[str] = (), *, source: str = "recipe"
) -> Config:
    """Builds ``cls`` from plain values, checking every key and type.

    Args:
        table: Parsed TOML.
        cls: Frozen dataclass.
        overrides: See :func:`load`.
        source: Name of the file, for messages.
    """
    merged = _copy(table)
    if ALGORITHM_KEY not in _field_names(cls):
        merged.pop(ALGORITHM_KEY, None)
    for text in overrides:
        _apply(merged, text)
    built: Config = _dataclass(merged, cls, _Place(source))
    return built


def parse(text: str, source: str) -> dict[str, Any]:
    """The raw table of a TOML text; ``source`` names it in the message when it is not one."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError("the recipe is not valid TOML", where=source, why=str(error)) from error


def _plain(value: Any) -> Any:
    if value is None:
        return NONE_WORD
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(item) if isinstance(item, Mapping) else item for key, item in table.items()}


def _apply(table: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UsageError(
            f"cannot read the override {text!r}", where="--set", hint="write it as key.name=value"
        )
    for name in names[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{name!r} in {key!r} is a value, not a table", where="--set")
        table = inner
    table[names[-1]] = _Override(value.strip())


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _dataclass(table: Any, cls: Any, place: _Place) -> Any:
    if not isinstance(table, Mapping):
        raise _mismatch(table, f"a table of {cls.__name__}", place)
    names = _field_names(cls)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean {(place / near[0]).key!r}?" if near else f"known keys: {', '.join(names)}"
            raise UsageError(f"unknown key {(place / key).key!r}", where=place.source, hint=hint)
    hints = typing.get_type_hints(cls)
    values = {key: _convert(value, hints[key], place / key) for key, value in table.items()}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in values:
            raise UsageError(f"the key {(place / field.name).key!r} is missing", where=place.source)
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(
            str(error), where=f"{place.source}, {place.key}" if place.key else place.source
        ) from error


def _convert(value: Any, kind: Any, place: _Place) -> Any:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(value, typing.get_args(kind), place)
    if origin is Literal:
        return _literal(value, typing.get_args(kind), place)
    if isinstance(value, _Override) and kind not in (str, Path):
        value = _read_override(value.text, kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(value, kind, place)
    if origin is tuple:
        return _tuple(value, typing.get_args(kind), place)
    if origin is list:
        (item,) = typing.get_args(kind)
        return [_convert(one, item, place / str(i)) for i, one in enumerate(_array(value, place))]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(value, "a table", place)
        item = typing.get_args(kind)[1]
        return {key: _convert(one, item, place / key) for key, one in value.items()}
    return _scalar(value, kind, place)


def _scalar(value: Any, kind: Any, place: _Place) -> Any:
    if kind is Any:
        return value
    if kind in (str, Path):
        text = value.text.strip("\"'") if isinstance(value, _Override) else value
        if not isinstance(text, str):
            raise _mismatch(value, "a text in quotes" if kind is str else "a path in quotes", place)
        return kind(text)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    expected = {bool: "true or false", int: "a whole number", float: "a number"}
    if kind in expected:
        raise _mismatch(value, expected[kind], place)
    raise UsageError(
        f"fields of type {kind} are not supported in recipes", where=f"{place.source}, {place.key}"
    )


def _union(value: Any, kinds: tuple[Any, ...], place: _Place) -> Any:
    text = value.text if isinstance(value, _Override) else value
    if type(None) in kinds and isinstance(text, str) and text.lower() == NONE_WORD:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    errors = []
    for kind in kinds:
        try:
            return _convert(value, kind, place)
        except UsageError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise _mismatch(value, " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds), place)


def _literal(value: Any, choices: tuple[Any, ...], place: _Place) -> Any:
    for choice in choices:
        if isinstance(value, _Override) and value.text.strip("\"'") == str(choice):
            return choice
        if type(choice) is type(value) and choice == value:
            return choice
    expected = "one of " + ", ".join(repr(choice) for choice in choices)
    text = str(value.text if isinstance(value, _Override) else value)
    near = difflib.get_close_matches(text, [str(choice) for choice in choices], n=1)
    raise _mismatch(value, expected, place, hint=f"did you mean {near[0]!r}?" if near else "")


def _tuple(value: Any, kinds: tuple[Any, ...], place: _Place) -> tuple[Any, ...]:
    items = _array(value, place)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(kinds) != len(items):
        raise _mismatch(value, f"an array of {len(kinds)} values", place)
    pairs = zip(items, kinds, strict=True)
    return tuple(_convert(item, kind, place / str(i)) for i, (item, kind) in enumerate(pairs))


def _array(value: Any, place: _Place) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _mismatch(value, "an array such as [1, 2]", place)
    return list(value)


def _read_override(text: str, kind: Any) -> Any:
    readers: dict[Any, Callable[[str], Any]] = {int: int, float: float}
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        try:
            return readers[kind](text)
        except (KeyError, ValueError):
            return text


def _mismatch(value: Any, expected: str, place: _Place, *, hint: str = "") -> UsageError:
    shown = value.text if isinstance(value, _Override) else value
    return UsageError(
        f"{place.key or 'the recipe'} = {shown!r} does not fit: expected {expected}",
        where=place.source,
        hint=hint,
    )
