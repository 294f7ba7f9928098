"""Names of NCSN++ tensors in the public checkpoints of SGMSE+ and flowmse, and the same tensors here.

Both projects keep the network as ``dnn``: first its last convolution, ``output_layer``, then a flat list,
``all_modules``. This order is the order of their parameters, by which torch-ema stores the averaged weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from auralign.models.ncsnpp import NCSNpp, published_modules
from auralign.models.ncsnpp_blocks import Attention, FourierTime, HearInput, ResidualBlock

_RESIDUAL = {
    "GroupNorm_0": "norm_1",
    "Conv_0": "conv_1",
    "Dense_0": "time",
    "GroupNorm_1": "norm_2",
    "Conv_1": "conv_2",
    "Conv_2": "shortcut",
}
_ATTENTION = {"NIN_0": "query", "NIN_1": "key", "NIN_2": "value", "NIN_3": "out"}


@final
@dataclass(frozen=True)
class PublishedTensor:
    """One tensor under both names."""

    published: str
    """Name in ``dnn`` of a public checkpoint."""
    ours: str
    """Name in the state dict of :class:`NCSNpp`."""
    transposed: bool = False
    """Rows and columns are exchanged."""
    negated: bool = False
    """The sign that both projects put before the network is part of this tensor here."""
    trained: bool = True
    """Old versions of torch-ema leave out what is not trained."""

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Shape that the published form of one of our tensors has."""
        return tuple(reversed(tensor.shape)) if self.transposed else tuple(tensor.shape)

    def turn(self, tensor: Tensor) -> Tensor:
        """The tensor as it is used here; the way back is the same."""
        tensor = tensor.T if self.transposed else tensor
        return (-tensor if self.negated else tensor).contiguous()


def published_tensors(network: NCSNpp) -> list[PublishedTensor]:
    """All tensors of the network in the order in which the public checkpoints have them.

    >>> tiny = NCSNpp(width=4, multipliers=(1, 1), blocks=1, freqs=16, attention=())
    >>> [t.published for t in published_tensors(tiny)][:3]
    ['output_layer.weight', 'output_layer.bias', 'all_modules.0.W']
    """
    place = {id(module): name for name, module in network.named_modules()}
    tensors = [
        PublishedTensor(f"output_layer.{kind}", f"out.{kind}", negated=True) for kind in ("weight", "bias")
    ]
    for index, module in enumerate(published_modules(network)):
        tensors += _of(module, f"all_modules.{index}", place[id(module)])
    return tensors


def to_published(network: NCSNpp) -> dict[str, Tensor]:
    """State dict under the published names, with their signs: the inverse of :func:`from_published`."""
    state = network.state_dict()
    return {t.published: t.turn(state[t.ours]) for t in published_tensors(network)}


def from_published(network: NCSNpp, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of our network from tensors under the published names, in float32; all must be there and fit."""
    return {t.ours: t.turn(tensors[t.published].float()) for t in published_tensors(network)}


def _of(module: nn.Module, published: str, ours: str) -> Iterator[PublishedTensor]:
    if isinstance(module, FourierTime):
        yield PublishedTensor(f"{published}.W", f"{ours}.frequencies", trained=False)
    elif isinstance(module, ResidualBlock):
        for theirs, name in _RESIDUAL.items():
            if not isinstance(module.get_submodule(name), nn.Identity):
                yield from _layer(f"{published}.{theirs}", f"{ours}.{name}")
    elif isinstance(module, Attention):
        yield from _layer(f"{published}.GroupNorm_0", f"{ours}.norm")
        for theirs, name in _ATTENTION.items():
            yield PublishedTensor(f"{published}.{theirs}.W", f"{ours}.{name}.weight", transposed=True)
            yield PublishedTensor(f"{published}.{theirs}.b", f"{ours}.{name}.bias")
    elif isinstance(module, HearInput):
        yield from _layer(f"{published}.Conv_0", f"{ours}.conv")
    else:
        yield from _layer(published, ours)


def _layer(published: str, ours: str) -> Iterator[PublishedTensor]:
    for kind in ("weight", "bias"):
        yield PublishedTensor(f"{published}.{kind}", f"{ours}.{kind}")
