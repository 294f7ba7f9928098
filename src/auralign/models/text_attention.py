r"""Blocks that let a feature map listen to the words of a query (BiSep, Mahmud et al., ICLR 2024, arXiv:2404.01740).

A map is read as one vector a position, :math:`X`; the text is one vector a token, :math:`W`. Pre-norm attention with
:math:`A(X, Y) = \operatorname{softmax}(Q(X) K(Y)^\top / \sqrt{d})\,V(Y)`:

.. math::
    \text{self:}\quad  X \leftarrow X + A(\hat X, \hat X), \quad X \leftarrow X + \operatorname{MLP}(\hat X) \\
    \text{cross:}\quad X \leftarrow X + A(\hat X, W), \quad X \leftarrow X + \operatorname{MLP}(\hat X)

with :math:`\hat X` the layer norm of :math:`X` and an MLP of one hidden layer, twice as wide, GELU.

Every block is cut in two: ``prepare`` does what needs no text, once a mixture, and ``condition`` the rest, once a
query. ``forward`` is one after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

CondLayer = Literal["sca", "ca", "sa", "identity", "cat"]
COND_LAYERS: tuple[CondLayer, ...] = get_args(CondLayer)


class Attention(nn.Module):
    """Multi-head attention; keys that are not valid are never attended to.

    Where no key of a row is valid, all of its keys are attended to: such a query says nothing, but stays finite.

    Args:
        width: Dimension of queries and answers, a multiple of ``heads``.
        source: Dimension of keys and values.
        heads: Heads.
    """

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}; {heads} heads need a multiple of {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(source, width), nn.Linear(source, width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch place width"],
        source: Float[Tensor, "batch token dim"],
        valid: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch place width"]:
        """What each place hears of the source."""
        query, key, value = (
            rearrange(y, "batch place (head dim) -> batch head place dim", head=self.heads)
            for y in (self.query(x), self.key(source), self.value(source))
        )
        mask = None
        if valid is not None:
            mask = (valid | ~valid.any(dim=1, keepdim=True))[:, None, None, :]
        with torch.autocast(x.device.type, enabled=False):
            if query.device.type == "cpu" and query.dtype == torch.bfloat16:  # four times as slow as float32
                query, key, value = query.float(), key.float(), value.float()
            heard = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        answer: Tensor = self.out(rearrange(heard, "batch head place dim -> batch place (head dim)"))
        return answer


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
    )


def _flatten(x: Tensor) -> Tensor:
    return rearrange(x, "batch width row frame -> batch (row frame) width")


def _unflatten(x: Tensor, like: Tensor) -> Tensor:
    return rearrange(x, "batch (row frame) width -> batch width row frame", row=like.shape[2])


class SelfBlock(nn.Module):
    """Pre-norm self-attention over all positions of a map, then the MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, width, heads)
        self.mlp = _mlp(width)

    def forward(self, x: Float[Tensor, "batch width row frame"]) -> Float[Tensor, "batch width row frame"]:
        """The map after every position has heard every other."""
        y = _flatten(x)
        normed = self.norm(y)
        y = y + self.attention(normed, normed)
        return _unflatten(y + self.mlp(y), x)


class CrossBlock(nn.Module):
    """Pre-norm attention of all positions of a map to the text tokens, then the MLP."""

    def __init__(self, width: int, token_dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, token_dim, heads)
        self.mlp = _mlp(width)

    def forward(
        self,
        x: Float[Tensor, "batch width row frame"],
        tokens: Float[Tensor, "batch token dim"],
        valid: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch width row frame"]:
        """The map after every position has heard the tokens."""
        y = _flatten(x)
        y = y + self.attention(self.norm(y), tokens, valid)
        return _unflatten(y + self.mlp(y), x)


class CondBlock(nn.Module, ABC):
    """A conditioning block in its two parts.

    Attributes:
        hears: Whether the text changes what comes out.
    """

    hears: bool = True

    def prepare(self, x: Float[Tensor, "batch width row frame"]) -> Float[Tensor, "batch width row frame"]:
        """The part without text."""
        return x

    @abstractmethod
    def condition(
        self,
        x: Float[Tensor, "batch width row frame"],
        tokens: Float[Tensor, "batch token dim"],
        valid: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch width row frame"]:
        """The part with text; ``valid`` is None where padding is attended to as well."""

    def forward(
        self,
        x: Float[Tensor, "batch width row frame"],
        tokens: Float[Tensor, "batch token dim"],
        valid: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch width row frame"]:
        """Both parts."""
        return self.condition(self.prepare(x), tokens, valid)


class SelfCross(CondBlock):
    """``sca``: self-attention, then cross-attention."""

    def __init__(self, width: int, token_dim: int, heads: int) -> None:
        super().__init__()
        self.self_block = SelfBlock(width, heads)
        self.cross_block = CrossBlock(width, token_dim, heads)

    def prepare(self, x: Tensor) -> Tensor:
        """Self-attention."""
        y: Tensor = self.self_block(x)
        return y

    def condition(self, x: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Cross-attention."""
        y: Tensor = self.cross_block(x, tokens, valid)
        return y


class Cross(CondBlock):
    """``ca``: cross-attention only."""

    def __init__(self, width: int, token_dim: int, heads: int) -> None:
        super().__init__()
        self.cross_block = CrossBlock(width, token_dim, heads)

    def condition(self, x: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Cross-attention."""
        y: Tensor = self.cross_block(x, tokens, valid)
        return y


class Self(CondBlock):
    """``sa``: self-attention only, deaf to the text."""

    hears = False

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_block = SelfBlock(width, heads)

    def prepare(self, x: Tensor) -> Tensor:
        """Self-attention."""
        y: Tensor = self.self_block(x)
        return y

    def condition(self, x: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Nothing."""
        return x


class Identity(CondBlock):
    """``identity``: nothing at all."""

    hears = False

    def condition(self, x: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Nothing."""
        return x


class Concat(CondBlock):
    """``cat``: a convolution, the mean token beside every position, and a second convolution, around an identity."""

    def __init__(self, width: int, token_dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.text = nn.Linear(token_dim, width)
        self.second = nn.Conv2d(2 * width, width, 3, padding=1)

    def condition(self, x: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """The map plus what the two convolutions make of it and the text."""
        weight = torch.ones_like(tokens[..., :1]) if valid is None else valid[..., None].to(tokens)
        mean = (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)
        y = F.leaky_relu(self.first(x), 0.2)
        text = self.text(mean)[:, :, None, None].to(y).expand(-1, -1, *y.shape[2:])
        change: Tensor = self.second(torch.cat([y, text], dim=1))
        return x + change


def _block(layer: CondLayer, width: int, token_dim: int, heads: int) -> CondBlock:
    if layer == "sca":
        return SelfCross(width, token_dim, heads)
    if layer == "ca":
        return Cross(width, token_dim, heads)
    if layer == "sa":
        return Self(width, heads)
    if layer == "cat":
        return Concat(width, token_dim)
    return Identity()


class Conditioner(CondBlock):
    """``blocks`` conditioning blocks of one kind, one after the other.

    Args:
        layer: Kind of block.
        blocks: How many.
        width: Channels of the map.
        token_dim: Dimension of the token states.
        heads: Attention heads.
        mask_padding: Do not attend to padding. The released arithmetic does attend to it.
    """

    def __init__(
        self,
        layer: CondLayer,
        *,
        blocks: int = 1,
        width: int,
        token_dim: int,
        heads: int = 8,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        if layer not in COND_LAYERS:
            raise ValueError(f"there is no conditioning layer {layer!r}; one of {', '.join(COND_LAYERS)}")
        if blocks < 1:
            raise ValueError(f"blocks is {blocks}; conditioning needs at least 1")
        self.mask_padding = mask_padding
        self.hears = layer in ("sca", "ca", "cat")
        self.blocks = nn.ModuleList(_block(layer, width, token_dim, heads) for _ in range(blocks))

    def _stack(self) -> list[CondBlock]:
        return [cast(CondBlock, block) for block in self.blocks]

    def prepare(self, x: Tensor) -> Tensor:
        """All blocks if they are deaf, else the first one's part without text."""
        for block in self._stack()[: 1 if self.hears else None]:
            x = block.prepare(x)
        return x

    def condition(self, x: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """The rest of the first block, and the other blocks whole."""
        if not self.hears:
            return x
        valid = valid if self.mask_padding else None
        first, *others = self._stack()
        x = first.condition(x, tokens, valid)
        for block in others:
            x = block(x, tokens, valid)
        return x
