"""Each paper's protocol as one object: which scores, how averaged, said in words.

"SDR" is several different numbers in these papers; a preset never prints a bare one. It scores one item from
arrays: the estimate of the target, the estimate of everything else, the references as they are in the
mixture (``refs[0]`` is the target), and the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.evaluation.table import Aggregation
from auralign.metrics import sdr
from auralign.metrics.bss_eval import BssEval, bss_eval_v3, bss_eval_v4
from auralign.metrics.contract import MetricResult

Wave = Float[np.ndarray, " time"]
Scores = dict[str, MetricResult]

BISEP_SILENCE = 1e-5
"""BiSep leaves out examples in which any signal has a sum of magnitudes up to this."""


@dataclass(frozen=True)
class Stems:
    """The sounds of one scored item, as float64 tensors."""

    target: Float[Tensor, " time"]
    """Estimate of the target."""
    residual: Float[Tensor, " time"]
    """Estimate of everything else."""
    ref: Float[Tensor, " time"]
    """The target in the mixture."""
    others: Float[Tensor, " time"]
    """Everything else in the mixture."""
    mixture: Float[Tensor, " time"]
    """The mixture."""


@dataclass(frozen=True)
class Preset:
    """A named protocol."""

    name: str
    """Name on the command line."""
    metrics: tuple[str, ...]
    """Scores it gives, keys of ``auralign.metrics.contract.METRICS``."""
    aggregation: Aggregation
    """How the headline figure is averaged."""
    definition: str
    """The protocol in words; printed above every table."""
    scorer: Callable[[Stems], Scores]
    """Scores of one item."""
    mixing_rule: str = ""
    """How the protocol makes its mixtures, when it says so."""

    def score(self, *, target: Wave, residual: Wave, refs: Sequence[Wave], mixture: Wave) -> Scores:
        """Scores of one item.

        Args:
            target: Estimate of the target.
            residual: Estimate of everything else (the complement).
            refs: References as they are in the mixture; the first is the target.
            mixture: The mixture.
        """
        if not refs:
            raise UsageError(
                "no reference", where=self.name, hint="refs[0] is the target as it is in the mixture"
            )
        sounds = [
            torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)) for x in (target, residual, mixture)
        ]
        stems = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)) for x in refs]
        # BSS Eval does not see the interferer's scale, so a sum equals the average that OmniSep takes.
        others = torch.stack(stems[1:]).sum(0) if len(stems) > 1 else sounds[2] - stems[0]
        return self.scorer(Stems(sounds[0], sounds[1], stems[0], others, sounds[2]))


def _ratios(item: Stems, *names: str) -> Scores:
    return {name: sdr.score(name, est=item.target, ref=item.ref, mixture=item.mixture) for name in names}


def _pair(item: Stems) -> tuple[Tensor, Tensor]:
    return torch.stack([item.target, item.residual]), torch.stack([item.ref, item.others])


def _result(value: Tensor | float, reason: str) -> MetricResult:
    """A score with its reason; the reason of a sibling score is not repeated beside a number."""
    number = float(value)
    return MetricResult(number, reason if math.isnan(number) or "loading" in reason else "")


def _first_source(result: BssEval, version: str) -> Scores:
    ratios = {"sdr": result.sdr_db, "sir": result.sir_db, "sar": result.sar_db}
    return {f"{kind}_{version}": _result(values[0], result.reasons[0]) for kind, values in ratios.items()}


def _omnisep(item: Stems) -> Scores:
    est, ref = _pair(item)
    return _first_source(bss_eval_v4(est=est, ref=ref), "v4")


def _auralign(item: Stems) -> Scores:
    est, ref = _pair(item)
    ratios = _ratios(item, "si_sdri", "si_sdr", "snri", "snr", "sd_sdr")
    return ratios | _first_source(bss_eval_v3(est=est, ref=ref), "v3_512")


def score_bisep(*, est: Float[Tensor, "source time"], ref: Float[Tensor, "source time"]) -> Scores:
    """BiSep's scores of one mixture with an estimate of every source: version 3, averaged over the sources.

    Args:
        est: Estimates, in the order of the references (no permutation).
        ref: References.
    """
    result = bss_eval_v3(est=est, ref=ref)
    quiet = bool((torch.cat([est, ref]).abs().sum(-1) <= BISEP_SILENCE).any())
    reason = f"a signal sums to {BISEP_SILENCE:g} or less: BiSep leaves the example out" if quiet else ""
    reason = reason or next((text for text in result.reasons if text), "")
    ratios = {"sdr_v3_512": result.sdr_db, "sir_v3_512": result.sir_db, "sar_v3_512": result.sar_db}
    return {name: _result(math.nan if quiet else values.mean(), reason) for name, values in ratios.items()}


def _bisep(item: Stems) -> Scores:
    est, ref = _pair(item)
    return score_bisep(est=est, ref=ref)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "auralign",
            ("si_sdri", "si_sdr", "snri", "snr", "sd_sdr", "sdr_v3_512", "sir_v3_512", "sar_v3_512"),
            "mean",
            "auralign: SI-SDR and plain SNR with their improvements over the mixture, no mean removal, and "
            "BSS Eval 3 with 512 taps of the target against [target, everything else]; mean over items.",
            _auralign,
        ),
        Preset(
            "omnisep",
            ("sdr_v4", "sir_v4", "sar_v4"),
            "mean",
            "OmniSep, CLIPSep, MARS-Sep (clean+): BSS Eval 4 images over the whole file, no permutation; "
            "the first source only, with the complement as the second estimate; mean ± standard error "
            "over items. SDR is the plain SNR.",
            _omnisep,
            mixing_rule="two clips, no level normalisation, each halved, summed",
        ),
        Preset(
            "audiosep",
            ("snri", "si_sdr"),
            "class mean",
            "AudioSep: SDRi is the improvement of the plain SNR; SI-SDR is absolute, without mean removal; "
            "mean of class means.",
            lambda item: _ratios(item, "snri", "si_sdr"),
        ),
        Preset(
            "bisep",
            ("sdr_v3_512", "sir_v3_512", "sar_v3_512"),
            "mean",
            "BiSep: BSS Eval 3 sources with 512 taps, no permutation, averaged over the sources of a "
            "mixture; examples with a silent signal are left out and counted; mean over items.",
            _bisep,
        ),
        Preset(
            "dcase24t9",
            ("snr", "snri", "si_sdr"),
            "mean",
            "DCASE 2024 task 9: SDR is the plain SNR, SDRi its improvement over the mixture, SI-SDR "
            "without mean removal; mean over items.",
            lambda item: _ratios(item, "snr", "snri", "si_sdr"),
            mixing_rule="noise scaled to a mean-power ratio of −15…15 dB (integers); a mixture with a "
            "peak above 1 is multiplied, with its source, by 0.9/peak",
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of this name.

    >>> preset("audiosep").metrics
    ('snri', 'si_sdr')
    """
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}", where="evaluate", hint=f"use one of {', '.join(PRESETS)}")
    return PRESETS[name]
