"""Systems that are compared: the input, the clean speech, classic and public enhancers, models by name or folder."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from auralign.errors import ModelUnavailableError, UsageError
from auralign.metrics.contract import METRICS
from auralign.runtime import weights

if TYPE_CHECKING:
    from auralign.models.enhancer import Enhancer

NOISY, CLEAN = "noisy", "clean"
PEERS: Mapping[str, tuple[str, str]] = {
    "log-mmse": ("auralign.models.log_mmse", "LogMmse"),
    "nsnet2": ("auralign.models.nsnet2", "Nsnet2"),
    "gtcrn": ("auralign.models.gtcrn", "Gtcrn"),
}
_FAMILIES = (
    ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl"),  # one network
    ("snr", "snri", "si_sdr", "si_sdri", "sd_sdr"),
    ("stoi", "estoi"),
    ("pesq_wb", "pesq_nb"),
)


@dataclass(frozen=True)
class System:
    """One system of an arm."""

    arm: str
    """Name of the arm."""
    seed: int
    """Number within the arm."""
    place: str
    """``noisy``, ``clean``, a peer, or the folder of a model."""
    sha256: str
    """Of the weights, or of the code where there are none."""
    steps: int | None = None
    """Evaluations of the network; its own number when None."""
    trained_on: tuple[str, ...] = ()
    """Metrics that its training looked at."""

    def open(self, *, device: str = "cpu") -> Enhancer | None:
        """The enhancer; None for the input and the clean speech."""
        if self.place in (NOISY, CLEAN):
            return None
        if self.place in PEERS:
            module, kind = PEERS[self.place]
            make: Callable[[], Enhancer] = getattr(importlib.import_module(module), kind)
            return make()
        from auralign.models.enhancer import EnhancerModel

        return EnhancerModel.load(Path(self.place)).to(device)


def parse_arms(texts: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Arms as the command line writes them; a bare name is an arm of that system, and one named again is not two.

    >>> parse_arms(["noisy", "grpo=a/model,b/model", "noisy"])
    (('noisy', ('noisy',)), ('grpo', ('a/model', 'b/model')))
    """
    arms: list[tuple[str, tuple[str, ...]]] = []
    for text in texts:
        name, equals, models = text.partition("=")
        places = (
            tuple(part.strip() for part in models.split(",") if part.strip()) if equals else (name.strip(),)
        )
        name = name.strip()
        if not name or not places:
            raise UsageError(f"{text!r} is no arm", where="--arm", hint="write NAME or NAME=MODEL,MODEL,…")
        if equals or name not in dict(arms):
            arms.append((name, places))
    return tuple(arms)


def open_arms(arms: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[System, ...]:
    """Find the systems of all arms; a place may end in ``@STEPS``.

    Raises:
        UsageError: A name twice, one model twice in an arm, or no such model.
    """
    twice = [name for name, count in Counter(name for name, _ in arms).items() if count > 1]
    if twice:
        raise UsageError(f"two arms are called {twice[0]!r}", where="--arm", hint="give each its own name")
    systems = []
    for name, places in arms:
        found: dict[tuple[str, int | None], str] = {}
        for seed, text in enumerate(places):
            one = _system(name, seed, text)
            if (one.sha256, one.steps) in found:
                other = found[one.sha256, one.steps]
                raise UsageError(
                    f"{text} and {other} are the same weights", where=name, hint="a seed counts once"
                )
            found[one.sha256, one.steps] = text
            systems.append(one)
    return tuple(systems)


def _system(arm: str, seed: int, text: str) -> System:
    place, at, number = text.rpartition("@")
    steps = None
    if at and number.isdigit():
        steps = int(number)
        if steps < 1:
            raise UsageError(f"{text!r} asks for no step", where=arm, hint="write MODEL@4")
    else:
        place = text
    if place in (NOISY, CLEAN):
        return System(arm, seed, place, place)
    if place in PEERS:
        spec = importlib.util.find_spec(PEERS[place][0])
        if spec is None or spec.origin is None:
            raise ModelUnavailableError(f"there is no {place} in this version", where=arm)
        return System(arm, seed, place, _digest(Path(spec.origin)))
    folder = Path(place) if Path(place).exists() else weights.path(place)
    file = folder / "model.safetensors" if folder.is_dir() else folder
    if not file.is_file():
        raise UsageError("there is no model", where=str(file), hint="give a folder with model.safetensors")
    return System(arm, seed, str(folder), _digest(file), steps, _trained_on(file.with_name("card.json")))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _trained_on(card: Path) -> tuple[str, ...]:
    """Metrics named in the card's ``trained_on`` that tables have, and those that the same measurement gives."""
    if not card.is_file():
        return ()
    try:
        named = {str(name) for name in json.loads(card.read_text(encoding="utf-8")).get("trained_on", [])}
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelUnavailableError("the model's card is damaged", where=str(card), why=str(error)) from error
    related = [member for family in _FAMILIES if set(family) & named for member in family]
    return tuple(name for name in METRICS if name in {*named, *related})
