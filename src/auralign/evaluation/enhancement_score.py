r"""Scores of enhanced speech: every metric in one pass over a few recordings of one system.

Without a reference: DNSMOS and Distill-MOS. With one: PESQ, ESTOI, SI-SDR and its improvement, spectra in their
places, whose voice it is. DNSMOS and the speaker encoder follow the level. They hear each output as it is, or, with
``equal``, both sides at one loudness; an output beyond ±1 is turned down to 0.99 for them, and its row says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.evaluation.enhancement_items import RATE_HZ, SpeechItem
from auralign.metrics import sdr
from auralign.metrics.contract import MetricResult, why_unscorable
from auralign.metrics.dnsmos import NAMES as DNSMOS
from auralign.metrics.dnsmos import DnsMos
from auralign.metrics.intelligibility import estoi, pesq_wb
from auralign.metrics.perceptual import Judge, distill_mos
from auralign.metrics.speech_features import feature_score
from auralign.rewards.speech import normalise_loudness

Loudness = Literal["keep", "equal"]
Scores = dict[str, MetricResult]
PAIRED = ("pesq_wb", "estoi", "si_sdr", "si_sdri", "speaker_similarity", "spectral_features")
METRICS = (*DNSMOS, "distill_mos", *PAIRED)
NO_REFERENCE = "no clean reference"
TURNED_DOWN = "beyond full scale, turned down for the listening metrics"
AT_ONCE = 4
"""Windows that go through a listening network together; one takes about 150 MB."""
_PEAK = 0.99


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics in the order of tables; none named means all.

    >>> check_metrics(["estoi", "pesq_wb"])
    ('pesq_wb', 'estoi')
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UsageError(
            f"no speech metric is called {unknown[0]!r}", where="--metrics", hint=", ".join(METRICS)
        )
    return tuple(name for name in METRICS if not names or name in names)


@final
class SpeechScorer:
    """All metrics that are asked for; what each needs is opened once, when it is first used.

    Args:
        metrics: Names of :data:`METRICS`.
        loudness: ``keep`` or ``equal``.
    """

    def __init__(self, metrics: Sequence[str] = METRICS, *, loudness: Loudness = "keep") -> None:
        self.metrics, self.loudness = check_metrics(metrics), loudness
        self.seconds: dict[str, float] = {}
        self._voices: dict[str, Float[Tensor, " dim"]] = {}

    @cached_property
    def _dnsmos(self) -> DnsMos:
        return DnsMos(p808="dnsmos_p808" in self.metrics, at_once=AT_ONCE)

    @cached_property
    def _judge(self) -> Judge:
        from auralign.models.distill_mos import load_distill_mos

        return load_distill_mos()

    @cached_property
    def _speaker(self) -> Callable[[Tensor], Tensor]:
        from auralign.models.speaker import load_speaker_encoder

        return load_speaker_encoder()

    def __call__(self, outputs: Sequence[Float[Tensor, " _"]], items: Sequence[SpeechItem]) -> list[Scores]:
        """Scores of each output by name; nan and a reason for what cannot be scored.

        Args:
            outputs: Enhanced recordings, as long as their items.
            items: What they were made from.
        """
        heard = [self._heard(output) for output in outputs]
        found: list[Scores] = [{} for _ in outputs]
        self._listen(heard, found)
        for output, one, item, scores in zip(outputs, heard, items, found, strict=True):
            scores |= self._paired(output, one, item)
            if self.loudness == "keep" and output.numel() and 1.0 < float(output.abs().max()) < math.inf:
                for name in (*DNSMOS, "speaker_similarity"):
                    if name in scores and not scores[name].reason:
                        scores[name] = MetricResult(scores[name].value, TURNED_DOWN)
        return [{name: scores[name] for name in self.metrics} for scores in found]

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def _heard(self, sound: Float[Tensor, " time"]) -> Float[Tensor, " time"]:
        """The sound as metrics that follow the level hear it."""
        if not sound.numel() or not bool(sound.isfinite().all()):
            return sound
        if self.loudness == "equal":
            return normalise_loudness(sound[None], RATE_HZ)[0]
        peak = float(sound.abs().max())
        return sound * (_PEAK / peak) if peak > 1.0 else sound

    def _listen(self, heard: list[Float[Tensor, " _"]], found: list[Scores]) -> None:
        """Metrics that need no reference, all outputs together."""
        if set(DNSMOS) & set(self.metrics):
            with self._timed("dnsmos"):
                results = self._dnsmos(heard, RATE_HZ)
            for scores, result in zip(found, results, strict=True):
                scores |= result
        if "distill_mos" in self.metrics:
            with self._timed("distill_mos"):
                judged = distill_mos(heard, RATE_HZ, judge=self._judge, at_once=AT_ONCE)
            for scores, one in zip(found, judged, strict=True):
                scores["distill_mos"] = one

    def _paired(
        self, output: Float[Tensor, " time"], heard: Float[Tensor, " time"], item: SpeechItem
    ) -> Scores:
        """Metrics against the clean speech."""
        asked = [name for name in PAIRED if name in self.metrics]
        if item.clean is None:
            return dict.fromkeys(asked, MetricResult(math.nan, NO_REFERENCE))
        clean, scores = item.clean, {}
        makers: Mapping[str, Callable[[], MetricResult]] = {
            "pesq_wb": lambda: pesq_wb(est=output, ref=clean, rate_hz=RATE_HZ),
            "estoi": lambda: estoi(est=output, ref=clean, rate_hz=RATE_HZ),
            "si_sdr": lambda: sdr.score("si_sdr", est=output, ref=clean),
            "si_sdri": lambda: sdr.score("si_sdri", est=output, ref=clean, mixture=item.noisy),
            "speaker_similarity": lambda: self._same_voice(heard, item),
            "spectral_features": lambda: feature_score(est=output, ref=clean, rate_hz=RATE_HZ),
        }
        for name in asked:
            with self._timed(name):
                scores[name] = makers[name]()
        return scores

    def _same_voice(self, heard: Float[Tensor, " time"], item: SpeechItem) -> MetricResult:
        """Cosine of the speaker vectors of the output and of the clean speech, whose vector is kept."""
        if item.clean is None:
            return MetricResult(math.nan, NO_REFERENCE)
        if reason := why_unscorable(est=heard, ref=item.clean):
            return MetricResult(math.nan, reason)
        with torch.inference_mode():
            if item.sounds not in self._voices:
                self._voices[item.sounds] = self._speaker(self._heard(item.clean)[None])[0]
            cosine = float(self._speaker(heard[None])[0] @ self._voices[item.sounds])
        return MetricResult(cosine, "" if math.isfinite(cosine) else "the speaker encoder hears no voice")
