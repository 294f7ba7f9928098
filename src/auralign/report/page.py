"""A page to hear, see and compare what was separated or enhanced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from auralign.audio.sound import Sound
from auralign.report import spectrogram
from auralign.report.document import card, chips, escape, facts, heading_of, number, paragraph, write_page
from auralign.report.excerpt import Excerpt, choose, data_uri, flac_uri

MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class ReportItem:
    """One recording and what was made of it.

    Attributes:
        name: Heading.
        stems: What can be heard, in order: usually ``mixture``, the targets, ``residual``. Equally long
            sounds, or their files.
        scores: Numbers by name; a table of numbers under a stem's name is shown beside that stem.
        note: A sentence below the heading.
        details: Anything else, folded away.
    """

    name: str
    stems: Mapping[str, Sound | Path]
    scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_report(
    path: str | Path,
    title: str,
    items: Sequence[ReportItem],
    *,
    intro: str = "",
    details: Mapping[str, Any] | None = None,
    excerpt_s: float = 30.0,
    limit_mb: float = 60.0,
) -> Path:
    """Writes one HTML file with synchronous players, spectrograms and scores.

    Args:
        path: The page.
        title: Its heading.
        items: What it shows.
        intro: A sentence below the heading.
        details: What all items share: model, versions, settings.
        excerpt_s: Longest sound per item; of longer ones the part where the target is loudest is taken, and
            the page says so.
        limit_mb: Size of all sounds together; items beyond it keep their pictures and say that sounds are
            left out.
    """

    def sections() -> Iterator[str]:
        room = limit_mb * MEGABYTE
        if len(items) > 3:
            yield _contents(items)
        for index, item in enumerate(items):
            section, used = item_section(item, index, excerpt_s=excerpt_s, room=room)
            room -= used
            yield section
        if details:
            yield card("<h2>How this was made</h2>", facts(details, summary="All settings"))

    return write_page(path, title, intro, sections(), scripts=("player.js",))


def item_section(item: ReportItem, index: int, *, excerpt_s: float, room: float) -> tuple[str, int]:
    """The HTML of one item, and the bytes of sound in it.

    Args:
        item: What to show.
        index: Its place on the page, for links.
        excerpt_s: Longest sound.
        room: Bytes of sound that may still go into the page.
    """
    anchor = f'id="item-{index + 1}"'
    heading = f"<h2>{escape(item.name)}</h2>"
    if not item.stems:
        return card(heading, paragraph(item.note, "note"), facts(item.details), attributes=anchor), 0
    part = choose(item.stems, longest_s=excerpt_s)
    pictures = {name: spectrogram.picture(stem) for name, stem in part.stems.items()}
    reference = max(float(shown.power.max()) for shown in pictures.values())
    sounds = {name: flac_uri(stem) for name, stem in part.stems.items()}
    used = sum(map(len, sounds.values()))
    notes = [part.note]
    if used > room:
        sounds, used = {}, 0
        notes.append("Sounds are left out because the page would grow too large; listen to the files instead")
    if any(stem.channels > 2 for stem in part.stems.values()):
        notes.append("The first two channels are heard")
    common = {key: value for key, value in item.scores.items() if not isinstance(value, Mapping)}
    lanes = [
        _lane(name, place, pictures[name], reference, item.scores.get(name), sounds.get(name))
        for place, name in enumerate(part.stems, start=1)
    ]
    body = (
        f'<div class="head">{heading}<span class="soft">{_shape(part)}</span></div>',
        paragraph(item.note, "soft"),
        chips(common),
        _transport(part) if sounds else "",
        *lanes,
        _time_axis(part),
        _legend(),
        paragraph(". ".join(note for note in notes if note), "note"),
        facts(item.details),
    )
    player = (
        f'data-player data-start="{part.start_s:.4f}" data-duration="{part.duration_s:.6f}"' if sounds else ""
    )
    return card(*body, attributes=f"{anchor} {player}"), used


def _contents(items: Sequence[ReportItem]) -> str:
    links = "".join(
        f'<li><a href="#item-{i}">{escape(item.name)}</a></li>' for i, item in enumerate(items, start=1)
    )
    return f'<nav class="card" aria-label="Contents"><ol>{links}</ol></nav>'


def _transport(part: Excerpt) -> str:
    return (
        '<div class="transport"><button class="play" type="button">▶ Play</button>'
        '<button class="loop" type="button" aria-pressed="false" aria-label="Loop">⟲ Loop</button>'
        '<span class="time"></span>'
        f'<input class="seek" type="range" min="0" max="{part.duration_s:.4f}" step="0.1" value="0" '
        'aria-label="Position in the sound">'
        '<span class="hint"><kbd>1</kbd>–<kbd>9</kbd> hear one · <kbd>Shift</kbd> adds · '
        "<kbd>Space</kbd> play · <kbd>L</kbd> loop · click a spectrogram to seek</span></div>"
    )


def _lane(
    name: str,
    position: int,
    shown: spectrogram.Picture,
    reference: float,
    scores: Any,
    sound: str | None,
) -> str:
    values = scores if isinstance(scores, Mapping) else {}
    lines = "".join(
        f"<small>{escape(heading_of(key))} {escape(number(value, key=key))}</small>"
        for key, value in values.items()
    )
    ticks = "".join(
        f'<span style="bottom:{place:.2%}">{label}</span>'
        for label, place in spectrogram.frequency_ticks(shown)
    )
    image = data_uri(spectrogram.png(shown, reference=reference), "image/png")
    text = escape(f"Spectrogram of {name}: time to the right, frequency upwards on a logarithmic scale")
    head = f"<b>{position} {escape(name)}</b>{lines}"
    if sound is None:
        control, audio = f'<div class="stem">{head}</div>', ""
    else:
        state = '<small class="state" aria-hidden="true">● heard</small>'
        control = f'<button class="stem" type="button" aria-pressed="false">{head}{state}</button>'
        audio = f'<audio controls preload="none" src="{sound}" aria-label="{escape(name)}"></audio>'
    return (
        f'<div class="lane">{control}<div class="hz" aria-hidden="true">{ticks}</div>'
        f'<div><div class="view"><img src="{image}" alt="{text}"><i class="head-line"></i></div>'
        f"{audio}</div></div>"
    )


def _time_axis(part: Excerpt) -> str:
    marks = spectrogram.time_ticks(part.duration_s, start_s=part.start_s)
    spans = "".join(f'<span style="left:{place:.3%}">{label}</span>' for label, place in marks)
    return f'<div class="seconds" aria-hidden="true">{spans}</div>'


def _legend() -> str:
    colours = spectrogram.palette()[::17]
    stops = ", ".join("#{:02x}{:02x}{:02x}".format(*(int(c) for c in colour)) for colour in colours)
    low = f"−{spectrogram.RANGE_DB:.0f} dB"
    return (
        f'<div class="legend"><span>{low}</span><i style="background:linear-gradient(90deg,{stops})"></i>'
        "<span>0 dB: the loudest point of all stems</span></div>"
    )


def _shape(part: Excerpt) -> str:
    stem = next(iter(part.stems.values()))
    channels = {1: "mono", 2: "stereo"}.get(stem.channels, f"{stem.channels} channels")
    return escape(f"{spectrogram.clock(part.total_s)} · {stem.rate_hz / 1000:g} kHz · {channels}")
