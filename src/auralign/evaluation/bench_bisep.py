"""A weakly supervised BiSep step and the search of MixIT, each against its plain form: one process, smallest times.

The plain step asks caption by caption and phrase by phrase: each gets a pass of the whole network over the mixtures of
mixtures, and each phrase's estimates a pass of the encoder. Both sides hear every estimate and compute the same loss,
which is compared in float32 before anything is timed. Sounds are noise, since time does not depend on what is heard.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from auralign.algorithms.bisep_config import Config, LossConfig
from auralign.algorithms.bisep_data import Pairs, Texts
from auralign.algorithms.bisep_loss import contrastive
from auralign.algorithms.bisep_measure import mask_measure
from auralign.algorithms.bisep_set_up import build
from auralign.algorithms.bisep_terms import Teacher, as_loud_as, loss_terms
from auralign.algorithms.mixit_loss import mixit, thresholded_snr_loss
from auralign.algorithms.separator_pass import SeparatorPass, hear, separator_pass
from auralign.errors import AuralignError
from auralign.models.bimodal import BUILT_IN, AlignedEncoder
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.separator import SeparatorModel
from auralign.runtime import weights

RATE_HZ = 16_000
AGREEMENT = 1e-5
"""Largest difference of a loss term that still counts as the same loss."""
SIZES: dict[str, Any] = {"widths": (24, 48, 96, 160), "blocks": (1, 1, 1, 1), "fine": 16, "hidden": 64}
"""Those of ``recipes/bisep_small.toml``."""

Entry = dict[str, object]


@dataclass(frozen=True)
class Step:
    """One size of step."""

    sources: int
    """Sounds, and so phrases, of each mixture."""
    batch: int = 8
    """Mixtures of mixtures."""
    samples: int = 32_768
    """Length of each."""
    options: dict[str, Any] = field(default_factory=lambda: dict(SIZES))
    """Of the small network."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic that is timed, by default the one that trains; the losses are always compared in float32."""

    @property
    def text(self) -> str:
        """In words."""
        return (
            f"bisep_small, {self.batch} mixtures of mixtures of {self.samples / RATE_HZ:.2f} s, "
            f"{self.sources} sources a mixture, every estimate heard, {self.precision}, "
            f"{torch.get_num_threads()} threads"
        )


@dataclass(frozen=True)
class Search:
    """One size of MixIT."""

    outputs: int
    """Outputs of the network."""
    mixtures: int = 2
    """Mixtures that were summed."""
    batch: int = 8
    """Examples."""
    samples: int = 32_768
    """Length of each."""

    @property
    def text(self) -> str:
        """In words."""
        seconds, ways = self.samples / RATE_HZ, self.mixtures**self.outputs
        return (
            f"loss and gradient, {self.batch} examples of {seconds:.2f} s, N = {self.mixtures}, "
            f"M = {self.outputs}: {ways} assignments, {torch.get_num_threads()} threads"
        )


CASES: dict[str, Step | Search] = {
    "bisep_step_vs_naive": Step(2),
    "bisep_step_vs_naive_4_sources": Step(4),
    "mixit_vs_loop": Search(4),
    "mixit_vs_loop_8_outputs": Search(8),
}


def bench(*, cases: dict[str, Step | Search] | None = None, repeats: int = 3) -> dict[str, Entry]:
    """Times of both, in the form that ``auralign bench bisep --json`` prints.

    Args:
        cases: Work by name of the entry; `CASES` by default.
        repeats: Interleaved repeats of each side, after one that is not timed.

    Raises:
        AuralignError: Both sides do not agree.
    """
    return {
        name: _step(work, repeats) if isinstance(work, Step) else _search(work, repeats)
        for name, work in (CASES if cases is None else cases).items()
    }


def naive_terms(
    cfg: Config, model: SeparatorModel, batch: Pairs, texts: Texts, teacher: Teacher
) -> dict[str, Tensor]:
    """The loss of :func:`~auralign.algorithms.bisep_terms.loss_terms` in its default form, one question at a time.

    Args:
        cfg: Weights and precision.
        model: The separator.
        batch: Mixtures of mixtures.
        texts: What its numbers mean.
        teacher: Hears the estimates of one phrase at a time.
    """
    whole, samples = batch.mixtures.sum(dim=1), batch.mixtures.shape[-1]
    url = crl = presence = counted = whole.new_zeros(())
    audio, number, item = [], [], []

    def ask(numbers: Int[Tensor, "batch"], there: Float[Tensor, "batch"], target: float) -> SeparatorPass:
        nonlocal presence, counted
        query = texts.vectors[numbers.cpu()].to(whole.device).float()[:, None]
        out = separator_pass(model, whole, query, bfloat16=cfg.precision == "bfloat16")
        wanted = torch.full_like(out.presence[:, 0], target)
        error = F.binary_cross_entropy_with_logits(out.presence[:, 0], wanted, reduction="none")
        presence, counted = presence + (there * error).sum(), counted + there.sum()
        return out

    for n in range(batch.mixtures.shape[1]):
        mixture = batch.mixtures[:, n : n + 1]
        out = ask(batch.captions[:, n], torch.ones_like(batch.weak[:, n]), 1.0)
        url = url + mask_measure(model, out, mixture)(out.logits, torch.sigmoid(out.logits)).mean()
        unclaimed = torch.ones_like(out.logits)
        for k in range(batch.phrases.shape[2]):
            heard = (batch.share[:, n, k] > 0) & (batch.weak[:, n] > 0)
            out = ask(batch.phrases[:, n, k], (batch.share[:, n, k] > 0).float(), 1.0)
            mask = torch.sigmoid(out.logits)
            unclaimed = unclaimed * (1 - batch.share[:, n, k, None, None, None] * mask)
            wave = hear(model, mask[heard], out.spec[heard], samples)[:, 0]
            audio.append(teacher.encoder.audio(as_loud_as(wave, whole[heard])))
            item.append(heard.nonzero()[:, 0])
            number.append(batch.phrases[heard, n, k])
        together = mask_measure(model, out, mixture, claim=cfg.loss.claim)(None, 1 - unclaimed)[:, 0]
        crl = crl + (together * batch.weak[:, n]).mean()
    ask(batch.absent, torch.ones_like(batch.weak[:, 0]), 0.0)
    rows = torch.cat(number)
    unit = texts.unit[rows.cpu()]
    close = ((unit @ unit.t()) >= cfg.pairs.same).to(rows.device)
    cnt = contrastive(torch.cat(audio), teacher.texts[rows], teacher.encoder.scale, rows, left_out=close)
    terms = {"url": url, "presence": presence / counted, "crl": crl, "cnt": 2 * cnt}
    share = {"url": cfg.loss.mixtures, "crl": cfg.loss.phrases}
    share |= {"cnt": cfg.loss.contrast, "presence": cfg.loss.presence}
    loss = torch.stack([share[name] * value for name, value in terms.items()]).sum()
    return {**terms, "loss": loss}


def noise_pairs(
    sources: int, batch: int, samples: int, generator: torch.Generator
) -> tuple[Pairs, list[str]]:
    """A batch of noise with a caption a mixture and as many phrases as it has sources, and the texts.

    Args:
        sources: Sounds of a mixture.
        batch: Mixtures of mixtures.
        samples: Length of each.
        generator: Draws the noise.
    """
    waves = 0.1 * torch.randn(batch, 2, sources, samples, generator=generator)
    phrases = torch.arange(batch * 2 * sources).reshape(batch, 2, sources)
    names = [f"a hum of {100 + 7 * n} hertz" for n in range(phrases.numel())]
    captions = phrases.numel() + torch.arange(batch * 2).reshape(batch, 2)
    names += [" and ".join(names[n] for n in group) for group in phrases.flatten(0, 1).tolist()]
    share, weak = torch.ones(batch, 2, sources), torch.ones(batch, 2)
    return Pairs(waves.sum(dim=2), captions, phrases, share, weak, phrases[:, 0, 0].roll(1)), names


def _step(work: Step, repeats: int) -> Entry:
    model = build(Config(options=work.options)).train()
    batch, names = noise_pairs(work.sources, work.batch, work.samples, torch.Generator().manual_seed(0))
    texts = Texts.of(names, model.backbones, model.token_heads.pooled_dim, None)
    encoder, title = _encoder()
    teacher = Teacher(encoder, encoder.texts(list(texts.names)))
    exact = Config(loss=LossConfig(rows=0), options=work.options, precision="float32")
    timed, chance = replace(exact, precision=work.precision), torch.Generator()
    ours = loss_terms(exact, model, batch, texts, teacher, chance)
    plain = naive_terms(exact, model, batch, texts, teacher)
    difference = max(abs(float(ours[name].detach() - plain[name].detach())) for name in ours)
    _require(difference, "the step's loss terms")
    del ours, plain

    def once(terms: dict[str, Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(terms["loss"])

    times = _compare(
        lambda: once(loss_terms(timed, model, batch, texts, teacher, chance)),
        lambda: once(naive_terms(timed, model, batch, texts, teacher)),
        repeats,
    )
    text = f"{work.text}, encoder: {title}"
    peer = "a pass of the network a caption and phrase, a pass of the encoder a phrase"
    return {**_entry(*times, peer, text), "max_difference": difference}


def _encoder() -> tuple[AlignedEncoder, str]:
    """The text-audio encoder to time, and what to call it."""
    try:
        encoder, title = RewardEncoder.load(weights.path(BUILT_IN, offline=True)), BUILT_IN
    except AuralignError:
        torch.manual_seed(0)
        encoder = RewardEncoder(dim=128, hidden=256, rank=8, pooling="mean")
        title = "random weights of the shipped size"
    return AlignedEncoder(encoder, title), title


def loop_mixit(
    estimates: Float[Tensor, "batch output time"], mixtures: Float[Tensor, "batch mixture time"]
) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch output"]]:
    """MixIT as it is written down: every assignment's sums and their loss, then the best one's again with gradient."""
    places = torch.tensor(list(itertools.product(range(mixtures.shape[1]), repeat=estimates.shape[1])))
    total = mixtures.sum(dim=1, keepdim=True).expand_as(mixtures)

    def loss_of(place: Int[Tensor, "rows output"]) -> Float[Tensor, "batch"]:
        matrix = F.one_hot(place, mixtures.shape[1]).to(estimates).mT.expand(len(estimates), -1, -1)
        return thresholded_snr_loss(matrix @ estimates, mixtures, total).sum(dim=1)

    with torch.no_grad():
        best = torch.stack([loss_of(place[None]) for place in places]).argmin(dim=0)
    return loss_of(places[best]), places[best]


def _search(work: Search, repeats: int) -> Entry:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(work.batch, work.outputs, work.samples, generator=generator)
    owner = torch.arange(work.outputs) % work.mixtures
    mixtures = torch.stack([outputs[:, owner == n].sum(dim=1) for n in range(work.mixtures)], dim=1)
    noise = torch.randn(outputs.shape, generator=generator)
    estimates = (outputs + 0.5 * noise).requires_grad_()

    def once(found: tuple[Tensor, Tensor]) -> None:
        torch.autograd.grad(found[0].sum(), estimates)

    ours, plain = mixit(estimates, mixtures), loop_mixit(estimates, mixtures)
    if not torch.equal(ours[1], plain[1]):
        raise AuralignError("the search and the loop choose other assignments", where="bench")
    difference = float((ours[0] - plain[0]).detach().abs().max())
    _require(difference, "the losses of MixIT")
    times = _compare(
        lambda: once(mixit(estimates, mixtures)), lambda: once(loop_mixit(estimates, mixtures)), repeats
    )
    entry = _entry(*times, "a loop over itertools.product", work.text)
    return {**entry, "max_difference": difference}


def _require(difference: float, what: str) -> None:
    if not difference <= AGREEMENT:
        raise AuralignError(f"{what} differ by {difference:.1e} from the plain form", where="bench")


def _compare(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Smallest times of both, taken in turns after one that is not timed."""
    best = [float("inf"), float("inf")]
    for turn in range(repeats + 1):
        for n, call in enumerate((ours, peer)):
            start = time.perf_counter()
            call()
            if turn:
                best[n] = min(best[n], time.perf_counter() - start)
    return best[0], best[1]


def _entry(ours_s: float, peer_s: float, peer: str, work: str) -> Entry:
    return {"ours_s": ours_s, "peer_s": peer_s, "ratio": peer_s / ours_s, "peer": peer, "work": work}
