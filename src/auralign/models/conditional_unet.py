r"""BiSep's published network (Mahmud et al., ICLR 2024, arXiv:2404.01740): a U-Net whose deepest levels hear the text.

Log magnitudes :math:`\log(1+|X|)` of 512 bins go down seven levels; on the deepest three the map attends to the token
states of the query. The way up ends in 32 feature maps :math:`F`, which the sentence vector :math:`s` weighs:

.. math:: \operatorname{logit} M = \textstyle\sum_j \sigma(A s + a)_j\,\alpha_j\,F_j + b.

Down: 4 x 4 convolution of stride 2, batch norm, leaky ReLU, residual block. Up: bilinear, residual block, 3 x 3
convolution, batch norm, ReLU, with skips by concatenation.

What no text takes part in runs once a mixture: the way down to the first conditioned level, and, as a convolution of
two concatenated maps is the sum of their convolutions, the share of every text-free skip in the residual block that
reads it, which is half of the block. The weighted sum of the last convolution's maps is taken as one convolution
with the weighted sum of its kernels. The numbers are those of one whole pass a query.

Deviations from the paper: ``cat`` gets the mean token (as released it cannot run), padding is not attended to unless
asked for, and a read-out of four mask statistics says whether the sound is there.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from auralign.models.mask_network import GridAnswer, MaskNetwork
from auralign.models.text_attention import Conditioner, CondLayer
from auralign.models.text_tokens import CLAP_TOKENS, split_query

CONDITIONED = 3
"""Deepest levels that hear the text."""


class _Residual(nn.Module):
    """``layers`` times 3 x 3 convolution and batch norm around an identity, then a leaky ReLU."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.more = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
            for _ in range(layers - 1)
        )

    def after_first(self, x: Tensor, first: Tensor) -> Tensor:
        """The block on ``x``, given what its first convolution makes of it."""
        y: Tensor = self.norm(first)
        for layer in self.more:
            y = layer(y)
        return F.leaky_relu(x + y, 0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_first(x, self.first(x))


class _Down(nn.Sequential):
    """Half the resolution."""

    def __init__(self, inputs: int, outputs: int, layers: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.2),
            _Residual(outputs, layers),
        )


class _Up(nn.Module):
    """Twice the resolution, from a skip (if any) and the map below.

    Args:
        skip: Channels of the skip, which come first.
        below: Channels of the map below.
        outputs: Channels made.
        layers: Convolutions of the residual block.
        last: A plain convolution at the end: no norm, no ReLU.
    """

    def __init__(self, skip: int, below: int, outputs: int, layers: int, *, last: bool) -> None:
        super().__init__()
        self.skip = skip
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.residual = _Residual(skip + below, layers)
        self.conv = nn.Conv2d(skip + below, outputs, 3, padding=1, bias=last)
        self.norm = nn.Identity() if last else nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU())

    def share(self, skip: Tensor) -> tuple[Tensor, Tensor]:
        """The skip at twice the resolution, and its share of the residual block's first convolution."""
        up, conv = self.upsample(skip), self.residual.first
        return up, F.conv2d(up, conv.weight[:, : self.skip], conv.bias, padding=1)

    def refine(self, below: Tensor, up: Tensor, first: Tensor) -> Tensor:
        """The residual block for many queries, from :meth:`share`, once a mixture, and the map below, once a query."""
        batch = (len(up), len(below) // len(up))
        below = self.upsample(below)
        own = F.conv2d(below, self.residual.first.weight[:, self.skip :], padding=1)
        first = (own.unflatten(0, batch) + first[:, None]).flatten(0, 1)
        up = up[:, None].expand(-1, batch[1], -1, -1, -1)
        return self.residual.after_first(
            torch.cat([up, below.unflatten(0, batch)], dim=2).flatten(0, 1), first
        )

    def finish(self, below: Tensor, up: Tensor, first: Tensor) -> Tensor:
        """The whole level, as :meth:`refine` takes it."""
        x: Tensor = self.norm(self.conv(self.refine(below, up, first)))
        return x

    def weigh(self, x: Tensor, weight: Tensor) -> Tensor:
        r"""The weighted sum of the last convolution's maps, as one convolution: :math:`(\sum_j w_j K_j) * x`.

        A kernel of its own for every row: nine products a bin, then nine shifted maps added.
        """
        kernel = torch.einsum("nj,jcyx->nyxc", weight.to(self.conv.weight), self.conv.weight)
        taps = kernel.flip(1, 2).flatten(1, 2).to(x) @ x.flatten(2)
        total = F.fold(taps, (x.shape[2], x.shape[3]), kernel_size=3, padding=1)[:, 0]
        if self.conv.bias is not None:
            total = total + (weight @ self.conv.bias.to(weight))[:, None, None]
        return total

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(self.residual(self.upsample(x))))
        return y


class ConditionalUNet(MaskNetwork):
    """The published separator, on linear bins: STFT of 1022 samples every 256.

    Args:
        levels: Steps down, at least 4; the bins are a multiple of ``2 ** levels``, frames are padded to one.
        width: Channels after the first step; they double up to eight times as many.
        cond_layer: How the deepest levels hear the words: ``sca``, ``ca``, ``sa``, ``identity`` or ``cat``.
        cond_blocks: Conditioning blocks a level.
        heads: Attention heads.
        res_layers: Convolutions of a residual block.
        channels: Feature maps that the sentence vector weighs.
        n_fft: Window of the STFT, samples.
        pooled_dim: Length of the sentence vector.
        tokens: Token rows of a query.
        token_dim: Length of a token row.
        mask_padding: Do not attend to padding rows. The released network does, through an encoder that keeps their
            states (``clap-padded-tokens``).
    """

    def __init__(
        self,
        *,
        levels: int = 7,
        width: int = 64,
        cond_layer: CondLayer = "sca",
        cond_blocks: int = 1,
        heads: int = 8,
        res_layers: int = 1,
        channels: int = 32,
        n_fft: int = 1022,
        pooled_dim: int = 512,
        tokens: int = CLAP_TOKENS,
        token_dim: int = 768,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        n_bins = n_fft // 2 + 1
        if levels <= CONDITIONED:
            raise ValueError(
                f"levels is {levels}; above the deepest {CONDITIONED}, which hear text, one is needed"
            )
        if n_bins % 2**levels:
            raise ValueError(
                f"n_fft {n_fft} gives {n_bins} bins; {levels} levels need a multiple of {2**levels}"
            )
        self.n_fft, self.hop, self.levels = n_fft, 256, levels
        self.pooled_dim, self.tokens, self.token_dim = pooled_dim, tokens, token_dim
        widths = [min(width * 2**n, width * 8) for n in range(levels)]
        self.norm = nn.BatchNorm2d(1)
        self.downs = nn.ModuleList(
            _Down(i, o, res_layers) for i, o in zip([1, *widths[:-1]], widths, strict=True)
        )
        self.conditioners = nn.ModuleList(
            Conditioner(
                cond_layer,
                blocks=cond_blocks,
                width=w,
                token_dim=token_dim,
                heads=heads,
                mask_padding=mask_padding,
            )
            for w in widths[-CONDITIONED:]
        )
        ups = []
        for n, (outputs, own) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
            ups.append(_Up(own if n < levels - 1 else 0, own, outputs, res_layers, last=n == 0))
        self.ups = nn.ModuleList(ups)
        self.gate = nn.Linear(pooled_dim, channels)
        self.scale = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(1))
        self.presence_head = nn.Linear(4, 1)
        self.hears = cond_layer in ("sca", "ca", "cat")

    def published_parameters(self) -> list[nn.Parameter]:
        """Those that the paper counts: not the map of the sentence vector to channel weights, not our presence."""
        ours = ("gate.", "presence_head.")
        return [p for name, p in self.named_parameters() if not name.startswith(ours)]

    @property
    def query_dim(self) -> int:
        """Length of a flat query."""
        return self.pooled_dim + self.tokens * self.token_dim

    def magnitude(self, energy: Float[Tensor, "batch row frame"]) -> Float[Tensor, "batch 1 row frames"]:
        """Normalised log magnitude, its last frame repeated up to a multiple of ``2 ** levels``."""
        short = -energy.shape[-1] % 2**self.levels
        x: Tensor = self.norm(torch.log1p(F.pad(energy, (0, short, 0, 0), mode="replicate").sqrt())[:, None])
        return x

    def analyse(
        self, spec: Complex[Tensor, "batch bin frame"], wave: Float[Tensor, "batch time"]
    ) -> dict[str, Tensor]:
        """The way down as far as no text is heard, and where none is heard at all, the way up as well.

        ``wave`` is not used by this network.
        """
        with (
            torch.no_grad(),
            torch.autocast(spec.device.type, enabled=False),
        ):  # in full, as losses weigh by it
            energy = spec.real.square() + spec.imag.square()
        x, state = self.magnitude(energy), {"energy": energy}
        for n in range(self.levels - CONDITIONED):
            x = self.downs[n](x)
            state[f"up{n}"], state[f"first{n}"] = self._up(n).share(x)
        state["deep"] = self._conditioner(0).prepare(self.downs[self.levels - CONDITIONED](x))
        if not self.hears:
            none = state["deep"].new_zeros(len(energy), 1, self.token_dim)
            state["maps"] = self._up(0).conv(self.refined(state, none, none[..., 0].bool()))
        return state

    def _up(self, n: int) -> _Up:
        return cast(_Up, self.ups[n])

    def _conditioner(self, n: int) -> Conditioner:
        return cast(Conditioner, self.conditioners[n])

    def refined(
        self,
        state: dict[str, Tensor],
        tokens: Float[Tensor, "rows token width"],
        valid: Bool[Tensor, "rows token"],
    ) -> Float[Tensor, "rows channel row frame"]:
        """All but the last convolution, for every query; ``rows`` is a multiple of the mixtures."""
        x: Tensor = state["deep"].repeat_interleave(len(tokens) // len(state["deep"]), dim=0)
        x = self._conditioner(0).condition(x, tokens, valid)
        skips = [x]
        for n in range(1, CONDITIONED):
            x = self.conditioners[n](self.downs[self.levels - CONDITIONED + n](x), tokens, valid)
            skips.append(x)
        x = self.ups[self.levels - 1](skips.pop())
        for n in reversed(range(self.levels - CONDITIONED, self.levels - 1)):
            x = self.ups[n](torch.cat([skips.pop(), x], dim=1))
        for n in reversed(range(1, self.levels - CONDITIONED)):
            x = self._up(n).finish(x, state[f"up{n}"], state[f"first{n}"])
        return self._up(0).refine(x, state["up0"], state["first0"])

    def respond(self, state: dict[str, Tensor], query: Float[Tensor, "batch query dim"]) -> GridAnswer:
        """The conditioned levels and the way up, once a query."""
        batch, n_queries = query.shape[:2]
        pooled, tokens, valid = split_query(query, self.pooled_dim, self.token_dim)
        weight = torch.sigmoid(self.gate(pooled)) * self.scale
        if self.hears:
            x = self.refined(state, tokens.flatten(0, 1), valid.flatten(0, 1))
            logits = self._up(0).weigh(x, weight.flatten(0, 1)).unflatten(0, (batch, n_queries))
        else:
            logits = torch.einsum("bqj,bjrt->bqrt", weight.to(state["maps"]), state["maps"])
        logits = (logits.float() + self.bias)[..., : state["energy"].shape[-1]]
        return GridAnswer(logits, self.presence(state["energy"], logits.detach()))

    def presence(
        self, energy: Float[Tensor, "batch row frame"], logits: Float[Tensor, "batch query row frame"]
    ) -> Float[Tensor, "batch query"]:
        """Ours, not the paper's: from four statistics of the mask: share of energy, peak, mean, spread."""
        mask = torch.sigmoid(logits)
        weight = energy[:, None] / energy.sum(dim=(1, 2))[:, None, None, None].clamp_min(1e-12)
        share = (mask * weight).sum(dim=(2, 3))
        peak = mask.amax(dim=2).mean(dim=2)
        spread = (weight * (mask - share[..., None, None]).square()).sum(dim=(2, 3)).clamp_min(1e-12).sqrt()
        statistics = torch.stack([share, peak, mask.mean(dim=(2, 3)), spread], dim=-1)
        presence: Tensor = self.presence_head(statistics)
        return presence.squeeze(-1).float()

    def to_bins(self, mask: Float[Tensor, "batch any row frame"]) -> Float[Tensor, "batch any bin frame"]:
        """The grid is that of the bins."""
        return mask
