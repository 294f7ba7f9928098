r"""BiSep's idea at the size of two CPU cores: the ``small`` trunk, whose deepest map listens to every word of a query.

The query-free trunk is that of :mod:`auralign.models.query_mask_net`: fine features :math:`F`, one vector a bin, coarse
ones :math:`P`, and the deepest map :math:`D` at a sixteenth of the resolution, 64 places for two seconds. A
conditioning block (self- and cross-attention, as published on the deepest levels) turns :math:`D` and the words
:math:`W` into a local modulation of :math:`P`, beside a global one from the sentence vector :math:`s`:

.. math:: H = \phi\big(P \odot (U[g(D, W)] + g'(s)) + U[b(D, W)] + b'(s)\big), \qquad
          \operatorname{logit} M = \textstyle\sum_c U[w_c(H, s)]\,F_c + U[w_0(H, s)],

with :math:`U` bilinear up-sampling: the published inner-product synthesiser, made local. Everything that needs no text
runs once a mixture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from auralign.models.bands import BandProjector
from auralign.models.encoders import Backbones
from auralign.models.mask_network import GridAnswer, MaskNetwork
from auralign.models.query_mask_net import Trunk, yamnet_taps
from auralign.models.text_attention import Conditioner, CondLayer
from auralign.models.text_tokens import TOKEN_DIM, TOKENS, split_query

FLOOR = 1e-6
"""-60 dB below the window's mean band energy."""


def _stretch(size: int, factor: int, like: Tensor) -> Tensor:
    """Matrix (size*factor size) of linear interpolation, samples at the middles of their cells, ends held."""
    eye = torch.eye(size, device=like.device, dtype=torch.float32)
    matrix = F.interpolate(eye[None], scale_factor=float(factor), mode="linear", align_corners=False)[0]
    return matrix.t().to(like.dtype)


def read_locally(
    fine: Float[Tensor, "batch dim row frame"], filters: Float[Tensor, "batch query rows frames dim1"]
) -> Float[Tensor, "batch query row frame"]:
    r"""Inner product of fine features with four times up-sampled filters, :math:`\sum_c U[w_c]\,F_c + U[w_0]`.

    The last channel of the filters is :math:`w_0`. A bin's product with the bilinear mean of four filters is the mean
    of its products with them, so the up-sampled filters are never made: one small matrix product a 4 x 4 patch of bins
    that shares its four filters, for all queries at once.
    """
    n_queries, rows, frames = filters.shape[1:4]
    one = F.pad(torch.cat([fine, torch.ones_like(fine[:, :1])], dim=1), (2, 2, 2, 2))
    bins = rearrange(one, "batch dim (row y) (frame x) -> (batch row frame) (y x) dim", y=4, x=4)
    edge = rearrange(filters, "batch query row frame dim -> batch row frame query dim")
    for axis, size in ((1, rows), (2, frames)):
        index = torch.arange(-1, size + 1, device=fine.device).clamp(0, size - 1)
        edge = edge.index_select(axis, index)
    corners = [edge[:, i : i + rows + 1, j : j + frames + 1] for i in (0, 1) for j in (0, 1)]
    products = torch.bmm(bins, torch.cat(corners, dim=3).flatten(0, 2).to(bins).transpose(1, 2))
    share = (torch.arange(4, device=fine.device, dtype=products.dtype) + 0.5) / 4
    share = torch.stack([1 - share, share])
    weight = torch.einsum("iy,jx->yxij", share, share).reshape(16, 4, 1)
    logits = (products.unflatten(-1, (4, n_queries)) * weight).sum(dim=2, dtype=torch.float32)
    logits = rearrange(
        logits,
        "(batch row frame) (y x) query -> batch query (row y) (frame x)",
        row=rows + 1,
        frame=frames + 1,
        y=4,
    )
    inner: Tensor = logits[..., 2:-2, 2:-2]
    return inner


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
        self.local = nn.Linear(deep, 2 * hidden)
        self.project = nn.Linear(coarse, hidden)
        self.film = nn.Linear(pooled_dim, 2 * hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.film_mix = nn.Linear(pooled_dim, 2 * hidden)
        self.filters = nn.Linear(hidden, fine + 1)
        self.presence = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        nn.init.normal_(self.filters.weight, std=0.02)
        for film in (self.film, self.film_mix):
            nn.init.ones_(film.bias[:hidden])  # a gain of one: without a query's help, nothing changes

    def prepare(
        self, coarse: Float[Tensor, "batch coarse row frame"], deep: Float[Tensor, "batch deep rows frames"]
    ) -> tuple[Float[Tensor, "batch row frame hidden"], Float[Tensor, "batch deep rows frames"]]:
        """What no text takes part in: the projected coarse features, and the deepest map before it hears words."""
        return self.project(rearrange(coarse, "b c r f -> b r f c")), self.conditioner.prepare(deep)

    def modulation(
        self,
        deep: Float[Tensor, "batch deep rows frames"],
        pooled: Float[Tensor, "batch query pooled"],
        tokens: Float[Tensor, "batch query token width"],
        valid: Bool[Tensor, "batch query token"],
    ) -> Float[Tensor, "batch query row frame hidden2"]:
        """Local and global gain and shift of every query on the coarse grid, added where the map is smallest."""
        batch, n_queries = tokens.shape[:2]
        if self.conditioner.hears:
            deep = deep.repeat_interleave(n_queries, dim=0)
            deep = self.conditioner.condition(deep, tokens.flatten(0, 1), valid.flatten(0, 1))
        local = self.local(rearrange(deep, "b c r f -> b r f c")).unflatten(0, (batch, -1))
        x = (local + self.film(pooled)[:, :, None, None].to(local)).flatten(0, 1)
        rows, frames = x.shape[1:3]
        x = (_stretch(rows, 4, x) @ x.flatten(2)).unflatten(2, (frames, -1))
        x = _stretch(frames, 4, x) @ x
        modulation: Tensor = x.unflatten(0, (batch, -1))
        return modulation

    def forward(
        self,
        coarse: Float[Tensor, "batch row frame hidden"],
        deep: Float[Tensor, "batch deep rows frames"],
        pooled: Float[Tensor, "batch query pooled"],
        tokens: Float[Tensor, "batch query token width"],
        valid: Bool[Tensor, "batch query token"],
    ) -> tuple[Float[Tensor, "batch query row frame dim1"], Float[Tensor, "batch query"]]:
        """Filters and presence logits of all queries, from :meth:`prepare`."""
        gain, shift = self.modulation(deep, pooled, tokens, valid).chunk(2, dim=-1)
        x = self.mix(F.gelu(torch.addcmul(shift, coarse[:, None], gain)))
        gain, shift = self.film_mix(pooled)[:, :, None, None].chunk(2, dim=-1)
        x = F.gelu(torch.addcmul(shift, x, gain))
        places = reduce(x, "b q (r y) (f x) h -> b q (r f) h", "mean", y=4, x=4)
        pool = torch.cat([places.mean(dim=2), places.amax(dim=2)], dim=-1)
        return self.filters(x), self.presence(pool).squeeze(-1)


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
        heads: int = 4,
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
        pooled, tokens, valid = split_query(query, self.pooled_dim, self.token_dim)
        filters, presence = self.head(state["coarse"], state["deep"], pooled, tokens, valid)
        logits = read_locally(state["fine"], filters)
        return GridAnswer(logits[..., : state["energy"].shape[-1]].float(), presence.float())

    def to_bins(self, mask: Float[Tensor, "batch any row frame"]) -> Float[Tensor, "batch any bin frame"]:
        """Band masks spread over the linear bins."""
        return self.bands.expand(mask)
