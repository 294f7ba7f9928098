"""Clips of one package, before it is known which split they belong to."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from auralign.data.soundbox import containers, deb
from auralign.data.soundbox.render import Renderer
from auralign.data.soundbox.scores import Score, perform
from auralign.data.soundbox.sound import RATE_HZ, Mono, decode, join, sequence, tidy, to_opus
from auralign.data.soundbox.taxonomy import SoundClass, Taxonomy
from auralign.errors import AudioError, DataError

_SHORT_S = 1.5  # takes shorter than this are strung into rhythms where the class has one
_RHYTHM_S = 6.0
_SPEECH_S = 34.0  # of each speaker
_TAKE_S = 0.02  # shortest stroke of a rhythm
_MIN_S = 0.1  # shortest clip
PICTURE_SIDE = 224


@dataclass(frozen=True)
class Draft:
    """A clip without a split."""

    id: str
    label: str
    kind: str
    source: str
    package: str
    version: str
    source_path: str
    sha256: str
    samples: Mono
    opus: bytes
    speaker: str = ""
    soundfont: str = ""


@dataclass
class PackageYield:
    """What one package gave.

    Args:
        drafts: Its clips.
        pictures: Scaled PNG bytes by path.
        texts: Descriptions that lie beside pictures or sounds, by path without ending.
        soundfonts: Where its soundfonts were unpacked.
        skipped: Recordings that could not be used, and why.
        unmatched: Patterns that fit no file.
    """

    drafts: list[Draft] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    soundfonts: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)


def slug(text: str) -> str:
    """Make a name fit for paths and ids.

    >>> slug("Animal/Dog 1.WAV")
    'animal-dog-1-wav'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def clip_seed(*names: str) -> np.random.Generator:
    """Return chance that depends on the names alone."""
    return np.random.default_rng(zlib.crc32("\n".join(names).encode()))


def read_package(package: str, path: Path, taxonomy: Taxonomy, workspace: Path) -> PackageYield:
    """Unpack one package and make clips of everything that the taxonomy names in it.

    Args:
        package: Its name.
        path: Its `.deb`.
        taxonomy: What is wanted.
        workspace: Folder for unpacked soundfonts.
    """
    out = PackageYield()
    version = deb.control(path).get("Version", "")
    globs = [
        (item, cls) for cls in taxonomy.classes.values() for item in cls.audio if item.package == package
    ]
    speakers = [
        (who, cls)
        for cls in taxonomy.classes.values()
        for who in cls.speakers
        if who.pattern.package == package
    ]
    endings = [name for cls in taxonomy.classes.values() for name in cls.pictures]
    grouped: dict[tuple[str, str], list[tuple[str, bytes]]] = defaultdict(list)
    spoken: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    used: set[str] = set()
    for name, data in _files(path, taxonomy, package):
        if name.endswith((".sf2", ".sf3")):
            target = workspace / f"{package}{Path(name).suffix}"
            target.write_bytes(data)
            out.soundfonts.append(target)
        elif name.endswith(".png"):
            if any(name.endswith("/" + ending) for ending in endings):
                out.pictures[name] = scale_picture(name, data)
        elif name.endswith(".txt"):
            out.texts[name.removesuffix(".txt")] = _first_line(data)
        else:
            claims = [(item, cls) for item, cls in globs if item.matches(name)]
            if len({cls.name for _, cls in claims}) > 1:
                names = ", ".join(sorted(cls.name for _, cls in claims))
                raise DataError(f"the file belongs to several classes: {names}", where=f"{package}:{name}")
            if claims:
                item, cls = claims[0]
                used |= {item.glob for item, _ in claims}
                grouped[(cls.name, item.source_of(name))].append((name, data))
            for who, _ in speakers:
                if who.pattern.matches(name):
                    spoken[who.id].append((name, data))
                    used.add(who.pattern.glob)
    out.unmatched = [f"{package}: {item.glob}" for item, _ in globs if item.glob not in used]
    for (label, source), files in sorted(grouped.items()):
        cls = taxonomy.classes[label]
        out.drafts += _clips_of_source(cls, source, sorted(files), package, version, out.skipped)
    for who, cls in speakers:
        out.drafts += _speech(cls, who.id, sorted(spoken[who.id]), package, version, out.skipped)
    return out


def _files(path: Path, taxonomy: Taxonomy, package: str) -> Iterable[tuple[str, bytes]]:
    patterns = [item for cls in taxonomy.classes.values() for item in cls.audio if item.package == package]
    patterns += [
        who.pattern
        for cls in taxonomy.classes.values()
        for who in cls.speakers
        if who.pattern.package == package
    ]
    endings = tuple("/" + name for cls in taxonomy.classes.values() for name in cls.pictures)

    def wanted(name: str) -> bool:
        if name.endswith((".sf2", ".sf3", *containers.CONTAINERS)) or (endings and name.endswith(endings)):
            return True
        if name.endswith(".txt"):
            return "/stamps/" in name and "_" not in name.rpartition("/")[2]
        return any(item.matches(name) for item in patterns)

    for name, data in deb.members(path, wanted):
        yield from containers.expand(name, data, wanted)


def _first_line(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip().partition("\n")[0].strip()


def scale_picture(name: str, data: bytes) -> bytes:
    """Scale a picture to at most 224 × 224, on white, as PNG without time or comments."""
    try:
        with Image.open(io.BytesIO(data)) as raw:
            picture = raw.convert("RGBA")
    except (OSError, ValueError) as error:
        raise DataError("the picture cannot be read", where=name, why=str(error)) from error
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    white.alpha_composite(picture)
    buffer = io.BytesIO()
    white.convert("RGB").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _decoded(
    files: Sequence[tuple[str, bytes]], max_s: float, skipped: dict[str, str]
) -> list[tuple[str, bytes, Mono]]:
    takes = []
    for name, data in files:
        try:
            samples = tidy(decode(name, data), max_s)
        except AudioError as error:
            skipped[name] = str(error)
            continue
        if len(samples) < _TAKE_S * RATE_HZ:
            skipped[name] = f"less than {_TAKE_S} s of sound"
        else:
            takes.append((name, data, samples))
    return takes


def _clips_of_source(
    cls: SoundClass,
    source: str,
    files: Sequence[tuple[str, bytes]],
    package: str,
    version: str,
    skipped: dict[str, str],
) -> list[Draft]:
    takes = _decoded(files, cls.max_s, skipped)
    common = {"label": cls.name, "kind": cls.kind, "source": source, "package": package, "version": version}
    drafts = []
    strokes = [take for take in takes if len(take[2]) < _SHORT_S * RATE_HZ]
    if cls.rhythm is not None and strokes:
        digest = hashlib.sha256(b"".join(data for _, data, _ in strokes)).hexdigest()
        for k in range(2 if len(strokes) > 2 else 1):
            name = f"{package}/{slug(source.removeprefix(package))}-rhythm-{k}"
            rng = clip_seed("rhythm", name)
            samples = sequence([take[2] for take in strokes], rng, cls.rhythm, _RHYTHM_S)
            paths = strokes[0][0] if len(strokes) == 1 else f"{strokes[0][0]} and {len(strokes) - 1} more"
            drafts.append(_draft(name, samples, digest, paths, **common))
        takes = [take for take in takes if len(take[2]) >= _SHORT_S * RATE_HZ]
    for path, data, samples in takes:
        if len(samples) < _MIN_S * RATE_HZ:
            skipped[path] = f"less than {_MIN_S} s of sound"
            continue
        stem = slug("-".join(path.rsplit("/", 3)[1:]).rpartition(".")[0])
        drafts.append(_draft(f"{package}/{stem}", samples, hashlib.sha256(data).hexdigest(), path, **common))
    return drafts


def _draft(name: str, samples: Mono, digest: str, path: str, **common: str) -> Draft:
    return Draft(
        id=name, samples=samples, opus=to_opus(samples), sha256=digest, source_path=path.lstrip("/"), **common
    )


def _speech(
    cls: SoundClass,
    who: str,
    files: Sequence[tuple[str, bytes]],
    package: str,
    version: str,
    skipped: dict[str, str],
) -> list[Draft]:
    """Join evenly spread utterances of a speaker into clips of about eight seconds."""
    step = max(1, len(files) // 60)
    takes: list[tuple[str, bytes, Mono]] = []
    total = 0
    for file in files[step // 2 :: step]:
        if total > _SPEECH_S * RATE_HZ:
            break
        found = _decoded([file], 6.0, skipped)
        takes += found
        total += sum(len(take[2]) for take in found)
    drafts = []
    rng = clip_seed("speech", package, who)
    joined = join([take[2] for take in takes], pause_s=0.25, seconds=8.0, rng=rng)
    for k, (samples, used) in enumerate(joined):
        digest = hashlib.sha256(b"".join(takes[index][1] for index in used)).hexdigest()
        paths = f"{takes[used[0]][0]} and {len(used) - 1} more"
        name = f"{package}/{slug(who)}-{k:02d}"
        samples = samples if np.abs(samples).max() <= 0.98 else samples / np.float32(1.05)
        draft = _draft(
            name, samples, digest, paths, label=cls.name, kind="speech", source=f"speaker/{slug(who)}",
            package=package, version=version,
        )  # fmt: skip
        drafts.append(Draft(**{**draft.__dict__, "speaker": slug(who)}))
    return drafts


def render_clips(
    cls: SoundClass,
    renderer: Renderer,
    scores: Sequence[Score],
    count: int,
    *,
    package: str,
    version: str,
    digest: str,
    seconds: tuple[float, float] = (11.0, 17.0),
) -> list[Draft]:
    """Let an instrument play excerpts of the scores, in turn, until there are `count` clips.

    Args:
        cls: The instrument.
        renderer: Who plays.
        scores: Where the notes come from.
        count: How many clips.
        package: Package of the soundfont.
        version: Its version.
        digest: SHA-256 of the soundfont.
        seconds: Shortest and longest excerpt.
    """
    drafts = []
    order = clip_seed("order", package, cls.name).permutation(len(scores))
    for k in range(count):
        score = scores[int(order[k % len(order)])]
        name = f"{package}/{slug(cls.name)}/{score.name}-{k:02d}"
        rng = clip_seed("render", name)
        strokes = perform(
            score, rng, pitch_range=cls.range, voices=cls.voices, seconds=float(rng.uniform(*seconds))
        )
        program = cls.programs[int(rng.integers(len(cls.programs)))]
        samples = tidy(renderer.play(program, strokes), 30.0)
        if len(samples) < 2 * RATE_HZ:
            continue
        path = f"program {program} plays music21 {score.name}"
        draft = _draft(
            name, samples, digest, path, label=cls.name, kind="instrument", source=f"score/{score.name}",
            package=package, version=version,
        )  # fmt: skip
        drafts.append(Draft(**{**draft.__dict__, "soundfont": package}))
    return drafts


Progress = Callable[[str, int, int], None]
