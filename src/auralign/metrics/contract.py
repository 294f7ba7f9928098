"""What a metric promises: a number or a reason, and a card that says what the number means.

A metric never raises on a sound it cannot score and never invents a number for it. The value is ``nan`` and
the reason says why, so that a table keeps one row for every item. Only a caller's mistake (two shapes that
differ) is an error. :data:`METRICS` is the registry that ``docs/metrics.md`` spells out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import UsageError

CLAMP_DB = 150.0
"""Ratios are cut to ±150 dB: float32 samples carry 24 bits, so beyond 144 dB a ratio measures rounding."""

SILENCE_PEAK = 2.0**-24
"""A sound whose peak is below half a step of 24-bit audio is silent."""

SILENT_REFERENCE = "silent reference"
SILENT_ESTIMATE = "silent estimate"
SILENT_MIXTURE = "silent mixture"
NO_INTERFERENCE = "mixture equals reference: nothing to improve"
ONE_SAMPLE = "fewer than two samples"


@dataclass(frozen=True)
class MetricResult:
    """One score of one item.

    >>> MetricResult(float("nan"), "silent reference").scored
    False
    """

    value: float
    """The score, or nan."""
    reason: str = ""
    """Why there is no score, or what was done to get it; empty when there is nothing to say."""

    @property
    def scored(self) -> bool:
        """True when the value is a number."""
        return math.isfinite(self.value)


@dataclass(frozen=True)
class MetricCard:
    """What a metric is: enough to read a column of a table without asking."""

    name: str
    """Key in tables."""
    title: str
    """Name in words."""
    unit: str
    """Unit of the value; empty for a pure number."""
    low: float
    """Smallest possible value."""
    high: float
    """Largest possible value."""
    source: str
    """Where the definition comes from."""
    larger_is_better: bool = True
    """Direction."""


def _db(name: str, title: str, source: str, *, improvement: bool = False) -> MetricCard:
    edge = 2 * CLAMP_DB if improvement else CLAMP_DB
    return MetricCard(name, title, "dB", -edge, edge, source)


_VINCENT = "Vincent et al. 2006 (BSS Eval 3), mir_eval bss_eval_sources"
_STOETER = "Stöter et al. 2018 (BSS Eval 4), museval images, whole file, one channel"
_DNSMOS = "Reddy et al. 2022 (arXiv:2110.01763)"
_ROUX = "Le Roux et al. 2019 (arXiv:1811.02508)"

METRICS: dict[str, MetricCard] = {
    card.name: card
    for card in (
        _db("snr", "signal-to-noise ratio, 'plain SDR'", "AudioSep, DCASE 2024 task 9"),
        _db("snri", "improvement of snr over the mixture", "AudioSep, DCASE 2024 task 9", improvement=True),
        _db("si_sdr", "scale-invariant SDR, mean kept", _ROUX),
        _db("si_sdri", "improvement of si_sdr over the mixture", _ROUX, improvement=True),
        _db("sd_sdr", "scale-dependent SDR", _ROUX),
        _db("sdr_v3_512", "BSS Eval 3 SDR, 512 taps", _VINCENT),
        _db("sir_v3_512", "BSS Eval 3 SIR, 512 taps", _VINCENT),
        _db("sar_v3_512", "BSS Eval 3 SAR, 512 taps", _VINCENT),
        _db("sdr_v4", "BSS Eval 4 images SDR (equals snr)", _STOETER),
        _db("sir_v4", "BSS Eval 4 images SIR", _STOETER),
        _db("sar_v4", "BSS Eval 4 images SAR", _STOETER),
        MetricCard("judge_similarity", "cosine to the reference, held-out judge", "", -1.0, 1.0, "auralign"),
        MetricCard(
            "judge_margin_interferer", "cosine to reference minus to interferer", "", -2.0, 2.0, "auralign"
        ),
        MetricCard("judge_margin_mixture", "cosine to reference minus to mixture", "", -2.0, 2.0, "auralign"),
        MetricCard("judge_rank", "rank of the target's class", "", 1.0, math.inf, "auralign", False),
        MetricCard("judge_top1", "1 when the target's class ranks first", "", 0.0, 1.0, "auralign"),
        MetricCard("presence_auc", "ROC AUC of the presence score", "", 0.0, 1.0, "Hanley & McNeil 1982"),
        MetricCard(
            "presence_ap", "average precision of the presence score", "", 0.0, 1.0, "TREC, no interpolation"
        ),
        MetricCard(
            "level_change_db",
            "level of the estimate against the mixture",
            "dB",
            -CLAMP_DB,
            CLAMP_DB,
            "auralign",
            False,
        ),
        MetricCard("stoi", "short-time objective intelligibility", "", -1.0, 1.0, "Taal et al. 2011, pystoi"),
        MetricCard("estoi", "extended STOI", "", -1.0, 1.0, "Jensen & Taal 2016, pystoi"),
        MetricCard("pesq_wb", "PESQ, wide band, 16 kHz", "MOS-LQO", 1.0, 4.65, "ITU-T P.862.2, package pesq"),
        MetricCard("pesq_nb", "PESQ, narrow band", "MOS-LQO", 1.0, 4.56, "ITU-T P.862.1, package pesq"),
        MetricCard("dnsmos_sig", "DNSMOS P.835 speech quality", "MOS", 1.0, 5.0, _DNSMOS),
        MetricCard("dnsmos_bak", "DNSMOS P.835 background quality", "MOS", 1.0, 5.0, _DNSMOS),
        MetricCard("dnsmos_ovrl", "DNSMOS P.835 overall quality", "MOS", 1.0, 5.0, _DNSMOS),
        MetricCard("dnsmos_p808", "DNSMOS P.808 overall quality", "MOS", 1.0, 5.0, "arXiv:2010.15258"),
        MetricCard("distill_mos", "speech quality, held-out judge", "MOS", 1.0, 5.0, "arXiv:2502.05356"),
        MetricCard("speaker_similarity", "cosine of GE2E vectors", "", -1.0, 1.0, "arXiv:1710.10467"),
        MetricCard(
            "spectral_features", "best-match cosine of spectra within 50 ms", "", -1.0, 1.0, "auralign"
        ),
        MetricCard("wer", "word error rate", "", 0.0, math.inf, "Levenshtein 1966", False),
        MetricCard("speech_bert_score", "SpeechBERTScore precision", "", -1.0, 1.0, "arXiv:2401.16812"),
    )
}


def require_same_shape(**sounds: Tensor | None) -> None:
    """Raise a usage error when two sounds differ in shape; None is left out.

    >>> require_same_shape(est=torch.zeros(3), ref=torch.zeros(4))
    Traceback (most recent call last):
    auralign.errors.UsageError: metric: est (3,), ref (4,) differ in shape. To fix: make them equally long
    """
    shapes = {name: tuple(sound.shape) for name, sound in sounds.items() if sound is not None}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UsageError(f"{listed} differ in shape", where="metric", hint="make them equally long")


def is_silent(sound: Float[Tensor, "*batch time"]) -> bool:
    """True when no sample of the sound exceeds :data:`SILENCE_PEAK`."""
    return sound.numel() == 0 or bool(sound.abs().max() <= SILENCE_PEAK)


def why_unscorable(
    *, est: Float[Tensor, " time"], ref: Float[Tensor, " time"], mixture: Float[Tensor, " time"] | None = None
) -> str:
    """The first reason why an estimate cannot be scored, or an empty string.

    >>> why_unscorable(est=torch.ones(4), ref=torch.zeros(4))
    'silent reference'
    """
    require_same_shape(est=est, ref=ref, mixture=mixture)
    named = {"estimate": est, "reference": ref, "mixture": mixture}
    for name, sound in named.items():
        if sound is not None and not bool(torch.isfinite(sound).all()):
            return f"{name} has NaN or infinite samples"
    if ref.shape[-1] < 2:
        return ONE_SAMPLE
    if is_silent(ref):
        return SILENT_REFERENCE
    if is_silent(est):
        return SILENT_ESTIMATE
    if mixture is not None and is_silent(mixture):
        return SILENT_MIXTURE
    if mixture is not None and is_silent(mixture - ref):
        return NO_INTERFERENCE
    return ""
