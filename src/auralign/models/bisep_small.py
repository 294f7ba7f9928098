r"""BiSep's idea at the size of two CPU cores: the ``small`` trunk, whose deepest map listens to every word of a query.

The query-free trunk is that of :mod:`auralign.models.query_mask_net`: fine features :math:`F`, one vector a bin, coarse
ones :math:`P`, and the deepest map :math:`D` at a sixteenth of the resolution, 64 places for two seconds. A
conditioning block (self- and cross-attention, as published on the deepest levels) turns :math:`D` and the words
:math:`W` into a local modulation of :math:`P`, beside a global one from the sentence vector :math:`s`:

.. math:: H = \phi\big(P \odot (1 + U[g(D, W)] + g'(s)) + U[b(D, W)] + b'(s)\big), \qquad
          \operatorname{logit} M = \textstyle\sum_c U[w_c(H, s)]\,F_c + U[w_0(H, s)],

with :math:`U` bilinear up-sampling: the published inner-product synthesiser, made local. Everything that needs no text
runs once a mixture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor, nn

from auralign.models.bands import BandProjector
from auralign.models.encoders import Backbones
from auralign.models.mask_network import GridAnswer, MaskNetwork
from auralign.models.query_mask_net import Trunk, yamnet_taps
from auralign.models.text_attention import Conditioner, CondLayer
from auralign.models.text_tokens import TOKEN_DIM, TOKENS, split_query

FLOOR = 1e-6
"""-60 dB below the window's mean band energy."""


class WordHead(nn.Module):
    """From the deepest map, the coarse features and a text to local filters and a presence logit.

    Args:
        deep: Channels of the deepest map.
        coarse: Channels of the coarse features.
        fine: Fine features a bin.
        hidden: Width of the head.
        pooled_dim: Length of the sentence vector.
        conditioner: What lets the deepest map hear the words.
    """

    def __init__(
        self, *, deep: int, coarse: int, fine: int, hidden: int, pooled_dim: int, conditioner: Conditioner
    ) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.local = nn.Conv2d(deep, 2 * hidden, 1)
        self.project = nn.Conv2d(coarse, hidden, 1)
        self.film = nn.Linear(pooled_dim, 2 * hidden)
        self.mix = nn.Conv2d(hidden, hidden, 1)
        self.film_mix = nn.Linear(pooled_dim, 2 * hidden)
        self.filters = nn.Conv2d(hidden, fine + 1, 1)
        self.presence = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        nn.init.normal_(self.filters.weight, std=0.02)

    def prepare(self, coarse: Tensor, deep: Tensor) -> tuple[Tensor, Tensor]:
        """What no text takes part in: the projected coarse features, and the deepest map before it hears words."""
        return self.project(coarse), self.conditioner.prepare(deep)

    def modulation(self, deep: Tensor, tokens: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
        """Gain and shift of each place of the coarse grid, of every query: (batch*query 2*hidden row frame)."""
        n_queries = tokens.shape[1]
        if self.conditioner.hears:
            deep = self.conditioner.condition(
                deep.repeat_interleave(n_queries, dim=0), tokens.flatten(0, 1), valid.flatten(0, 1)
            )
        local = F.interpolate(self.local(deep), size=size, mode="bilinear", align_corners=False)
        return local if self.conditioner.hears else local.repeat_interleave(n_queries, dim=0)

    def forward(
        self,
        coarse: Float[Tensor, "batch hidden row frame"],
        deep: Float[Tensor, "batch deep rows frames"],
        pooled: Float[Tensor, "batch query pooled"],
        tokens: Float[Tensor, "batch query token width"],
        valid: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Filters (batch*query fine+1 row frame) and presence logits (batch*query) from :meth:`prepare`."""
        n_queries = pooled.shape[1]
        flat = rearrange(pooled, "batch query dim -> (batch query) dim")
        local = self.modulation(deep, tokens, valid, (coarse.shape[2], coarse.shape[3]))
        gain, shift = (local + self.film(flat)[:, :, None, None].to(local)).chunk(2, dim=1)
        x = coarse.repeat_interleave(n_queries, dim=0)
        x = F.gelu(torch.addcmul(x + shift, x, gain))
        gain, shift = self.film_mix(flat)[:, :, None, None].chunk(2, dim=1)
        x = self.mix(x)
        x = F.gelu(x * (1 + gain) + shift)
        pool = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return self.filters(x), self.presence(pool).squeeze(1)


class SmallBiSep(MaskNetwork):
    """Text-conditioned separator on pooled band energies, with a frozen YAMNet beside its trunk.

    Args:
        n_bands: Bands, a multiple of 16.
        n_bins: Linear STFT bins.
        widths: Trunk channels at half, quarter, eighth and sixteenth resolution.
        blocks: Residual blocks of its encoder at each of them.
        fine: Fine features a bin.
        hidden: Width of the query head.
        cond_layer: How the deepest map hears the words: ``sca``, ``ca``, ``sa``, ``identity`` or ``cat``.
        cond_blocks: Conditioning blocks.
        heads: Attention heads; they divide the last of ``widths``.
        pooled_dim: Length of the sentence vector.
        tokens: Token rows of a query.
        token_dim: Length of a token row.
        mask_padding: Do not attend to padding rows.
    """

    def __init__(
        self,
        *,
        n_bands: int = 128,
        n_bins: int = 513,
        widths: tuple[int, int, int, int] = (32, 64, 128, 224),
        blocks: tuple[int, int, int, int] = (1, 2, 2, 2),
        fine: int = 24,
        hidden: int = 96,
        cond_layer: CondLayer = "sca",
        cond_blocks: int = 1,
        heads: int = 8,
        pooled_dim: int = TOKEN_DIM,
        tokens: int = TOKENS,
        token_dim: int = TOKEN_DIM,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        if n_bands % 16:
            raise ValueError(f"n_bands is {n_bands}; the trunk needs a multiple of 16")
        self.pooled_dim, self.tokens, self.token_dim = pooled_dim, tokens, token_dim
        self.n_fft, self.hop = 2 * (n_bins - 1), 256
        self.bands = BandProjector(n_bins, n_bands)
        self.trunk = Trunk(widths, blocks, fine)
        conditioner = Conditioner(
            cond_layer,
            blocks=cond_blocks,
            width=widths[3],
            token_dim=token_dim,
            heads=heads,
            mask_padding=mask_padding,
        )
        self.head = WordHead(
            deep=widths[3],
            coarse=widths[1],
            fine=fine,
            hidden=hidden,
            pooled_dim=pooled_dim,
            conditioner=conditioner,
        )
        self._backbones = Backbones()  # frozen and never part of the state dict

    @property
    def projector(self) -> BandProjector:
        """The way to the bands."""
        return self.bands

    @property
    def query_dim(self) -> int:
        """Length of a flat query."""
        return self.pooled_dim + self.tokens * self.token_dim

    def share(self, backbones: Backbones) -> None:
        """Use backbones that are loaded elsewhere already."""
        self._backbones = backbones

    def log_energy(self, energy: Float[Tensor, "batch band frame"]) -> Float[Tensor, "batch 1 band frame"]:
        """Log of band energies relative to the window's mean, floored at -60 dB."""
        mean = energy.mean(dim=(1, 2), keepdim=True).clamp_min(1e-20)
        return torch.log(energy / mean + FLOOR)[:, None]

    def taps(self, wave: Float[Tensor, "batch time"]) -> list[Tensor]:
        """YAMNet maps of the window at a fixed level."""
        yamnet = self._backbones.yamnet.to(wave.device)
        level = wave.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-8)
        with torch.no_grad():
            log_mel = yamnet.log_mel(F.pad(wave * (0.1 / level), (256, 256)))
            return yamnet_taps(yamnet.maps(log_mel))

    def analyse(
        self, spec: Complex[Tensor, "batch bin frame"], wave: Float[Tensor, "batch time"]
    ) -> dict[str, Tensor]:
        """The query-free pass over a window and its waveform."""
        with (
            torch.no_grad(),
            torch.autocast(spec.device.type, enabled=False),
        ):  # in full, as losses weigh by it
            energy = self.bands(spec.real.square() + spec.imag.square())
        return self.features(energy, self.taps(wave))

    def features(self, energy: Float[Tensor, "batch band frame"], maps: list[Tensor]) -> dict[str, Tensor]:
        """The query-free pass over band energies and YAMNet maps."""
        log_energy = F.pad(self.log_energy(energy), (0, -energy.shape[-1] % 16, 0, 0), mode="replicate")
        fine, coarse, deep = self.trunk.pyramid(log_energy, maps)
        coarse, deep = self.head.prepare(coarse, deep)
        return {"energy": energy, "fine": fine, "coarse": coarse, "deep": deep}

    def respond(self, state: dict[str, Tensor], query: Float[Tensor, "batch query dim"]) -> GridAnswer:
        """Mask and presence logits of any number of queries after one :meth:`analyse`."""
        fine, n_queries = state["fine"], query.shape[1]
        pooled, tokens, valid = split_query(query, self.pooled_dim, self.token_dim)
        filters, presence = self.head(state["coarse"], state["deep"], pooled, tokens, valid)
        filters = F.interpolate(filters, size=fine.shape[2:], mode="bilinear", align_corners=False)
        filters = rearrange(
            filters, "(batch query) dim row frame -> batch query dim row frame", query=n_queries
        )
        logits = (filters[:, :, :-1] * fine[:, None]).sum(dim=2) + filters[:, :, -1]
        return GridAnswer(
            logits=logits[..., : state["energy"].shape[-1]].float(),
            presence=rearrange(presence.float(), "(batch query) -> batch query", query=n_queries),
        )

    def to_bins(self, mask: Float[Tensor, "batch any row frame"]) -> Float[Tensor, "batch any bin frame"]:
        """Band masks spread over the linear bins."""
        return self.bands.expand(mask)
