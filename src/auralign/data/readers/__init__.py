"""Readers of public data sets: each maps a folder in its published layout to clips, mixtures or pairs.

Every reader has the form ``read(root, *, split=None, …) -> Reading``.
"""

from __future__ import annotations

from collections.abc import Callable

from auralign.data.clip import Clip
from auralign.data.readers.audiocaps import read_audiocaps, read_bisep_audiocaps, read_phrases
from auralign.data.readers.audiosep import read_audiosep, read_audiosep_json, write_audiosep_json
from auralign.data.readers.base import RULES, Missing, MixtureItem, Reading, ReadReport
from auralign.data.readers.clipsep import draw_interferers, read_clipsep, read_index, read_index_clips
from auralign.data.readers.clotho import read_clotho
from auralign.data.readers.dcase24t9 import read_dcase24t9
from auralign.data.readers.dns import read_dns2020
from auralign.data.readers.esc50 import read_esc50
from auralign.data.readers.fsd50k import read_fsd50k
from auralign.data.readers.librimix import read_librimix
from auralign.data.readers.music import read_music
from auralign.data.readers.sgmse import read_sgmse
from auralign.data.readers.speech_base import SpeechPair
from auralign.data.readers.vggsound import read_vggsound
from auralign.data.readers.voicebank import read_voicebank_demand
from auralign.data.readers.wavcaps import read_wavcaps
from auralign.data.readers.wham import read_wham
from auralign.data.readers.youtube import YoutubeFiles, YoutubeKey, parse_clip_name

READERS: dict[str, Callable[..., Reading]] = {
    "audiocaps": read_audiocaps,
    "audiosep": read_audiosep,
    "bisep-audiocaps": read_bisep_audiocaps,
    "clipsep": read_clipsep,
    "clotho": read_clotho,
    "dcase24t9": read_dcase24t9,
    "dns2020": read_dns2020,
    "esc50": read_esc50,
    "fsd50k": read_fsd50k,
    "librimix": read_librimix,
    "music": read_music,
    "sgmse": read_sgmse,
    "vggsound": read_vggsound,
    "voicebank-demand": read_voicebank_demand,
    "wavcaps": read_wavcaps,
    "wham": read_wham,
}
"""Readers by the name that ``auralign data check`` takes."""

__all__ = [
    "READERS",
    "RULES",
    "Clip",
    "Missing",
    "MixtureItem",
    "ReadReport",
    "Reading",
    "SpeechPair",
    "YoutubeFiles",
    "YoutubeKey",
    "draw_interferers",
    "parse_clip_name",
    "read_audiocaps",
    "read_audiosep",
    "read_audiosep_json",
    "read_bisep_audiocaps",
    "read_clipsep",
    "read_clotho",
    "read_dcase24t9",
    "read_dns2020",
    "read_esc50",
    "read_fsd50k",
    "read_index",
    "read_index_clips",
    "read_librimix",
    "read_music",
    "read_phrases",
    "read_sgmse",
    "read_vggsound",
    "read_voicebank_demand",
    "read_wavcaps",
    "read_wham",
    "write_audiosep_json",
]
