"""Several channels heard as one."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

_CANCELLED = 0.05  # the mean of channels is used unless it has less of the strongest one's power than this


def representative(wave: Float[Tensor, "channel time"]) -> Float[Tensor, "time"]:
    """The channels' mean, or the strongest channel where they cancel.

    >>> import torch
    >>> representative(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).tolist()
    [1.0, 2.0]
    """
    middle = wave.mean(dim=0)
    powers = wave.square().mean(dim=1) if wave.shape[1] else wave.new_zeros(len(wave))
    if float(middle.square().mean() if wave.shape[1] else 0.0) < _CANCELLED * float(powers.max()):
        return wave[int(powers.argmax())]
    return middle
