"""Networks that a flow of speech spectra can have, by name; all answer `net(x_t, noisy, t)` with complex spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from auralign.errors import UsageError

Answer = Literal["data", "velocity"]
"""What a network predicts: the clean spectrum x̂₀, or the velocity itself."""


def _band_unet(**options: Any) -> nn.Module:
    from auralign.models.band_unet import BandUnet

    return BandUnet(**options)


def _ncsnpp(**options: Any) -> nn.Module:
    from auralign.models.ncsnpp import NCSNpp

    return NCSNpp(**options)


NETWORKS: Mapping[str, tuple[Answer, Callable[..., nn.Module]]] = {
    "band_unet": ("data", _band_unet),
    "ncsnpp": ("velocity", _ncsnpp),
}
"""Name → what it answers, and how it is made."""


def make_network(name: str, options: Mapping[str, Any]) -> tuple[Answer, nn.Module]:
    """A network with random weights.

    Raises:
        UsageError: There is none of this name, or it has no such option.
    """
    if name not in NETWORKS:
        raise UsageError(f"there is no flow network {name!r}", hint=f"known: {', '.join(NETWORKS)}")
    answer, make = NETWORKS[name]
    try:
        return answer, make(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the options do not fit the network {name!r}", why=str(error)) from error
