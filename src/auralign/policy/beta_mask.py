r"""Factorised Beta policy over masks: one Beta for each time-frequency bin, its mode is the separator's mask.

MARS-Sep (arXiv:2510.10509), Eq. (2): :math:`\pi_\theta(M \mid X, Q) = \prod_i \mathrm{Beta}(M_i; \alpha_i, \beta_i)`
with :math:`\alpha = 1 + \kappa P`, :math:`\beta = 1 + \kappa (1 - P)`.

Symbols: P proposal (the separator's mask, after its sigmoid), M mask (the action), κ concentration, ψ digamma,
ψ₁ trigamma, B Euler's beta function. Because α + β = κ + 2 is the same in every bin, half of the special
functions of a general Beta are scalars here; `policy_terms` is built on that.

Clamps: P to [1e-4, 1 − 1e-4] (no gradient outside), M to [1e-6, 1 − 1e-6] when drawn and before logarithms.
Half-precision proposals are raised to float32; float64 stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from auralign.errors import UsageError
from auralign.policy.gamma import Pairing, beta_family, digamma_of, log_beta_of, rows_at_once, standard_gamma

PROPOSAL_EPS = 1e-4
"""Proposals stay this far from 0 and 1."""

MASK_EPS = 1e-6
"""Masks stay this far from 0 and 1."""

KAPPA = 9.0
"""Concentration of the paper."""


@final
@dataclass(frozen=True, eq=False)
class BetaMask:
    """MARS-Sep Eq. (2): masks drawn around a proposal, each bin from its own Beta.

    >>> policy = BetaMask(torch.full((1, 2, 3), 0.5), kappa=9.0)
    >>> tuple(policy.sample(torch.Generator().manual_seed(0), group=4).shape)
    (1, 4, 2, 3)
    >>> round(float(policy.entropy().mean()), 3)
    -0.523
    """

    proposal: Float[Tensor, "batch *bins"]
    """P, in [0, 1]; gradients of log_prob, entropy, kl and score flow into it."""
    kappa: float = KAPPA
    """κ > 0; small explores, large follows the proposal."""

    def __post_init__(self) -> None:
        """Refuses what gives no distribution."""
        if not (math.isfinite(self.kappa) and self.kappa > 0):
            raise UsageError(
                f"kappa is {self.kappa}", where="BetaMask", hint="use a positive number, such as 9"
            )
        if self.proposal.dim() < 2:
            raise UsageError("the proposal has no bins", where="BetaMask", hint="its shape is batch × bins")

    @property
    def mode(self) -> Float[Tensor, "batch *bins"]:
        """Most likely mask, P itself (clamped); what inference uses."""
        wide = torch.promote_types(self.proposal.dtype, torch.float32)
        return self.proposal.to(wide).clamp(PROPOSAL_EPS, 1 - PROPOSAL_EPS)

    @property
    def mean(self) -> Float[Tensor, "batch *bins"]:
        """(1 + κP) / (κ + 2): pulled towards 0.5, so a closed bin still leaks 1 / (κ + 2) on average."""
        return (1 + self.kappa * self.mode) / (self.kappa + 2)

    @property
    def alpha(self) -> Float[Tensor, "batch *bins"]:
        """1 + κP."""
        return 1 + self.kappa * self.mode

    @property
    def beta(self) -> Float[Tensor, "batch *bins"]:
        """1 + κ(1 − P)."""
        return 1 + self.kappa * (1 - self.mode)

    def detach(self) -> BetaMask:
        """The same policy as a constant: the snapshot π_old, or a reference."""
        return BetaMask(self.proposal.detach(), self.kappa)

    @torch.no_grad()
    def sample(
        self, generator: torch.Generator, group: int, *, pairing: Pairing = "independent"
    ) -> Float[Tensor, "batch group *bins"]:
        """Exact draws M = X / (X + Y), X ~ Gamma(α), Y ~ Gamma(β); no gradient.

        Antithetic members share noise of opposite sign. Each alone is still an exact draw of the policy, so its
        log-probability needs no correction, but the two are dependent: a baseline for one must leave out the other
        (`rl.advantage.leave_one_out(..., drawn_together=2)`).

        Args:
            generator: Source of all randomness, on the device of the proposal.
            group: Masks for each item of the batch; even when antithetic.
            pairing: See `Pairing`.
        """
        if group < 1 or (pairing == "antithetic" and group % 2):
            raise UsageError(
                f"a group of {group} cannot be drawn ({pairing})",
                where="BetaMask.sample",
                hint="use 2, 4 or 8",
            )
        p = self.mode.flatten(1)
        mask = p.new_empty(p.shape[0], group, p.shape[1])
        rows = rows_at_once(p)
        for part, out in zip(p.split(rows), mask.split(rows), strict=True):
            alpha = (self.kappa * part).add_(1)
            x = standard_gamma(alpha, group, generator, pairing)
            y = standard_gamma(alpha.neg_().add_(self.kappa + 2), group, generator, pairing)
            torch.div(x, y.add_(x), out=out).clamp_(MASK_EPS, 1 - MASK_EPS)
        shaped: Tensor = mask.unflatten(2, self.proposal.shape[1:])
        return shaped

    def log_prob(self, mask: Float[Tensor, "batch group *bins"]) -> Float[Tensor, "batch group *bins"]:
        """Log-density of each bin, κP ln M + κ(1 − P) ln(1 − M) − ln B(α, β)."""
        m = self._clamped(mask)
        p = self.mode.unsqueeze(1)
        return self.kappa * (p * m.log() + (1 - p) * (-m).log1p()) - self._log_beta().unsqueeze(1)

    def score(self, mask: Float[Tensor, "batch group *bins"]) -> Float[Tensor, "batch group *bins"]:
        """Derivative of `log_prob` in P: κ [ln M − ln(1 − M) − ψ(α) + ψ(β)]."""
        m = self._clamped(mask)
        psi = self.alpha.digamma() - self.beta.digamma()
        return self.kappa * (m.logit() - psi.unsqueeze(1))

    def fisher(self) -> Float[Tensor, "batch *bins"]:
        """Variance of the score, κ² [ψ₁(α) + ψ₁(β)]."""
        return self.kappa**2 * (torch.polygamma(1, self.alpha) + torch.polygamma(1, self.beta))

    def entropy(self) -> Float[Tensor, "batch *bins"]:
        """Differential entropy of each bin in nats: ln B − κP ψ(α) − κ(1 − P) ψ(β) + κ ψ(κ + 2); largest at P = 0.5."""
        p, kappa = self.mode, self.kappa
        inner = p * self.alpha.digamma() + (1 - p) * self.beta.digamma()
        return self._log_beta() - kappa * (inner - digamma_of(kappa + 2))

    def kl(self, other: BetaMask) -> Float[Tensor, "batch *bins"]:
        """KL(self ‖ other) of each bin in nats; the two may differ in κ.

        ln[B(α₂, β₂) / B(α₁, β₁)] + (α₁ − α₂) ψ(α₁) + (β₁ − β₂) ψ(β₁) + (α₂ − α₁ + β₂ − β₁) ψ(α₁ + β₁).
        """
        a1, b1 = self.alpha, self.beta
        a2, b2 = other.alpha, other.beta
        moved = (a1 - a2) * a1.digamma() + (b1 - b2) * b1.digamma()
        return (
            other._log_beta()
            - self._log_beta()
            + moved
            + (other.kappa - self.kappa) * digamma_of(self.kappa + 2)
        )

    def _log_beta(self) -> Float[Tensor, "batch *bins"]:
        """Log of B(α, β); α + β is the scalar κ + 2."""
        return self.alpha.lgamma() + self.beta.lgamma() - math.lgamma(self.kappa + 2)

    def _clamped(self, mask: Tensor) -> Tensor:
        self._check(mask)
        return mask.to(self.mode.dtype).clamp(MASK_EPS, 1 - MASK_EPS)

    def _check(self, mask: Tensor) -> None:
        batch, *bins = self.proposal.shape
        if mask.shape[0] != batch or list(mask.shape[2:]) != bins:
            raise UsageError(
                f"masks of shape {tuple(mask.shape)} do not belong to a proposal of shape {(batch, *bins)}",
                where="BetaMask",
                hint="masks are batch × group × bins",
            )


@final
@dataclass(frozen=True, eq=False)
class PolicyTerms:
    """What a policy update needs, as means over bins, with gradients into the proposal."""

    log_prob: Float[Tensor, "batch group"]
    """Mean log-density of each mask; times the number of bins it is the joint one."""
    entropy: Float[Tensor, " batch"]
    """Mean entropy in nats."""
    kl: tuple[Float[Tensor, " batch"], ...]
    """Mean KL(policy ‖ anchor) in nats, in the order of the anchors."""


def policy_terms(
    policy: BetaMask,
    mask: Float[Tensor, "batch group *bins"],
    *,
    anchors: Sequence[BetaMask] = (),
    weight: Float[Tensor, "batch *bins"] | None = None,
) -> PolicyTerms:
    """Log-probability, entropy and divergences in one pass, with a closed-form backward pass.

    Equal to the means of `log_prob`, `entropy` and `kl`. Gradients go to the policy's proposal only: masks and
    anchors are constants. Second derivatives are not defined.

    Args:
        policy: π_θ.
        mask: Masks to score, drawn from π_old.
        anchors: Policies to measure the divergence to, such as π_old and a reference.
        weight: Importance of each bin, such as mixture energy; scaled here to sum to 1 in each item.
    """
    policy._check(mask)
    p = policy.mode.flatten(1)
    action = mask.detach().to(p.dtype).flatten(2)
    if weight is None:
        share = torch.full((1, 1), 1 / p.shape[1], dtype=p.dtype, device=p.device).expand(p.shape[0], 1)
    else:
        flat = weight.detach().to(p.dtype).flatten(1)
        share = flat / flat.sum(1, keepdim=True)
    fixed = tuple((anchor.mode.detach().flatten(1), anchor.kappa) for anchor in anchors)
    log_prob, entropy, *kl = _Terms.apply(p, action, policy.kappa, share, fixed)  # type: ignore[no-untyped-call]
    return PolicyTerms(log_prob, entropy, tuple(kl))


class _Terms(torch.autograd.Function):
    """Forward and backward pass of `policy_terms` on flat bins, a few items at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        mask: Tensor,
        kappa: float,
        share: Tensor,
        anchors: tuple[tuple[Tensor, float], ...],
    ) -> tuple[Tensor, ...]:
        values, saved = [], []
        rows = rows_at_once(p)
        for start in range(0, p.shape[0], rows):
            part = slice(start, start + rows)
            near = tuple((other[part], kappa_other) for other, kappa_other in anchors)
            value, kept = _terms_of(p[part], mask[part], kappa, share[part], near)
            values.append(value)
            saved += kept
        ctx.kappa, ctx.anchors = kappa, len(anchors)
        ctx.save_for_backward(*saved)
        return tuple(torch.cat(parts) for parts in zip(*values, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Scores weighted by the incoming gradients; entropy and KL by their closed forms."""
        saved, size = ctx.saved_tensors, 4 + ctx.anchors
        found, start = [], 0
        for first in range(0, len(saved), size):
            kept = saved[first : first + size]
            part = slice(start, start + kept[0].shape[0])
            found.append(_slope_of(kept, [grad[part] for grad in grads], ctx.kappa))
            start = part.stop
        return torch.cat(found), None, None, None, None


def _terms_of(
    p: Tensor, mask: Tensor, kappa: float, share: Tensor, anchors: tuple[tuple[Tensor, float], ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Values, and what the backward pass needs.

    With s = κP − κ₂P₂ the slopes, each without a factor κ, are dH/dP = κ [(1 − P) ψ₁(β) − P ψ₁(α)] and
    dKL/dP = s [ψ₁(α) + ψ₁(β)] − (κ − κ₂) ψ₁(β).
    """
    log_beta, psi_b, psi_difference, tri_b, tri_sum = beta_family(p, kappa)
    psi_all = digamma_of(kappa + 2)
    mask = mask.clamp(MASK_EPS, 1 - MASK_EPS)
    log_closed = (-mask).log1p_()
    logit = mask.log_().sub_(log_closed)
    inner = log_closed.addcmul_(logit, p.unsqueeze(1)).mul_(kappa).sub_(log_beta.unsqueeze(1))
    spread = psi_b.addcmul(p, psi_difference).mul_(-kappa).add_(log_beta)
    values = [inner.mul_(share.unsqueeze(1)).sum(-1), spread.mul_(share).sum(-1) + kappa * psi_all]
    slopes = [tri_b.addcmul(p, tri_sum, value=-1).mul_(kappa)]
    for p_other, kappa_other in anchors:
        s = (kappa * p).sub_(kappa_other * p_other)
        value = log_beta_of(p_other, kappa_other).sub_(log_beta).addcmul_(s, psi_difference)
        slope = s.mul_(tri_sum)
        if kappa != kappa_other:
            value += (kappa - kappa_other) * (psi_b - psi_all)
            slope -= (kappa - kappa_other) * tri_b
        values.append(value.mul_(share).sum(-1))
        slopes.append(slope)
    return values, [logit, share, psi_difference, *slopes]


def _slope_of(kept: Sequence[Tensor], grads: Sequence[Tensor], kappa: float) -> Tensor:
    """Gradient in P of a sum of log-probs, entropies and divergences, each times its incoming gradient."""
    logit, share, psi_difference, *slopes = kept
    to_log_prob, *to_others = grads
    gradient = torch.einsum("bg,bgn->bn", to_log_prob, logit)
    gradient.addcmul_(to_log_prob.sum(1, keepdim=True), psi_difference, value=-1)
    for incoming, slope in zip(to_others, slopes, strict=True):
        gradient.addcmul_(incoming.unsqueeze(1), slope)
    return gradient.mul_(kappa).mul_(share)


def pool_tiles(
    proposal: Float[Tensor, "batch freq frame"],
    tile: tuple[int, int],
    weight: Float[Tensor, "batch freq frame"] | None = None,
) -> Float[Tensor, "batch row column"]:
    """Mean proposal of each tile: the P of a coarse `BetaMask`, whose log-prob is over tiles instead of bins.

    Args:
        proposal: P of every bin.
        tile: Bins and frames of a tile; tiles at the upper edges may be smaller.
        weight: Importance of each bin, such as mixture energy.
    """

    def pooled(value: Tensor) -> Tensor:
        return functional.avg_pool2d(value.unsqueeze(1), tile, ceil_mode=True).squeeze(1)

    if weight is None:
        return pooled(proposal)
    weight = weight.detach().clamp_min(1e-12)
    return pooled(proposal * weight) / pooled(weight)


@torch.no_grad()
def render_tiles(
    action: Float[Tensor, "batch group row column"],
    coarse: BetaMask,
    proposal: Float[Tensor, "batch freq frame"],
    tile: tuple[int, int],
) -> Float[Tensor, "batch group freq frame"]:
    """Mask of every bin for coarse actions: the odds of P change by what the action changed in its tile.

    logit M = logit P + upsample(logit action − logit P_coarse), bilinear. Detail inside a tile survives, an action
    at the coarse mode renders P itself, and the result depends on the action alone, so the policy's log-prob stays
    that of the coarse `BetaMask`. The learning signal, too, reaches only tile means.
    """
    shift = coarse._clamped(action).logit() - coarse.mode.unsqueeze(1).logit()
    rows, columns = shift.shape[-2:]
    size = (rows * tile[0], columns * tile[1])
    _, freq, frame = proposal.shape
    fine = functional.interpolate(shift, size=size, mode="bilinear", align_corners=False)
    base = BetaMask(proposal).mode.unsqueeze(1).logit()
    return (base + fine[..., :freq, :frame]).sigmoid_().clamp_(MASK_EPS, 1 - MASK_EPS)


def kappa_at(step: int, n_steps: int, *, knots: tuple[float, ...] = (5.0, 9.0, 20.0)) -> float:
    """κ of a step: linear between evenly spaced knots, the last one from the last step on.

    >>> [kappa_at(step, 101) for step in (0, 25, 50, 100, 500)]
    [5.0, 7.0, 9.0, 20.0, 20.0]
    """
    if not knots or min(knots) <= 0 or step < 0 or n_steps < 1:
        raise UsageError(
            f"no kappa for step {step} of {n_steps} with knots {knots}",
            where="kappa_at",
            hint="use positive knots",
        )
    place = min(step / max(n_steps - 1, 1), 1.0) * (len(knots) - 1)
    left = min(int(place), max(len(knots) - 2, 0))
    right = min(left + 1, len(knots) - 1)
    return knots[left] + (place - left) * (knots[right] - knots[left])
