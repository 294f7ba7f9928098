r"""Blind separation into a fixed number of outputs, and the choice among them by a text.

The trunk and the head are those of :mod:`auralign.models.query_mask_net`; in the place of a query stand :math:`M`
learned slot vectors. The head's global logit of a slot is its overall level. Masks are a softmax over the outputs, so
that they sum to one in every cell and the outputs sum to the mixture: mixture consistency by construction.

No text takes part in the separation. A text :math:`t` then picks the audible output :math:`m` whose embedding
:math:`a_m` is most similar. How sure that is: a contrastive encoder with scale :math:`\kappa` knows
:math:`\kappa\langle a, t\rangle = \log p(t|a)/p(t) + c(a)` at its optimum (van den Oord et al. 2018,
arXiv:1807.03748). Reference texts :math:`t_1 \ldots t_K` remove :math:`c`, and the output that the text
belongs to is one of :math:`M'` audible ones, unknown which:

.. math::
    \operatorname{logit} p = \log \frac{1}{M'} \sum_m
    \frac{e^{\kappa\langle a_m, t\rangle}}{\frac{1}{K} \sum_k e^{\kappa\langle a_m, t_k\rangle}}.

It does not depend on what else is asked. A mean over outputs alone, :math:`\kappa(s_{max} - \bar s)`, is never negative
and could not say that a sound is absent.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from auralign.errors import UsageError
from auralign.models.bands import BandProjector
from auralign.models.bimodal import BimodalEncoder, open_bimodal
from auralign.models.encoders import Backbones
from auralign.models.mask_network import GridAnswer, MaskNetwork
from auralign.models.omnisep import SmallSeparator

REFERENCE_TEXTS = (
    "a person speaking",
    "a crowd of people",
    "a baby crying",
    "a dog barking",
    "birds singing",
    "an insect buzzing",
    "music playing",
    "a guitar",
    "a piano",
    "drums",
    "a car engine",
    "an aircraft",
    "a siren",
    "a bell ringing",
    "rain falling",
    "wind blowing",
    "flowing water",
    "footsteps",
    "a door closing",
    "an electric tool",
    "typing on a keyboard",
    "an explosion",
    "white noise",
    "silence",
)
"""Everyday sounds that a query is weighed against."""
_AUDIBLE = 1e-4  # -40 dB below the loudest output


class _FrozenEncoder:
    """An encoder that is opened on first use, shared by copies of a network and no part of its weights."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._encoder: BimodalEncoder | None = None
        self._reference: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _FrozenEncoder:
        return self

    def use(self, encoder: BimodalEncoder) -> None:
        self._encoder, self._reference = encoder, None

    @property
    def encoder(self) -> BimodalEncoder:
        if self._encoder is None:
            self._encoder = open_bimodal(self.spec)
        return self._encoder

    @property
    def reference(self) -> Float[Tensor, "text dim"]:
        if self._reference is None:
            self._reference = self.encoder.texts(list(REFERENCE_TEXTS))
        return self._reference


class BlindSeparator(MaskNetwork):
    """Band-mask separator with a fixed number of outputs; a text query picks one of them.

    Args:
        slots: Outputs, 2 or more.
        n_bands: Bands, a multiple of 16.
        n_bins: Linear STFT bins.
        widths: Trunk channels at half, quarter, eighth and sixteenth resolution.
        blocks: Residual blocks of its encoder at each of them.
        fine: Fine features a bin.
        hidden: Width of the head and length of a slot vector.
        encoder: What compares outputs with texts, see :func:`~auralign.models.bimodal.open_bimodal`.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        n_bands: int = 128,
        n_bins: int = 513,
        widths: tuple[int, int, int, int] = (32, 64, 128, 224),
        blocks: tuple[int, int, int, int] = (1, 2, 2, 2),
        fine: int = 24,
        hidden: int = 96,
        encoder: str = "builtin",
    ) -> None:
        super().__init__()
        if slots < 2:
            raise UsageError(f"slots is {slots}", where="network", hint="separate into two outputs or more")
        self.n_fft, self.hop = 2 * (n_bins - 1), 256
        self.small = SmallSeparator(
            n_bands=n_bands,
            n_bins=n_bins,
            widths=widths,
            blocks=blocks,
            fine=fine,
            hidden=hidden,
            query_dim=hidden,
        )
        self.slots = nn.Parameter(torch.randn(slots, hidden))
        self._frozen = _FrozenEncoder(encoder)

    @property
    def projector(self) -> BandProjector:
        """The way to its bands."""
        return self.small.projector

    @property
    def encoder(self) -> BimodalEncoder:
        """What compares outputs with texts; its text vectors are this network's queries."""
        return self._frozen.encoder

    def share(self, backbones: Backbones) -> None:
        """Use backbones that are loaded elsewhere already."""
        self.small.share(backbones)

    def share_encoder(self, encoder: BimodalEncoder) -> None:
        """Use an encoder that is open elsewhere already."""
        self._frozen.use(encoder)

    def analyse(
        self, spec: Complex[Tensor, "batch bin frame"], wave: Float[Tensor, "batch time"]
    ) -> dict[str, Tensor]:
        """The trunk pass; the sound itself is kept, because ``spec`` may come without its phase."""
        return {**self.small.analyse(spec, wave), "wave": wave}

    def outputs(self, state: dict[str, Tensor]) -> Float[Tensor, "batch output row frame"]:
        """Logits of all outputs in float32; their softmax over the outputs gives the masks."""
        slots = self.slots.expand(state["energy"].shape[0], -1, -1)
        out = self.small.respond(state, slots)
        return out.logits + out.presence[:, :, None, None]

    def waves(
        self, state: dict[str, Tensor], mask: Float[Tensor, "batch output row frame"]
    ) -> Float[Tensor, "batch output time"]:
        """Masked mixture with the mixture's phase; frames past the mask's last go on as that one."""
        wave = state["wave"].float()
        window = torch.hann_window(self.n_fft, device=wave.device)
        spec = torch.stft(
            wave, self.n_fft, self.hop, window=window, center=True, pad_mode="constant", return_complex=True
        )
        with torch.autocast(wave.device.type, enabled=False):
            bins = self.to_bins(mask.float())
        bins = F.pad(bins, (0, max(0, spec.shape[-1] - bins.shape[-1]), 0, 0), mode="replicate")
        flat = (bins[..., : spec.shape[-1]] * spec[:, None]).flatten(0, 1)
        out = torch.istft(flat, self.n_fft, self.hop, window=window, center=True, length=wave.shape[-1])
        return out.view(*mask.shape[:2], -1)

    def separate(self, state: dict[str, Tensor]) -> Float[Tensor, "batch output time"]:
        """All outputs as sounds; they sum to the mixture. What MixIT and MixPIT train."""
        return self.waves(state, torch.softmax(self.outputs(state), dim=1))

    def respond(self, state: dict[str, Tensor], query: Float[Tensor, "batch query dim"]) -> GridAnswer:
        """The output nearest to each text, and the log-odds that the text is heard; see the module.

        Args:
            state: What :meth:`analyse` gave.
            query: Unit text vectors of :attr:`encoder`.
        """
        if query.shape[-1] != self.encoder.dim:
            raise UsageError(
                f"a query has {query.shape[-1]} numbers, the encoder's texts have {self.encoder.dim}",
                where="query",
                hint=f"encode the text with {self._frozen.spec!r}",
            )
        logits = self.outputs(state)
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            similarity, reference, audible = self._compare(state, logits, query.to(logits))
            chosen = similarity.masked_fill(~audible[:, None], -torch.inf).argmax(dim=2)
            presence = presence_logit(similarity, reference, audible, float(self.encoder.scale))
        rows = torch.arange(len(logits), device=logits.device)[:, None]
        return GridAnswer(against_rest(logits)[rows, chosen], presence)

    def _compare(
        self,
        state: dict[str, Tensor],
        logits: Float[Tensor, "batch output row frame"],
        query: Float[Tensor, "batch query dim"],
    ) -> tuple[
        Float[Tensor, "batch query output"], Float[Tensor, "batch text output"], Bool[Tensor, "batch output"]
    ]:
        """Cosine of every output with queries and reference texts, and which outputs are audible at all."""
        waves = self.waves(state, torch.softmax(logits, dim=1))
        power = waves.square().mean(dim=2)
        audible = power >= _AUDIBLE * power.amax(dim=1, keepdim=True)
        audio = self.encoder.to(waves.device).audio(waves.flatten(0, 1)).to(query)
        audio = audio.view(*waves.shape[:2], -1)
        return query @ audio.mT, self._frozen.reference.to(query) @ audio.mT, audible

    def to_bins(self, mask: Float[Tensor, "batch any row frame"]) -> Float[Tensor, "batch any bin frame"]:
        """Band masks spread over the linear bins."""
        return self.small.to_bins(mask)


def against_rest(
    logits: Float[Tensor, "batch output row frame"],
) -> Float[Tensor, "batch output row frame"]:
    r"""Logits whose sigmoid is the softmax over outputs: :math:`z_m - \log\sum_{j \ne m} e^{z_j}`.

    >>> z = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    >>> torch.allclose(torch.sigmoid(against_rest(z)), z.softmax(dim=1))
    True
    """
    count = logits.shape[1]
    others = [[j for j in range(count) if j != m] for m in range(count)]
    return torch.stack([logits[:, m] - logits[:, rest].logsumexp(dim=1) for m, rest in enumerate(others)], 1)


def presence_logit(
    similarity: Float[Tensor, "batch query output"],
    reference: Float[Tensor, "batch text output"],
    audible: Bool[Tensor, "batch output"],
    scale: float,
) -> Float[Tensor, "batch query"]:
    """Log of the mean over audible outputs of p(text | output) / p(text); the equation is the module's.

    Args:
        similarity: Cosines of queries and outputs.
        reference: Cosines of reference texts and outputs.
        audible: Outputs that count.
        scale: The encoder's temperature factor.

    >>> none = torch.zeros(1, 1, 2)
    >>> presence_logit(none, torch.zeros(1, 3, 2), torch.tensor([[True, False]]), 10.0).tolist()
    [[0.0]]
    """
    marginal = (scale * reference).logsumexp(dim=1) - math.log(reference.shape[1])
    ratio = (scale * similarity - marginal[:, None]).masked_fill(~audible[:, None], -torch.inf)
    return ratio.logsumexp(dim=2) - audible.sum(dim=1, keepdim=True).log()
