"""Which recordings of the soundbox may be noise behind speech: events and music, but no human voice."""

from __future__ import annotations

from collections.abc import Iterable

from auralign.data.clip import Clip

VOCAL = frozenset(
    ("baby crying", "cheering crowd", "coughing", "crowd talking", "laughing", "screaming")
)  # sounds of people's mouths: an enhancer may keep them
MUSIC = "music"
_PARTS = {"train": ("train",), "val": ("val",), "test": ("test", "cross", "unseen")}


def noise_clips(clips: Iterable[Clip], split: str) -> list[Clip]:
    """Pick the noise of a split, in the order of ids.

    Test takes the soundbox's `test`, `cross` (packages kept from training) and `unseen` (classes kept from training).
    Rendered instruments are left out, music is kept.
    """
    return sorted(
        (
            clip
            for clip in clips
            if clip.split in _PARTS[split]
            and (clip.kind == "event" or MUSIC in clip.labels)
            and not VOCAL & set(clip.labels)
        ),
        key=lambda clip: clip.id,
    )


def only_in_test(clips: Iterable[Clip]) -> tuple[str, ...]:
    """Name the classes of noise that neither training nor validation hears."""
    known = list(clips)
    heard = {clip.labels[0] for split in ("train", "val") for clip in noise_clips(known, split)}
    return tuple(sorted({clip.labels[0] for clip in noise_clips(known, "test")} - heard))
