r"""The ``small`` separator: one trunk pass a mixture, one light head a query.

The trunk is a residual U-Net on log band energies. It ends in fine features :math:`F` (one vector a bin of the band
spectrogram) and coarse features :math:`P` (one vector for four bands times four frames), which also see the maps of a
frozen YAMNet. A query :math:`q` modulates the coarse features (FiLM, Perez et al. 2018) and turns them into a local
filter that reads the fine ones:

.. math:: \operatorname{logit} M = \textstyle\sum_c U[w_c(P, q)]\, F_c + U[w_0(P, q)],

with :math:`U` bilinear up-sampling. A third read-out pools :math:`P` under the same modulation into the logit that the
queried sound is present at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

_TAPS = (5, 11, 13)  # YAMNet maps that the trunk reads: strides 8, 16 and 32
_TAP_WIDTHS = (256, 512, 1024)
_TAP_MELS = (8, 4, 2)


@dataclass(frozen=True)
class MaskOutput:
    """What the separator says of each query."""

    logits: Float[Tensor, "batch query band frame"]
    presence: Float[Tensor, "batch query"]

    @property
    def mask(self) -> Float[Tensor, "batch query band frame"]:
        """Ratio mask in (0, 1)."""
        return torch.sigmoid(self.logits.float())


class _Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        nn.init.zeros_(self.second_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(x + self.second_norm(self.second(y)), inplace=True)


def _norm_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    padding = (kernel - stride) // 2 if stride > 1 else kernel // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _TapReader(nn.Module):
    """Project YAMNet maps and bring them to the trunk's 16-band grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.locals = nn.ModuleList(nn.Conv2d(w, width // 4, 1) for w in _TAP_WIDTHS)
        self.column = nn.Conv1d(_TAP_WIDTHS[-1] * _TAP_MELS[-1], width // 4, 1)

    def forward(self, maps: list[Tensor], bands: int, frames: int) -> Tensor:
        parts = [
            F.interpolate(conv(x), size=(bands, frames), mode="bilinear", align_corners=False)
            for conv, x in zip(self.locals, maps, strict=True)
        ]
        column = self.column(rearrange(maps[-1], "batch dim mel frame -> batch (dim mel) frame"))
        column = F.interpolate(column, size=frames, mode="linear", align_corners=False)
        parts.append(column[:, :, None, :].expand(-1, -1, bands, -1))
        return F.relu(torch.cat(parts, dim=1))


class Trunk(nn.Module):
    """Everything that does not depend on the query."""

    def __init__(
        self, widths: tuple[int, int, int, int], blocks: tuple[int, int, int, int], fine: int
    ) -> None:
        super().__init__()
        w1, w2, w3, w4 = widths
        self.norm = nn.BatchNorm2d(1)
        self.stem = _norm_conv(2, w1, 4, stride=2)
        self.enc = nn.ModuleList(
            nn.Sequential(*(_Residual(w) for _ in range(n))) for w, n in zip(widths, blocks, strict=True)
        )
        self.down = nn.ModuleList(_norm_conv(a, b, 4, stride=2) for a, b in ((w1, w2), (w2, w3), (w3, w4)))
        self.taps = _TapReader(w3)
        self.join = nn.ModuleList([_norm_conv(2 * w3, w3, 1), _norm_conv(w4 + w3, w4, 1)])
        self.up = nn.ModuleList(_norm_conv(a + b, b, 1) for a, b in ((w4, w3), (w3, w2), (w2, w1)))
        self.dec = nn.ModuleList(_Residual(w) for w in (w3, w2, w1))
        self.fine = nn.Sequential(nn.Conv2d(w1 + 1, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.skip = nn.Conv2d(2, fine, 3, padding=1)

    def forward(self, log_energy: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Fine features (batch fine band frame) and coarse ones at a quarter of the resolution."""
        fine, coarse, _ = self.pyramid(log_energy, maps)
        return fine, coarse

    def pyramid(self, log_energy: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Fine and coarse features, and the deepest ones at a sixteenth of the resolution."""
        x = self.norm(log_energy)
        band = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype, device=x.device)
        x0 = torch.cat([x, band[None, None, :, None].expand_as(x)], dim=1)
        x1 = self.enc[0](self.stem(x0))
        x2 = self.enc[1](self.down[0](x1))
        x3 = self.down[1](x2)
        tap = self.taps(maps, x3.shape[2], x3.shape[3])
        x3 = self.enc[2](self.join[0](torch.cat([x3, tap], dim=1)))
        x4 = torch.cat([self.down[2](x3), F.avg_pool2d(tap, 2)], dim=1)
        deep = y = self.enc[3](self.join[1](x4))
        coarse = y
        for n, skip in enumerate((x3, x2, x1)):
            y = F.interpolate(y, scale_factor=2.0, mode="nearest")
            y = self.dec[n](self.up[n](torch.cat([y, skip], dim=1)))
            coarse = y if n == 1 else coarse
        half = band[::2][None, None, :, None].expand(y.shape[0], 1, -1, y.shape[3])
        return F.relu(self.fine(torch.cat([y, half], dim=1)) + self.skip(x0)), coarse, deep


class QueryHead(nn.Module):
    """From coarse features and a query to local filters and a presence logit."""

    def __init__(self, width: int, query_dim: int, fine: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, hidden, 1)
        self.film = nn.Linear(query_dim, 2 * hidden)
        self.mix = nn.Conv2d(hidden, hidden, 1)
        self.film_mix = nn.Linear(query_dim, 2 * hidden)
        self.filters = nn.Conv2d(hidden, fine + 1, 1)
        self.presence = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        nn.init.normal_(self.filters.weight, std=0.02)

    @staticmethod
    def _modulate(x: Tensor, film: Tensor) -> Tensor:
        gain, shift = film[:, :, None, None].chunk(2, dim=1)
        return F.gelu(x * (1 + gain) + shift)

    def forward(self, coarse: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Filters (batch*query fine+1 band/4 frame/4) and presence logits (batch*query)."""
        n_queries = query.shape[1]
        flat = rearrange(query, "batch query dim -> (batch query) dim")
        x = self.project(coarse).repeat_interleave(n_queries, dim=0)
        x = self._modulate(x, self.film(flat))
        x = self._modulate(self.mix(x), self.film_mix(flat))
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return self.filters(x), self.presence(pooled).squeeze(1)


class QueryMaskNet(nn.Module):
    """Band-energy separator with one trunk pass for many queries.

    Args:
        widths: Channels at half, quarter, eighth and sixteenth resolution.
        blocks: Residual blocks of the encoder at each of them.
        fine: Fine features a bin.
        hidden: Width of the query head.
        query_dim: Dimension of the query vectors.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int, int] = (48, 96, 160, 256),
        blocks: tuple[int, int, int, int] = (1, 2, 2, 2),
        fine: int = 24,
        hidden: int = 128,
        query_dim: int = 256,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(widths, blocks, fine)
        self.head = QueryHead(widths[1], query_dim, fine, hidden)

    def features(
        self, log_energy: Float[Tensor, "batch 1 band frame"], maps: list[Tensor]
    ) -> tuple[Float[Tensor, "batch fine band frame"], Float[Tensor, "batch coarse rows columns"]]:
        """The trunk pass, to be shared by all queries of a mixture."""
        fine, coarse = self.trunk(log_energy, maps)
        return fine, coarse

    def read(
        self,
        fine: Float[Tensor, "batch fine band frame"],
        coarse: Float[Tensor, "batch coarse rows columns"],
        query: Float[Tensor, "batch query dim"],
    ) -> MaskOutput:
        """The head pass for any number of queries a mixture."""
        n_queries = query.shape[1]
        filters, presence = self.head(coarse, query)
        filters = F.interpolate(filters, size=fine.shape[2:], mode="bilinear", align_corners=False)
        filters = rearrange(
            filters, "(batch query) dim band frame -> batch query dim band frame", query=n_queries
        )
        logits = (filters[:, :, :-1] * fine[:, None]).sum(dim=2) + filters[:, :, -1]
        return MaskOutput(
            logits=logits.float(),
            presence=rearrange(presence.float(), "(batch query) -> batch query", query=n_queries),
        )

    def forward(
        self,
        log_energy: Float[Tensor, "batch 1 band frame"],
        maps: list[Tensor],
        query: Float[Tensor, "batch query dim"],
    ) -> MaskOutput:
        """Masks and presence of every query in every mixture.

        Args:
            log_energy: Natural log of band energies; bands and frames are multiples of 16.
            maps: The YAMNet maps of :func:`yamnet_taps`.
            query: Unit query vectors.
        """
        fine, coarse = self.features(log_energy, maps)
        return self.read(fine, coarse, query)


def yamnet_taps(maps: list[Tensor]) -> list[Tensor]:
    """Pick the maps the trunk reads out of YAMNet's fourteen, as (batch dim mel frame)."""
    return [maps[i].transpose(2, 3) for i in _TAPS]
