"""WebDataset-compatible tar shards (``key.flac`` + ``key.json``), written and read with the standard library.

Clips lie in plain tar files that any WebDataset reader opens. Reading here adds what such readers leave to
the
user: an order that is a function of seed and epoch, an exact partition over ranks and workers, and a
    position that can be saved and continued.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32

from auralign.audio.io import read
from auralign.data.clip import Clip
from auralign.errors import AudioError, DataError

_KINDS = (".flac", ".wav", ".ogg", ".opus", ".mp3")
_FIELDS = {field.name for field in fields(Clip)}
_TUPLES = ("captions", "labels", "pictures")


def shard_key(name: str) -> str:
    """A clip id as a shard key: letters, digits, ``_`` and ``-`` stay, other bytes become ``=XX``.

    A key holds no dot (it ends at the first one), no slash and no leading dash; long ids keep their first 120
    characters and get a hash, so that keys stay different.

    >>> shard_key("Y-a_1.wav"), shard_key("-abc")
    ('Y-a_1=2Ewav', '=2Dabc')
    """
    safe = "".join(
        char if re.fullmatch(r"[A-Za-z0-9_-]", char) else "".join(f"={byte:02X}" for byte in char.encode())
        for char in name
    )
    safe = "=2D" + safe[1:] if safe.startswith("-") else safe
    if len(safe) > 140:
        safe = safe[:120] + "=" + hashlib.sha256(name.encode()).hexdigest()[:19]
    return safe or "="


def write_shards(
    clips: Iterable[Clip], folder: Path, *, root: Path | None = None, max_bytes: int = 1_000_000_000
) -> list[Path]:
    """Write clips to ``clips-000000.tar``, ``clips-000001.tar`` …; equal input gives equal bytes.

    FLAC files are copied, others encoded as FLAC: 16 bits if the source has 16 or fewer, else 24. A clip that
    starts inside its file is cut out. The JSON member holds the fields of the clip.

    Args:
        clips: Clips, in the order of writing.
        folder: Folder of the shards; made if needed, and must hold no shards.
        root: Folder that relative paths of clips start from.
        max_bytes: Size at which a new shard begins; no clip is split.

    Returns:
        The shards, in order. Each appears only when complete.

    Raises:
        DataError: If there is no clip, two have one id, a sound exceeds full scale, or the folder holds
            shards.
    """
    writer, seen = _Writer(Path(folder), max_bytes), dict[str, int]()
    try:
        for number, clip in enumerate(clips):
            key = shard_key(clip.id)
            if key in seen:
                what = f"clips {seen[key]} and {number} have the same id {clip.id!r}"
                raise DataError(what, where=str(folder), hint="give each clip an id of its own")
            seen[key] = number
            writer.add(_members(key, clip, root))
        return writer.finish()
    finally:
        writer.discard()


class _Writer:
    """Fills one shard after the other; a shard gets its name when it is complete."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("*.tar")):
            raise DataError("the folder holds shards already", where=str(folder), hint="give an empty folder")
        self._folder, self._max_bytes, self._part = folder, max_bytes, folder / "clips.tar.part"
        self._tar: tarfile.TarFile | None = None
        self._written: list[Path] = []

    def add(self, members: list[tuple[str, bytes]]) -> None:
        size = sum(len(data) + 1536 for _, data in members)
        if self._tar is not None and self._tar.offset + size > self._max_bytes:
            self._complete(self._tar)
        if self._tar is None:
            self._tar = tarfile.open(self._part, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            self._tar.addfile(member, io.BytesIO(data))

    def _complete(self, tar: tarfile.TarFile) -> None:
        tar.close()
        self._tar = None
        path = self._folder / f"clips-{len(self._written):06d}.tar"
        os.replace(self._part, path)
        self._written.append(path)

    def finish(self) -> list[Path]:
        if self._tar is None:
            raise DataError("there are no clips to write", where=str(self._folder))
        self._complete(self._tar)
        return self._written

    def discard(self) -> None:
        """Drop a shard that is not complete."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None
        self._part.unlink(missing_ok=True)


def _members(key: str, clip: Clip, root: Path | None) -> list[tuple[str, bytes]]:
    path = Path(clip.audio) if root is None else Path(root) / clip.audio
    if path.suffix.lower() == ".flac" and not clip.offset_s and path.is_file():
        info, data = soundfile.info(path), path.read_bytes()
        facts = {"duration_s": info.frames / info.samplerate, "sample_rate": info.samplerate}
        facts["channels"] = info.channels
    else:
        data, facts = _encoded(clip, path)
    clip = replace(clip, audio=f"{key}.flac", offset_s=0.0, **facts)
    about = {name: value for name, value in asdict(clip).items() if value not in ("", (), None)}
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    return [(f"{key}.flac", data), (f"{key}.json", text.encode())]


def _encoded(clip: Clip, path: Path) -> tuple[bytes, dict[str, Any]]:
    sound = read(path, start_s=clip.offset_s, duration_s=clip.duration_s if clip.offset_s else None)
    peak = float(np.abs(sound.samples).max(initial=0.0))
    if not peak <= 1.0:
        raise DataError(
            f"clip {clip.id!r} peaks at {peak:.3g}",
            where=str(path),
            why="FLAC holds samples of at most 1",
            hint="scale the clip down before you write it",
        )
    try:
        coarse = soundfile.info(path).subtype in ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")
    except soundfile.LibsndfileError:
        coarse = False
    out = io.BytesIO()
    subtype = "PCM_16" if coarse else "PCM_24"
    soundfile.write(out, sound.samples.T, sound.rate_hz, format="FLAC", subtype=subtype)
    facts = {"duration_s": sound.duration_s, "sample_rate": sound.rate_hz, "channels": sound.channels}
    return out.getvalue(), facts


@dataclass(frozen=True)
class ShardClip:
    """One clip read from a shard.

    Args:
        clip: What is known of it; ``audio`` is ``<shard>#<member>``.
        samples: The sound.
        rate_hz: Its rate.
    """

    clip: Clip
    samples: Float32[np.ndarray, "channel time"]
    rate_hz: int


@dataclass(frozen=True)
class _Place:
    """Where a clip lies: shard, and offset and size of its two members."""

    shard: Path
    sound: tuple[str, int, int]
    about: tuple[int, int]


class ShardReader:
    """Reads the clips of shards in an order fixed by seed and epoch, one share per rank and worker.

    Order: shards are shuffled and taken in groups of ``mix``; the clips of a group are shuffled together.
        Share number s of n takes clips s, s + n, s + 2n … of that order, so shares never overlap, together
        are everything, and differ in length by at most one. Iterating yields the rest of the current epoch,
        then moves on to the next.

    Args:
        shards: Tar files; their order does not matter.
        seed: Seed of the order; ``None`` reads in the order of the files.
        rank: Number of this process.
        ranks: Number of processes.
        worker: Number of this worker in its process.
        workers: Workers per process.
        mix: Shards whose clips are mixed with each other.

    Raises:
        DataError: If a shard is missing or damaged, holds an unsafe name, or a sound without its JSON.
    """

    def __init__(
        self,
        shards: Iterable[Path],
        *,
        seed: int | None = 0,
        rank: int = 0,
        ranks: int = 1,
        worker: int = 0,
        workers: int = 1,
        mix: int = 8,
    ) -> None:
        if not (0 <= rank < ranks and 0 <= worker < workers and mix >= 1):
            raise DataError(
                f"rank {rank} of {ranks}, worker {worker} of {workers}, mix {mix} do not fit",
                where="ShardReader",
                hint="count ranks and workers from 0, and mix at least one shard",
            )
        self._index = {path: _scan(path) for path in sorted(Path(shard) for shard in shards)}
        if not any(self._index.values()):
            raise DataError(
                "there are no clips", where="ShardReader", hint="give the .tar files of write_shards"
            )
        self.seed, self.mix = seed, mix
        self.share, self.shares = rank * workers + worker, ranks * workers
        self.epoch = self.position = 0
        self._fingerprint = _fingerprint(self._index)

    def __len__(self) -> int:
        """Clips in this share per epoch, for the whole epoch."""
        return len(range(self.share, sum(map(len, self._index.values())), self.shares))

    def _order(self, epoch: int) -> list[_Place]:
        paths = list(self._index)
        if self.seed is None:
            return [place for path in paths for place in self._index[path]]
        generator = random.Random(f"{self.seed}/{epoch}")
        generator.shuffle(paths)
        order: list[_Place] = []
        for start in range(0, len(paths), self.mix):
            group = [place for path in paths[start : start + self.mix] for place in self._index[path]]
            generator.shuffle(group)
            order += group
        return order

    def __iter__(self) -> Iterator[ShardClip]:
        mine = self._order(self.epoch)[self.share :: self.shares]
        while self.position < len(mine):
            found = _load(mine[self.position])
            self.position += 1
            yield found
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where this share stands: the clips yielded so far in this epoch are done."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "mix": self.mix,
            "share": self.share,
            "shares": self.shares,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved place.

        Raises:
            DataError: If it was saved for other shards, another seed or another share.
        """
        mine = self.state_dict()
        for name in ("fingerprint", "seed", "mix", "share", "shares"):
            if state.get(name) != mine[name]:
                raise DataError(
                    f"the saved {name} is {state.get(name)!r}, this reader's is {mine[name]!r}",
                    where="ShardReader",
                    why="another order would repeat some clips and leave out others",
                    hint="resume with the same shards, seed, ranks and workers, or start the epoch anew",
                )
        epoch, position = state.get("epoch"), state.get("position")
        if not isinstance(epoch, int) or not isinstance(position, int):
            raise DataError(
                f"epoch {epoch!r}, position {position!r} are no whole numbers", where="ShardReader"
            )
        if epoch < 0 or not 0 <= position <= len(self):
            raise DataError(f"epoch {epoch!r}, position {position!r} is no place", where="ShardReader")
        self.epoch, self.position = epoch, position


def _fingerprint(index: dict[Path, list[_Place]]) -> str:
    digest = hashlib.sha256()
    for path, places in index.items():
        digest.update(f"{path.name}\n".encode())
        for place in places:
            digest.update(f"{place.sound}\n".encode())
    return digest.hexdigest()[:16]


def _scan(path: Path) -> list[_Place]:
    found: dict[str, dict[str, tuple[str, int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                name = PurePosixPath(member.name)
                if not member.isreg() or name.is_absolute() or ".." in name.parts:
                    raise DataError(f"member {member.name!r} is a link or leaves the shard", where=str(path))
                key, _, suffix = name.name.partition(".")
                whole = str(name.parent / key)
                kind = "." + suffix.lower()
                if kind in found.setdefault(whole, {}):
                    raise DataError(f"member {member.name!r} occurs twice", where=str(path))
                found[whole][kind] = (member.name, member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise DataError("the shard cannot be read", where=str(path), why=str(error)) from None
    return [_place(path, key, members) for key, members in found.items()]


def _place(path: Path, key: str, members: dict[str, tuple[str, int, int]]) -> _Place:
    sound = next((members[kind] for kind in _KINDS if kind in members), None)
    if sound is None or ".json" not in members:
        raise DataError(
            f"key {key!r} has {', '.join(sorted(members))}",
            where=str(path),
            why="a clip is a sound and a .json",
            hint="write the shard again",
        )
    end = max(offset + size for _, offset, size in (sound, members[".json"]))
    if end > path.stat().st_size:
        raise DataError(f"the shard ends inside key {key!r}", where=str(path), hint="copy or write it again")
    return _Place(path, sound, members[".json"][1:])


def _load(place: _Place) -> ShardClip:
    name, offset, size = place.sound
    where = f"{place.shard}#{name}"
    with place.shard.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
        file.seek(place.about[0])
        text = file.read(place.about[1])
    try:
        about = json.loads(text)
    except ValueError as error:
        raise DataError("the JSON member is damaged", where=where, why=str(error)) from None
    if not isinstance(about, dict):
        raise DataError("the JSON member is not an object", where=where)
    try:
        sound = read(io.BytesIO(data))
    except AudioError as error:
        raise DataError("the sound cannot be decoded", where=where, why=str(error)) from None
    return ShardClip(
        _clip(about, where, PurePosixPath(name).name.partition(".")[0]), sound.samples, sound.rate_hz
    )


def _clip(about: dict[str, Any], where: str, key: str) -> Clip:
    values = {name: value for name, value in about.items() if name in _FIELDS}
    for name, other in (("captions", "text"), ("captions", "caption")):
        if name not in values and other in about:
            values[name] = about[other]
    for name in _TUPLES:
        if name in values:
            items = values[name]
            values[name] = (items,) if isinstance(items, str) else tuple(str(item) for item in items)
    return Clip(**{"id": key, **values, "audio": where})
