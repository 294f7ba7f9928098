r"""Speech rewards: what listeners would say, whose voice it is, and how much of the speech is still there.

Each wraps a metric and names it in ``metrics``, so that reports mark it as trained on. DNSMOS, and loudness-aware
metrics in general, rise with the level; every sound is therefore brought to one loudness before it is scored
(FlowSE-GRPO's reproductions do the same by RMS). Silence is the worst score, not nan: leaving it out of its group
would make it free. nan is for what says nothing about the estimate: samples that are not finite, no target, a
target that cannot be scored against.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from auralign.audio.loudness import integrated_loudness
from auralign.errors import UsageError
from auralign.metrics.contract import SILENCE_PEAK, SILENT_ESTIMATE, MetricResult
from auralign.metrics.speech_features import REACH, Features, best_match, spectral_features
from auralign.rewards.base import Scene
from auralign.rewards.signal import bounded_si_sdr

if TYPE_CHECKING:
    from auralign.metrics.dnsmos import DnsMos
    from auralign.models.speaker import SpeakerEncoder

RATE_HZ = 16_000
TARGET_LUFS = -25.0
PEAK = 0.99
WORST_MOS, WORST_SHARE = 1.0, 0.0

Part = Literal["sig", "bak", "ovrl", "p808"]
Reference = Literal["target", "mixture"]


def normalise_loudness(
    wave: Float[Tensor, "clip time"], rate_hz: int, *, target_lufs: float = TARGET_LUFS, peak: float = PEAK
) -> Float[Tensor, "clip time"]:
    r"""Each clip at one loudness by a constant gain, less where its peak would pass ``peak``.

    The loudness is that of BS.1770-4; a clip shorter than 400 ms, or one that is all but silent, takes its mean
    power in its stead. A silent clip, or one with samples that are not finite, stays as it is.

    Args:
        wave: Clips of one channel.
        rate_hz: Their rate.
        target_lufs: The loudness.
        peak: Largest sample afterwards.

    >>> loud = normalise_loudness(torch.sin(torch.arange(16000.0) / 3)[None].repeat(2, 1) * 0.01, 16000)
    >>> round(integrated_loudness(loud[:1].numpy(), 16000), 2)
    -25.0
    """
    gains = []
    for clip in wave.detach().float().cpu():
        highest = float(clip.abs().max()) if clip.numel() else 0.0
        if not math.isfinite(highest) or highest <= SILENCE_PEAK:
            gains.append(1.0)
            continue
        clip = clip / highest  # the gate of -70 LUFS must not close on a faint clip
        lufs = integrated_loudness(clip[None].numpy(), rate_hz)
        if not math.isfinite(lufs):
            lufs = 10 * math.log10(float(clip.double().square().mean()))
        gains.append(min(10 ** ((target_lufs - lufs) / 20), peak) / highest)
    return wave * torch.tensor(gains, dtype=wave.dtype, device=wave.device)[:, None]


def _heard(wave: Float[Tensor, "*clip time"]) -> Bool[Tensor, "*clip"]:
    return wave.abs().amax(-1) > SILENCE_PEAK


def _scored(
    value: Float[Tensor, "batch group"], estimate: Float[Tensor, "batch group time"], worst: float
) -> Float[Tensor, "batch group"]:
    """The worst score for silence, nan for samples that are not finite, whatever the metric made of them."""
    finite = estimate.isfinite().all(-1)
    silent = finite & ~_heard(estimate.nan_to_num())
    value = torch.where(silent & ~value.isinf(), torch.full_like(value, worst), value)
    return torch.where(finite, value, torch.nan)


def _at_16_khz(scene: Scene, who: str) -> None:
    if scene.rate_hz != RATE_HZ:
        raise UsageError(
            f"the scene is at {scene.rate_hz} Hz, the reward hears {RATE_HZ}",
            where=who,
            hint="resample the sounds first",
        )


@lru_cache(maxsize=4)
def _dnsmos(p808: bool, most_windows: int | None, most_repeated: int | None, narrow: bool) -> DnsMos:
    from auralign.metrics.dnsmos import DnsMos

    return DnsMos(p808=p808, most_windows=most_windows, most_repeated=most_repeated, narrow=narrow)


@final
class _Memory:
    """The last estimate and its scores, so that OVRL, SIG and BAK of one scene cost one pass."""

    def __init__(self) -> None:
        self._of: Any = None
        self._version = -1
        self._scores: list[dict[str, MetricResult]] = []

    def get(
        self, estimate: Tensor, make: Callable[[], list[dict[str, MetricResult]]]
    ) -> list[dict[str, MetricResult]]:
        version = -1 if estimate.is_inference() else estimate._version
        known = self._of is not None and self._of() is estimate and version == self._version
        if not known or version < 0:
            self._scores, self._version, self._of = make(), version, weakref.ref(estimate)
        return self._scores


_memories: dict[tuple[bool, int | None, int | None, bool], _Memory] = {}


@final
class DnsMosReward:
    """One score of DNSMOS, 1 to 5.

    Args:
        part: Which score.
        most_windows: 9.01-s windows heard of a clip; ``None`` hears all, as reports do.
        most_repeated: The same for clips below 9.01 s. Repetition makes seven windows of a 4-s clip. Each holds
            all of its sounds, and the network takes the largest of its features over time, so they differ in
            where the loop is cut: one says what all say, for every member of a group alike.
        narrow: Convolve in bfloat16 where the CPU is faster at it.
    """

    def __init__(
        self,
        part: Part = "ovrl",
        *,
        most_windows: int | None = 2,
        most_repeated: int | None = 1,
        narrow: bool = True,
    ) -> None:
        self.part = part
        self._key = (part == "p808", most_windows, most_repeated, narrow)
        self.metrics = (f"dnsmos_{part}",)

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """Score every member of every group."""
        _at_16_khz(scene, "DNSMOS reward")
        scorer = _dnsmos(*self._key)

        def make() -> list[dict[str, MetricResult]]:
            flat = normalise_loudness(scene.estimate.detach().flatten(0, 1), scene.rate_hz)
            return scorer(list(flat), scene.rate_hz)

        rows = _memories.setdefault(self._key, _Memory()).get(scene.estimate, make)
        value = torch.tensor([row[f"dnsmos_{self.part}"].value for row in rows])
        value = value.unflatten(0, scene.estimate.shape[:2]).to(scene.estimate.device)
        return _scored(value, scene.estimate, WORST_MOS)


@final
class SpeakerReward:
    """Cosine of the speaker vectors of the estimate and of a reference, 0 to 1.

    Args:
        encoder: A speaker encoder in evaluation mode.
        reference: ``target``: the clean speech; ``mixture``: what was enhanced, for recordings without a target.
    """

    metrics = ("speaker_similarity",)

    def __init__(self, encoder: SpeakerEncoder, *, reference: Reference = "target") -> None:
        self.encoder, self.reference = encoder, reference

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """Score every member of every group; nan without the reference."""
        _at_16_khz(scene, "speaker reward")
        known = scene.target if self.reference == "target" else scene.mixture
        if known is None:
            return scene.estimate.new_full(scene.estimate.shape[:2], torch.nan)
        with torch.no_grad():
            flat = normalise_loudness(scene.estimate.detach().flatten(0, 1), scene.rate_hz)
            est = self.encoder(flat.float()).unflatten(0, scene.estimate.shape[:2])
            ref = self.encoder(normalise_loudness(known, scene.rate_hz).float())
        value = torch.einsum("bgd,bd->bg", est.nan_to_num(), ref)
        return _scored(value, scene.estimate, WORST_SHARE).where(~ref.isnan().any(1)[:, None], torch.nan)


@final
class SiSdrReward:
    """SI-SDR against the target in units of 10 dB, levelling off at ± ``ceiling_db``; invariant to gain.

    Args:
        ceiling_db: Where it levels off, dB.
    """

    metrics = ("si_sdr", "si_sdri", "snr", "snri", "sd_sdr")

    def __init__(self, ceiling_db: float = 30.0) -> None:
        if not ceiling_db > 0:
            raise UsageError(f"ceiling_db is {ceiling_db}; it must be above 0", where="SiSdrReward")
        self.ceiling_db = ceiling_db

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """Score every member of every group; nan without a target."""
        if scene.target is None:
            return scene.estimate.new_full(scene.estimate.shape[:2], torch.nan)
        target = scene.target[:, None].expand_as(scene.estimate)
        value = bounded_si_sdr(scene.estimate, target, ceiling_db=self.ceiling_db) / 10.0
        finite = scene.estimate.isfinite().all(-1) & target.isfinite().all(-1)
        return value.where(finite, torch.nan)


@final
class PairedReward:
    """A metric of one clip against its clean reference: PESQ, STOI, ESTOI.

    The loudness of both is made equal first. A sound that the metric finds no speech in is nan, as in reports.

    Args:
        name: The metric's name in reports.
        metric: What scores a clip.
        worst: Score of silence.
    """

    def __init__(self, name: str, metric: Callable[..., MetricResult], *, worst: float) -> None:
        self.name, self.metric, self.worst = name, metric, worst
        self.metrics = (name,)

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """Score every member of every group; nan without a target."""
        if scene.target is None:
            return scene.estimate.new_full(scene.estimate.shape[:2], torch.nan)
        flat = normalise_loudness(scene.estimate.detach().flatten(0, 1), scene.rate_hz).cpu()
        clean = normalise_loudness(scene.target.detach(), scene.rate_hz).cpu()
        group = scene.estimate.shape[1]
        scores = [self._one(est, clean[i // group], scene.rate_hz) for i, est in enumerate(flat)]
        value = torch.tensor(scores, device=scene.estimate.device)
        return value.view(scene.estimate.shape[0], group)

    def _one(self, est: Float[Tensor, " time"], ref: Float[Tensor, " time"], rate_hz: int) -> float:
        result = self.metric(est=est, ref=ref, rate_hz=rate_hz)
        return self.worst if result.reason == SILENT_ESTIMATE else result.value


@final
class FeatureReward:
    """SpeechBERTScore precision against the target, in the space of spectra or of a speech model.

    Args:
        features: The space of frames.
        reach: How far a match may lie, frames; ``None`` (anywhere) with a speech model.
        name: The metric's name in reports.
    """

    def __init__(
        self,
        features: Features = spectral_features,
        *,
        reach: int | None = REACH,
        name: str = "spectral_features",
    ) -> None:
        self.features, self.reach = features, reach
        self.metrics = (name,)

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """Score every member of every group; nan without a target, or where it is silent."""
        _at_16_khz(scene, "feature reward")
        if scene.target is None:
            return scene.estimate.new_full(scene.estimate.shape[:2], torch.nan)
        batch, group = scene.estimate.shape[:2]
        with torch.no_grad():
            flat = normalise_loudness(scene.estimate.detach().flatten(0, 1), scene.rate_hz)
            clean = normalise_loudness(scene.target.detach(), scene.rate_hz)
            est = self.features(flat.nan_to_num(posinf=0.0, neginf=0.0))
            ref = self.features(clean.nan_to_num(posinf=0.0, neginf=0.0))
            value = best_match(est=est, ref=ref.repeat_interleave(group, 0), reach=self.reach)
        known = clean.isfinite().all(1) & _heard(clean.nan_to_num())
        value = _scored(value.view(batch, group), scene.estimate, WORST_SHARE)
        return value.where(known[:, None], torch.nan)


def pesq_reward() -> PairedReward:
    """Wide-band PESQ against the target, 1.04 to 4.64; silence scores 1."""
    from auralign.metrics.intelligibility import pesq_wb

    return PairedReward("pesq_wb", pesq_wb, worst=WORST_MOS)


def estoi_reward() -> PairedReward:
    """ESTOI against the target, about 0 to 1; silence scores 0."""
    from auralign.metrics.intelligibility import estoi

    return PairedReward("estoi", estoi, worst=WORST_SHARE)


def speech_bert_reward(place: str = "") -> FeatureReward:
    """SpeechBERTScore precision by a speech model of the user's own.

    Args:
        place: ``PLACE@LAYER``: a folder or hub id in transformers' layout, and which hidden state.
    """
    from auralign.models.speech_ssl import SpeechFeatures

    folder, at, layer = place.rpartition("@")
    if not at or not folder or not layer.isdigit():
        raise UsageError(
            f"{place!r} names no layer of a speech model",
            where="reward 'speech_bert'",
            hint="write speech_bert:FOLDER@14",
        )
    return FeatureReward(SpeechFeatures.load(folder, int(layer)), reach=None, name="speech_bert_score")


@lru_cache(maxsize=1)
def _speaker_encoder() -> SpeakerEncoder:
    from auralign.models.speaker import load_speaker_encoder

    return load_speaker_encoder()


def speaker_reward(reference: Reference = "target") -> SpeakerReward:
    """Speaker similarity by Resemblyzer's encoder, which is loaded once."""
    return SpeakerReward(_speaker_encoder(), reference=reference)


def speech_scales(
    parts: dict[str, Sequence[float] | Float[Tensor, "..."]],
) -> dict[str, float]:
    """Standard deviation of each reward over calibration clips, nan left out: the frozen scales of a composite.

    >>> speech_scales({"estoi": [0.2, 0.6, math.nan]})
    {'estoi': 0.2}
    """
    scales = {}
    for name, values in parts.items():
        seen = torch.as_tensor(values, dtype=torch.float64).flatten()
        seen = seen[seen.isfinite()]
        std = float(seen.std(correction=0)) if len(seen) > 1 else 0.0
        if not std > 0:
            raise UsageError(
                f"the reward does not vary over {len(seen)} clips",
                where=f"reward {name!r}",
                hint="calibrate on more clips, of several systems or noise levels",
            )
        scales[name] = round(std, 6)
    return scales
