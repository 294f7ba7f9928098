r"""OmniSep (Cheng et al., ICLR 2025, arXiv:2410.21269): 32 latent masks from a U-Net, gated by the query.

.. math:: \operatorname{logit} M(Q) = \textstyle\sum_j s_j\,\sigma(A Q + a)_j\,F_j + b,

with :math:`F` the U-Net's latent masks on the warped log-magnitude, :math:`\sigma(AQ + a)` the query gate, and learned
mixing weights :math:`s` and bias :math:`b`. The query never enters the U-Net: one pass serves any number of queries.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from auralign.models.bands import BandProjector, LogWarp
from auralign.models.encoders import Backbones
from auralign.models.mask_network import GridAnswer, MaskNetwork
from auralign.models.query_mask_net import MaskOutput, QueryMaskNet, yamnet_taps
from auralign.models.unet import MaskUNet


class OmniSepNet(MaskNetwork):
    """The published separator.

    Args:
        query_dim: 1024 with ImageBind, 512 with CLIP or CLAP, 256 with our own heads.
        levels: U-Net steps; frames are padded to a multiple of ``2 ** levels``.
        width: U-Net base width.
        latents: Latent masks.
        n_bins: Linear STFT bins.
        n_rows: Warped rows, a multiple of ``2 ** levels``.

    >>> sum(p.numel() for p in OmniSepNet(query_dim=1024).separation_parameters())
    30307043
    """

    def __init__(
        self,
        *,
        query_dim: int = 1024,
        levels: int = 7,
        width: int = 64,
        latents: int = 32,
        n_bins: int = 513,
        n_rows: int = 256,
    ) -> None:
        super().__init__()
        if n_rows % 2**levels:
            raise ValueError(f"n_rows is {n_rows}; {levels} levels need a multiple of {2**levels}")
        self.levels = levels
        self.warp = LogWarp(n_bins, n_rows)
        self.sound_net = MaskUNet(levels=levels, width=width, outputs=latents)
        self.frame_net = nn.Linear(query_dim, latents)
        nn.init.normal_(self.frame_net.weight, 0.0, 0.0001)
        nn.init.zeros_(self.frame_net.bias)
        self.scale = nn.Parameter(torch.ones(latents))
        self.bias = nn.Parameter(torch.zeros(1))
        self.presence_head = nn.Linear(4, 1)

    def separation_parameters(self) -> list[nn.Parameter]:
        """The published parameters: all but our presence read-out."""
        return [p for name, p in self.named_parameters() if not name.startswith("presence_head")]

    def latent_masks(
        self, magnitude: Float[Tensor, "batch bin frame"]
    ) -> tuple[Float[Tensor, "batch row frame"], Float[Tensor, "batch latent row frame"]]:
        """Warped magnitude (1e-10 added first, as published) and the U-Net's latent masks of its logarithm."""
        warped = self.warp((magnitude + 1e-10)[:, None])
        step = 2**self.levels
        short = -warped.shape[-1] % step
        log_magnitude = F.pad(warped.clamp_min(1e-10).log(), (0, short, 0, 0), mode="replicate")
        latents = self.sound_net(log_magnitude)
        return warped[:, 0], latents[..., : warped.shape[-1]]

    def logits(
        self, latents: Float[Tensor, "batch latent row frame"], query: Float[Tensor, "batch query dim"]
    ) -> Float[Tensor, "batch query row frame"]:
        """Mask logits of each query on the warped axis."""
        gate = torch.sigmoid(self.frame_net(query.to(self.frame_net.weight)))
        return torch.einsum("bqj,bjrt->bqrt", (gate * self.scale).to(latents), latents).float() + self.bias

    def presence_logits(
        self, warped: Float[Tensor, "batch row frame"], logits: Float[Tensor, "batch query row frame"]
    ) -> Float[Tensor, "batch query"]:
        """Ours, not the paper's: presence from four statistics of the mask: share of energy, peak, mean, spread."""
        mask = torch.sigmoid(logits)
        weight = warped.square()[:, None]
        weight = weight / weight.sum(dim=(2, 3), keepdim=True).clamp_min(1e-12)
        share = (mask * weight).sum(dim=(2, 3))
        peak = mask.amax(dim=2).mean(dim=2)
        spread = (weight * (mask - share[..., None, None]).square()).sum(dim=(2, 3)).clamp_min(1e-12).sqrt()
        statistics = torch.stack([share, peak, mask.mean(dim=(2, 3)), spread], dim=-1)
        presence: Tensor = self.presence_head(statistics)
        return presence.squeeze(-1)

    def analyse(
        self, spec: Complex[Tensor, "batch bin frame"], wave: Float[Tensor, "batch time"]
    ) -> dict[str, Tensor]:
        """The query-free pass; ``wave`` is not used by this network."""
        warped, latents = self.latent_masks(spec.abs())
        return {"warped": warped, "energy": warped.square(), "latents": latents}

    def respond(self, state: dict[str, Tensor], query: Float[Tensor, "batch query dim"]) -> GridAnswer:
        """Gated sums of the latent masks; presence is read off them and teaches them nothing."""
        logits = self.logits(state["latents"], query)
        with torch.autocast(logits.device.type, enabled=False):
            return GridAnswer(logits, self.presence_logits(state["warped"], logits.detach()))

    def to_bins(self, mask: Float[Tensor, "batch any row frame"]) -> Float[Tensor, "batch any bin frame"]:
        """Warped rows back to linear bins."""
        return self.warp.inverse(mask)


class SmallSeparator(MaskNetwork):
    """The ``small`` preset: :class:`QueryMaskNet` on pooled band energies, with a frozen YAMNet beside it.

    The level of every window is normalised before the network, so that masks do not depend on the recording level.

    Args:
        n_bands: Bands, a multiple of 16.
        n_bins: Linear STFT bins.
        net: Keyword arguments of :class:`QueryMaskNet`.
    """

    FLOOR = 1e-6  # -60 dB below the window's mean band energy

    def __init__(self, *, n_bands: int = 128, n_bins: int = 513, **net: Any) -> None:
        super().__init__()
        self.bands = BandProjector(n_bins, n_bands)
        self.net = QueryMaskNet(**net)
        self._backbones = Backbones()  # frozen and never part of the state dict

    @property
    def projector(self) -> BandProjector:
        """The pooling into bands."""
        return self.bands

    def share(self, backbones: Backbones) -> None:
        """Use backbones that are loaded elsewhere already."""
        self._backbones = backbones

    def log_energy(self, energy: Float[Tensor, "batch band frame"]) -> Float[Tensor, "batch 1 band frame"]:
        """Log of band energies relative to the window's mean, floored at -60 dB."""
        mean = energy.mean(dim=(1, 2), keepdim=True).clamp_min(1e-20)
        return torch.log(energy / mean + self.FLOOR)[:, None]

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
        with torch.no_grad(), torch.autocast(spec.device.type, enabled=False):
            energy = self.bands(spec.real.square() + spec.imag.square())  # in full, as losses weigh by it
        log_energy = self.log_energy(energy)
        frames = log_energy.shape[-1]
        log_energy = F.pad(log_energy, (0, -frames % 16, 0, 0), mode="replicate")
        fine, coarse = self.net.features(log_energy, self.taps(wave))
        return {"energy": energy, "fine": fine, "coarse": coarse}

    def respond(self, state: dict[str, Tensor], query: Float[Tensor, "batch query dim"]) -> GridAnswer:
        """One light head a query."""
        out: MaskOutput = self.net.read(state["fine"], state["coarse"], query)
        return GridAnswer(out.logits[..., : state["energy"].shape[-1]], out.presence)

    def to_bins(self, mask: Float[Tensor, "batch any row frame"]) -> Float[Tensor, "batch any bin frame"]:
        """Bands spread over linear bins."""
        return self.bands.expand(mask)
