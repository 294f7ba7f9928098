r"""Losses of blind separation from mixtures: every assignment of outputs to mixtures, searched at once.

A network separates :math:`\sum_n x_n` into outputs :math:`\hat s_1 \ldots \hat s_M`. MixIT (Wisdom et al. 2020,
arXiv:2006.12701) takes the best way to put every output into exactly one mixture:

.. math:: L = \min_A \sum_n \ell(x_n, [A\hat s]_n), \qquad A \in \{0, 1\}^{N \times M},\ \textstyle\sum_n A_{nm} = 1.

MixPIT (Karamatlı and Kırbız 2022, arXiv:2202.03875) is the same with :math:`M = N` and :math:`A` a permutation.

The search never builds a sum of outputs. With the Gram matrix :math:`G = \hat S \hat S^T` and the cross-Gram matrix
:math:`C = X \hat S^T` a row :math:`a` of :math:`A`, that is a subset of the outputs, costs

.. math:: \|x_n - a\hat S\|^2 = \|x_n\|^2 - 2\,C_n a^T + a\,G\,a^T,

so :math:`N 2^M` subset costs in float64 serve all :math:`N^M` assignments. The winner's loss is then computed from
its waveforms, and gradients flow through that alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from auralign.errors import UsageError

MixtureLoss = Literal["snr", "si_sdr", "l2"]
MAX_ASSIGNMENTS = 1_000_000
_SILENCE = 1e-10  # mean power of a silent sound, -100 dBFS: below the rounding of 16-bit files


def assignments(n_mixtures: int, n_outputs: int) -> Bool[Tensor, "assignment mixture output"]:
    """All matrices that put every output into exactly one mixture, in the order of ``itertools.product``.

    Raises:
        UsageError: There are more than :data:`MAX_ASSIGNMENTS`.

    >>> assignments(2, 3).shape
    torch.Size([8, 2, 3])
    """
    _require_countable(n_mixtures**n_outputs, f"{n_outputs} outputs in {n_mixtures} mixtures")
    place = n_mixtures ** torch.arange(n_outputs - 1, -1, -1)
    chosen = torch.arange(n_mixtures**n_outputs)[:, None] // place % n_mixtures
    return chosen[:, None] == torch.arange(n_mixtures)[:, None]


def permutations(n_outputs: int) -> Bool[Tensor, "permutation mixture output"]:
    """All permutation matrices, in the order of ``itertools.permutations``: row m of output m.

    >>> permutations(3).shape
    torch.Size([6, 3, 3])
    """
    count = 1
    for factor in range(2, n_outputs + 1):
        count *= factor
        _require_countable(count, f"permutations of {n_outputs} outputs")
    chosen = torch.tensor(list(itertools.permutations(range(n_outputs))))
    return chosen[:, None] == torch.arange(n_outputs)[:, None]


def _require_countable(count: int, what: str) -> None:
    if count > MAX_ASSIGNMENTS:
        raise UsageError(
            f"{what}: more than {MAX_ASSIGNMENTS:,} assignments to try",
            where="mixit",
            hint="use fewer outputs or fewer mixtures",
        )


@dataclass(frozen=True)
class _Plan:
    """Assignments as rows of a table of subsets, so that a subset shared by many of them is costed once."""

    matrices: Bool[Tensor, "assignment mixture output"]
    subsets: Float[Tensor, "subset output"]
    rows: Int[Tensor, "assignment mixture"]


def _plan(matrices: Bool[Tensor, "assignment mixture output"]) -> _Plan:
    codes = (matrices.long() << torch.arange(matrices.shape[2])).sum(dim=2)
    unique, rows = torch.unique(codes, return_inverse=True)
    subsets = (unique[:, None] >> torch.arange(matrices.shape[2])) & 1
    return _Plan(matrices, subsets.double(), rows)


@lru_cache(maxsize=8)
def _all_plan(n_mixtures: int, n_outputs: int) -> _Plan:
    return _plan(assignments(n_mixtures, n_outputs))


@lru_cache(maxsize=8)
def _permutation_plan(n_outputs: int) -> _Plan:
    return _plan(permutations(n_outputs))


@dataclass(frozen=True)
class _Fit:
    """Energies that say how well an estimate fits its reference; fields broadcast against each other.

    Attributes:
        error: Energy of reference minus estimate.
        leak: Energy of the estimate's part that is orthogonal to the reference.
        estimate: Energy of the estimate.
        reference: Energy of the reference.
        total: Energy of the sum of all references.
        samples: Length of the sounds.
    """

    error: Tensor
    leak: Tensor
    estimate: Tensor
    reference: Tensor
    total: Tensor
    samples: int

    @classmethod
    def of_waves(cls, estimate: Tensor, reference: Tensor, total: Tensor) -> _Fit:
        """From waveforms; ``total`` is an energy."""
        energy = reference.square().sum(-1)
        gain = (estimate * reference).sum(-1) / energy.clamp_min(_SILENCE * reference.shape[-1])
        return cls(
            error=(reference - estimate).square().sum(-1),
            leak=(estimate - gain[..., None] * reference).square().sum(-1),
            estimate=estimate.square().sum(-1),
            reference=energy,
            total=total,
            samples=reference.shape[-1],
        )

    @classmethod
    def of_products(
        cls, estimate: Tensor, cross: Tensor, reference: Tensor, total: Tensor, samples: int
    ) -> _Fit:
        """From energies and inner products, which may cancel to slightly less than nothing."""
        gain = cross / reference.clamp_min(_SILENCE * samples)
        return cls(
            error=(reference - 2 * cross + estimate).clamp_min(0),
            leak=(estimate - gain * cross).clamp_min(0),
            estimate=estimate,
            reference=reference,
            total=total,
            samples=samples,
        )


def _loss_of(fit: _Fit, loss: str, snr_max_db: float, inactive_db: float) -> Tensor:
    """The loss of each estimate; see :func:`mixit` for the names."""
    if loss == "l2":
        return fit.error / fit.samples
    floor = _SILENCE * fit.samples
    tau, tau_inactive = 10 ** (-snr_max_db / 10), 10 ** (-inactive_db / 10)
    if loss == "snr":
        reference = fit.reference.clamp_min(floor)
        active = 10 * torch.log10(fit.error / reference + tau)
    elif loss == "si_sdr":
        noise = torch.where(fit.estimate > floor, fit.leak / fit.estimate.clamp_min(floor), 1).clamp(max=1)
        active = 10 * torch.log10((noise + tau) / (1 - noise + tau))
    else:
        raise UsageError(f"there is no mixture loss {loss!r}", hint="one of snr, si_sdr, l2")
    inactive = 10 * torch.log10(fit.error / fit.total.clamp_min(floor) + tau_inactive)
    return torch.where(fit.reference <= floor, inactive, active)


def thresholded_snr_loss(
    estimate: Float[Tensor, "*batch time"],
    reference: Float[Tensor, "*batch time"],
    mixture: Float[Tensor, "*batch time"],
    *,
    snr_max_db: float = 30.0,
    inactive_db: float = 20.0,
) -> Float[Tensor, "*batch"]:
    r"""Negative SNR with a soft ceiling, in dB, and its form for references that are silent.

    .. math::
        \ell = 10\log_{10}\frac{\|x - \hat x\|^2 + \tau\|x\|^2}{\|x\|^2}, \qquad
        \ell_0 = 10\log_{10}\frac{\|\hat x\|^2 + \tau_0\|m\|^2}{\|m\|^2}

    Wisdom et al. 2020 (arXiv:2006.12701), with :math:`\tau = 10^{-SNR_{max}/10}`; :math:`\ell_0` is that of the
    FUSS baseline (Wisdom et al. 2021, arXiv:2011.00803) divided by the constant :math:`\|m\|^2`, which makes both forms
    independent of the level. A perfect estimate scores ``-snr_max_db``, a silent estimate of silence ``-inactive_db``.

    Args:
        estimate: What the network gave.
        reference: What it should have given.
        mixture: All references together; used where the reference is silent.
        snr_max_db: Ceiling for active references.
        inactive_db: Ceiling for silent ones, relative to the mixture.

    >>> x = torch.ones(1, 100)
    >>> [round(float(thresholded_snr_loss(e, r, x)), 3) for e, r in ((x, x), (0 * x, 0 * x))]
    [-30.0, -20.0]
    """
    total = mixture.float().square().sum(-1)
    fit = _Fit.of_waves(estimate.float(), reference.float(), total)
    return _loss_of(fit, "snr", snr_max_db, inactive_db)


def mixit(
    estimates: Float[Tensor, "batch output time"],
    mixtures: Float[Tensor, "batch mixture time"],
    *,
    loss: MixtureLoss = "snr",
    snr_max_db: float = 30.0,
    inactive_db: float = 20.0,
    chunk: int = 65_536,
) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch output"]]:
    r"""Mixture-invariant loss, summed over the mixtures, and the mixture that each output was put into.

    Wisdom et al. 2020 (arXiv:2006.12701). An equally good assignment that comes earlier in
    :func:`assignments` wins. A mixture may get no output at all.

    Args:
        estimates: Outputs of the network on the sum of the mixtures.
        mixtures: The mixtures that were summed.
        loss: ``snr``: :func:`thresholded_snr_loss`. ``l2``: mean squared error. ``si_sdr``: negative scale-invariant
            SDR with ceiling and floor, :math:`10\log_{10}\frac{1 - c + \tau}{c + \tau}` of the squared cosine
            :math:`c` between estimate and mixture; a silent estimate scores the floor.
        snr_max_db: Ceiling of the ratio for active mixtures.
        inactive_db: Ceiling for silent mixtures, relative to the sum of all.
        chunk: Subsets of outputs that are costed at a time.

    Raises:
        UsageError: There are more than :data:`MAX_ASSIGNMENTS` assignments, or no such loss.

    >>> x = torch.randn(1, 4, 800)
    >>> loss, assignment = mixit(x, torch.stack([x[:, 0] + x[:, 2], x[:, 1] + x[:, 3]], dim=1))
    >>> round(float(loss), 2), assignment.tolist()
    (-60.0, [[0, 1, 0, 1]])
    """
    plan = _all_plan(mixtures.shape[1], estimates.shape[1])
    return _best(estimates, mixtures, plan, loss, snr_max_db, inactive_db, chunk)


def mixpit(
    estimates: Float[Tensor, "batch output time"],
    mixtures: Float[Tensor, "batch output time"],
    *,
    loss: MixtureLoss = "snr",
    snr_max_db: float = 30.0,
    inactive_db: float = 20.0,
    chunk: int = 65_536,
) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch output"]]:
    """Mixture permutation invariant loss: :func:`mixit` with as many outputs as mixtures, one for each.

    Karamatlı and Kırbız 2022 (arXiv:2202.03875). Arguments and results as in :func:`mixit`.
    """
    plan = _permutation_plan(estimates.shape[1])
    return _best(estimates, mixtures, plan, loss, snr_max_db, inactive_db, chunk)


def _best(
    estimates: Tensor,
    mixtures: Tensor,
    plan: _Plan,
    loss: str,
    snr_max_db: float,
    inactive_db: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The best of the plan's assignments: searched in products, scored in waveforms."""
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}", where="mixit", hint="cost at least one subset at a time")
    with torch.no_grad():
        winner = _search(estimates, mixtures, plan, loss, snr_max_db, inactive_db, chunk)
    chosen = plan.matrices.to(estimates.device)[winner]
    waves = estimates.float()
    mixed = torch.stack([(waves * chosen[:, n, :, None]).sum(dim=1) for n in range(chosen.shape[1])], dim=1)
    references = mixtures.float()
    total = references.sum(dim=1).square().sum(-1)[:, None]
    fit = _Fit.of_waves(mixed, references, total)
    return _loss_of(fit, loss, snr_max_db, inactive_db).sum(dim=1), chosen.long().argmax(dim=1)


def _search(
    estimates: Tensor,
    mixtures: Tensor,
    plan: _Plan,
    loss: str,
    snr_max_db: float,
    inactive_db: float,
    chunk: int,
) -> Int[Tensor, "batch"]:
    """Index of the best assignment of each example, from Gram matrices in float64."""
    outputs, references = estimates.detach().double(), mixtures.detach().double()
    gram = outputs @ outputs.mT
    cross = references @ outputs.mT
    energy = references.square().sum(-1)[..., None]
    total = references.sum(dim=1).square().sum(-1)[:, None, None]
    costs = []
    for subsets in plan.subsets.to(gram.device).split(chunk):
        estimate = ((subsets @ gram) * subsets).sum(-1)[:, None]
        fit = _Fit.of_products(estimate, cross @ subsets.mT, energy, total, estimates.shape[-1])
        costs.append(_loss_of(fit, loss, snr_max_db, inactive_db))
    table = torch.cat(costs, dim=2)
    rows = plan.rows.to(gram.device)
    cost = table[:, 0, rows[:, 0]]
    for n in range(1, rows.shape[1]):
        cost = cost + table[:, n, rows[:, n]]
    return cost.argmin(dim=1)


def energy_weights(estimates: Float[Tensor, "batch output time"]) -> Float[Tensor, "batch output"]:
    r"""Energies of the outputs, as weights of :func:`mixture_consistency`: silent outputs stay silent."""
    return estimates.square().sum(-1)


def mixture_consistency(
    estimates: Float[Tensor, "batch output time"],
    mixture: Float[Tensor, "batch time"],
    weights: Float[Tensor, "batch output"] | None = None,
) -> Float[Tensor, "batch output time"]:
    r"""The outputs moved so that they sum to the mixture: :math:`\hat s_m + w_m (x - \sum_j \hat s_j)`.

    Wisdom et al. 2019 (arXiv:1811.08521): with equal weights the nearest such point in least squares.

    Args:
        estimates: Outputs of the network.
        mixture: What they should sum to.
        weights: Shares of the correction, of any scale and not negative, such as :func:`energy_weights`; equal when
            left out, or when all are zero.

    >>> mixture_consistency(torch.zeros(1, 2, 3), torch.ones(1, 3)).tolist()
    [[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]]
    """
    weights = torch.ones_like(estimates[..., 0]) if weights is None else weights
    total = weights.sum(dim=1, keepdim=True)
    share = torch.where(total > 0, weights / total.clamp_min(1e-30), 1 / estimates.shape[1])
    missing = mixture - estimates.sum(dim=1)
    return estimates + share[..., None] * missing[:, None]
