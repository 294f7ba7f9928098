"""Enhancement against real time and against public enhancers: one process, the same sound, interleaved, smallest times.

``ratio`` of ``…_vs_real_time`` is seconds of sound per second of work. The model is the shipped small one where it is
installed, else a random one of its size: time does not depend on what is heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import AuralignError
from auralign.models.enhancer import Enhancer, EnhancerModel
from auralign.models.gtcrn import Gtcrn
from auralign.models.log_mmse import LogMmse
from auralign.models.nsnet2 import Nsnet2
from auralign.runtime import weights

RATE_HZ = 16_000
SHIPPED = "flowse-small"
EVALUATIONS = (1, 4, 8)
PEERS: tuple[Callable[[], Enhancer], ...] = (LogMmse, Nsnet2, Gtcrn)


def bench(
    *, repeats: int = 3, seconds: float = 10.0, evaluations: Sequence[int] = EVALUATIONS
) -> dict[str, dict[str, object]]:
    """Times of the small model and of its peers, in the form that ``auralign bench enhancement --json`` prints.

    Args:
        repeats: Interleaved repeats of each, after one that is not timed.
        seconds: Length of the sound.
        evaluations: Numbers of network evaluations.
    """
    model, title = small_model()
    wave = _sound(seconds)
    sides: dict[str, Callable[[], object]] = {
        f"enhance_nfe{count}": lambda count=count: model.enhance_wave(wave, steps=count)  # type: ignore[misc]
        for count in evaluations
    }
    skipped = {}
    for make in PEERS:
        name = str(getattr(make, "name", ""))
        try:
            peer = make()
        except AuralignError as error:
            skipped[name] = str(error)
            continue
        sides[name] = lambda peer=peer: peer.enhance_wave(wave)  # type: ignore[misc]
    best = smallest_times(sides, repeats)
    work = f"{title}, {seconds:g} s at {RATE_HZ} Hz, {torch.get_num_threads()} threads"
    entries = {
        f"{name}_vs_real_time": _entry(took, seconds, "real time", work) for name, took in best.items()
    }
    middle = f"enhance_nfe{evaluations[len(evaluations) // 2]}"
    for make in PEERS:
        name = str(getattr(make, "name", ""))
        entries[f"{middle}_vs_{name}"] = (
            {"peer": name, "skipped": skipped[name]}
            if name in skipped
            else _entry(best[middle], best[name], name, work)
        )
    return entries


def small_model() -> tuple[EnhancerModel, str]:
    """The shipped small enhancer, or a random one of its size, and what to call it."""
    try:
        return EnhancerModel.load(weights.path(SHIPPED, offline=True)).eval(), SHIPPED
    except AuralignError:
        return EnhancerModel().eval(), "random weights of the small size"


def _sound(seconds: float) -> Float[Tensor, "1 time"]:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(1, round(seconds * RATE_HZ), generator=generator)


def smallest_times(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Smallest time of each side in seconds, interleaved, after one round that is not timed."""
    best = dict.fromkeys(sides, float("inf"))
    for turn in range(repeats + 1):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _entry(ours_s: float, peer_s: float, peer: str, work: str) -> dict[str, object]:
    return {"ours_s": ours_s, "peer_s": peer_s, "ratio": peer_s / ours_s, "peer": peer, "work": work}
