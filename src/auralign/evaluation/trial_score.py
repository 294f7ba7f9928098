"""Scores of one mixture for every model and query of a trial; what they share is computed once.

A mixture is rendered once, heard by YAMNet once, solved by BSS Eval once, and its sources heard by the judge once; each
model makes one trunk pass and answers all queries from it. Mixtures are not batched: one at a time stays in a
processor's cache and is faster there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from auralign.data.mixtures import Mixture, MixtureSpec
from auralign.errors import UsageError
from auralign.evaluation.items import Modality, SoundboxItems
from auralign.evaluation.table import Row
from auralign.evaluation.trial_judge import ANCHORS, JUDGED, Precision, TrialJudge
from auralign.evaluation.trial_queries import Queries, SharedEncoders, read_vectors, share_encoders
from auralign.metrics import sdr
from auralign.metrics.bss_eval import bss_eval_target
from auralign.metrics.contract import CLAMP_DB, is_silent, why_unscorable
from auralign.models.judge import load_judge
from auralign.models.separator import SeparatorModel

RATIOS = ("si_sdri", "snri", "sdr_v3_512", "sir_v3_512", "sar_v3_512")
METRICS = (*RATIOS, *JUDGED, "level_change_db", "presence")
PARTS = ("render", "query", "trunk", "masks", "ratios", "bss", "judge")


@dataclass(frozen=True)
class Contender:
    """One model of an arm."""

    arm: str
    """Name of the arm."""
    seed: int
    """Number of the model within its arm."""
    folder: str
    """Where it is."""
    sha256: str
    """Of its weights; rows of other weights do not count as this model's."""


@dataclass(frozen=True)
class Work:
    """What is still to be scored on one mixture."""

    list: str
    """Name of the list."""
    spec: MixtureSpec
    """The mixture."""
    asked: Mapping[int, tuple[Modality, ...]]
    """Queries by the contender's number."""
    judged: bool = False
    """Whether the judge listens."""


@dataclass(frozen=True)
class Scored:
    """Rows of one mixture, and the seconds that went into each part."""

    rows: list[Row]
    """One per contender and query."""
    seconds: dict[str, float]
    """By part."""


@dataclass(frozen=True)
class Setting:
    """Everything a worker needs to start."""

    corpus: Path
    """Built corpus."""
    contenders: tuple[Contender, ...] = ()
    """Models, in order."""
    seed: int = 0
    """Of audio examples."""
    judge: Precision | None = None
    """The judge's arithmetic; None leaves it out."""
    prototypes: Path | None = None
    """Class prototypes of the judge, for ranks."""
    examples: Path | None = None
    """Features of recordings by the built-in encoder; others are computed when they are asked for."""


@dataclass
class _Output:
    """One answer of one model, before and after it is scored."""

    contender: Contender
    query: Modality
    asked: str = ""
    wave: Float[np.ndarray, " time"] | None = None
    presence: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    failed: bool = False


class Scorer:
    """All models of a trial in one process.

    Args:
        setting: Models, corpus, judge.
    """

    def __init__(self, setting: Setting) -> None:
        self.items = SoundboxItems(setting.corpus, seed=setting.seed)
        self.contenders = setting.contenders
        self.models = [SeparatorModel.load(Path(one.folder)) for one in setting.contenders]
        self._shared = SharedEncoders()
        share_encoders(self.models, self._shared)
        self.queries = Queries(self.items, read_vectors(setting.examples))
        self.judge: TrialJudge | None = None
        if setting.judge is not None:
            self.judge = TrialJudge(load_judge(), setting.judge, read_vectors(setting.prototypes))
        self._seconds: dict[str, float] = {}

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - began

    def example(self, clip: str) -> Float[np.ndarray, " dim"]:
        """Features of a recording by the built-in encoder."""
        return self.queries.features(self._shared, "audio", clip)[0].numpy()

    def prototype(self, label: str, waves: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " dim"]:
        """The judge's mean embedding of a few recordings of a class."""
        if self.judge is None:
            raise UsageError("there is no judge to make prototypes", where=label)
        mean: np.ndarray = np.mean([self.judge.embed([wave])[0].numpy() for wave in waves], axis=0)
        return mean

    def score(self, work: Work) -> Scored:
        """Rows of one mixture; whatever fails becomes the reason of its rows."""
        self._seconds = {}
        outputs = [
            _Output(self.contenders[number], query)
            for number, queries in work.asked.items()
            for query in queries
        ]
        about: Row = {}
        try:
            with self._timed("render"):
                mixture = self.items.renderer.render(work.spec)
            about = self._about(work.spec)
        except Exception as error:  # an item must never stop the run
            for output in outputs:
                _fail(output, error)
        else:
            self._separate(work, mixture, outputs)
            self._rate(work, mixture, [one for one in outputs if one.wave is not None], str(about["class"]))
        head: Row = {"list": work.list, "id": work.spec.id, "judged": work.judged}
        return Scored([head | _row(one, about) for one in outputs], dict(self._seconds))

    def _about(self, spec: MixtureSpec) -> Row:
        clips = [self.items.clips[component.clip] for component in spec.components]
        target = clips[spec.target]
        others = [clip.labels[0] for n, clip in enumerate(clips) if n != spec.target]
        return {
            "class": target.labels[0],
            "interferer": ", ".join(others),
            "split": target.split,
            "source": target.source or target.id,
        }

    def _separate(self, work: Work, mixture: Mixture, outputs: list[_Output]) -> None:
        """One trunk pass a model, all its queries from it."""
        wave = torch.from_numpy(mixture.mixture)[None]
        label = self.items.clips[work.spec.components[work.spec.target].clip].labels[0]
        for number in work.asked:
            model = self.models[number]
            mine = [one for one in outputs if one.contender == self.contenders[number]]
            vectors: list[Tensor] = []
            with torch.inference_mode(), self._timed("query"):
                for one in mine:
                    try:
                        asked = self.items.ask(work.spec, label, one.query)
                        one.asked = ", ".join(asked.texts) or one.query
                        vectors.append(self.queries.vector(model, asked))
                    except Exception as error:
                        _fail(one, error)
            mine = [one for one in mine if not one.failed]
            if not mine:
                continue
            try:
                found, presence = self._answer(model, wave, torch.stack(vectors)[None])
            except Exception as error:
                for one in mine:
                    _fail(one, error)
                continue
            for n, one in enumerate(mine):
                one.wave, one.presence = found[n], float(presence[n])

    def _answer(
        self,
        model: SeparatorModel,
        wave: Float[Tensor, "1 time"],
        query: Float[Tensor, "1 query dim"],
    ) -> tuple[Float[np.ndarray, "query time"], Float[np.ndarray, " query"]]:
        with torch.inference_mode():
            with self._timed("trunk"):
                spec = model.spectrogram(wave)
                state = model.net.analyse(spec, wave)
            with self._timed("masks"):
                answer = model.net.answer(state, query)
                window = torch.hann_window(model.n_fft)
                masked = answer.mask[0] * spec
                found = torch.istft(masked, model.n_fft, model.hop, window=window, length=wave.shape[-1])
        return found.numpy(), answer.presence[0].numpy()

    def _rate(self, work: Work, mixture: Mixture, outputs: list[_Output], label: str) -> None:
        """Scores of all outputs of one mixture."""
        if not outputs:
            return
        try:
            est = torch.from_numpy(np.stack([one.wave for one in outputs if one.wave is not None])).double()
            with self._timed("ratios"):
                _ratios(est, mixture, outputs)
            with self._timed("bss"):
                _bss(est, mixture, outputs)
        except Exception as error:
            for one in outputs:
                _fail(one, error)
            return
        if work.judged and self.judge is not None:
            try:
                with self._timed("judge"):
                    self._listen(self.judge, mixture, outputs, label)
            except Exception as error:  # the judge's failure leaves the other scores standing
                for one in outputs:
                    _fail(one, error, "judge: ")

    def _listen(self, judge: TrialJudge, mixture: Mixture, outputs: list[_Output], label: str) -> None:
        heard = [
            one
            for one in outputs
            if one.wave is not None
            and np.isfinite(one.wave).all()
            and not is_silent(torch.from_numpy(one.wave))
        ]
        if not heard or is_silent(torch.from_numpy(mixture.target)):
            return
        sounds = [mixture.target, mixture.interferer, mixture.mixture]
        vectors = judge.embed(sounds + [one.wave for one in heard if one.wave is not None])
        scores = judge.scores(vectors[3:], vectors[:3], label)
        for n, one in enumerate(heard):
            one.scores |= {name: values[n] for name, values in scores.items()}


def _ratios(est: Float[Tensor, "est time"], mixture: Mixture, outputs: list[_Output]) -> None:
    """Ratios that need no filters, and the level, of all outputs at once."""
    ref, whole = (torch.from_numpy(x).double() for x in (mixture.target, mixture.mixture))
    clean, mixed = ref.expand_as(est), whole.expand_as(est)
    si_sdri = sdr.si_sdri(est=est, ref=clean, mixture=mixed)
    snri = sdr.snri(est=est, ref=clean, mixture=mixed)
    level = 10 * torch.log10(est.square().sum(-1) / whole.square().sum())
    level = level.clamp(-CLAMP_DB, CLAMP_DB)
    for n, one in enumerate(outputs):
        one.scores |= {
            "si_sdri": float(si_sdri[n]),
            "snri": float(snri[n]),
            "level_change_db": float(level[n]),
        }
        if math.isnan(one.scores["si_sdri"]):
            one.reasons.append(why_unscorable(est=est[n], ref=ref, mixture=whole))


def _bss(est: Float[Tensor, "est time"], mixture: Mixture, outputs: list[_Output]) -> None:
    """BSS Eval 3 of the target against [target, everything else], one solve for all outputs."""
    ref = torch.stack([torch.from_numpy(mixture.target), torch.from_numpy(mixture.interferer)]).double()
    result = bss_eval_target(est=est, ref=ref)
    for n, one in enumerate(outputs):
        one.scores |= {
            "sdr_v3_512": float(result.sdr_db[n]),
            "sir_v3_512": float(result.sir_db[n]),
            "sar_v3_512": float(result.sar_db[n]),
        }
        one.reasons += [result.reasons[n]] if result.reasons[n] not in ("", *one.reasons) else []


def _fail(output: _Output, error: Exception, part: str = "") -> None:
    output.failed = True
    output.reasons.append(f"{part}{type(error).__name__}: {error}".replace("\n", " ").strip())


def _row(output: _Output, about: Row) -> Row:
    one = output.contender
    row: Row = {
        "query": output.query,
        "arm": one.arm,
        "seed": one.seed,
        "model": one.sha256,
        "asked": output.asked,
        **about,
    }
    scores = dict.fromkeys((*METRICS, *ANCHORS), math.nan) | output.scores
    if output.presence is not None:
        scores["presence"] = output.presence
    return row | scores | {"failed": output.failed, "reason": "; ".join(filter(None, output.reasons))}
