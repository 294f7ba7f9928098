"""The fused Beta policy against `torch.distributions`: same bins, one process, interleaved, agreement checked.

Work: draw masks, then log-probability, entropy, divergence to an old policy, and the gradient in the proposal. Times
are the smallest of the repeats, the figure that a shared machine disturbs least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Beta, kl_divergence

from auralign.errors import AuralignError
from auralign.policy.beta_mask import KAPPA, PROPOSAL_EPS, BetaMask, policy_terms

AGREEMENT = 1e-4
"""Largest difference of the loss, and of the gradient relative to its largest entry, that is still rounding."""

LAMBDA_ENTROPY, LAMBDA_KL = 0.1, 0.01
"""Coefficients of the loss, as in the paper."""


@dataclass(frozen=True)
class Work:
    """One size: items, masks for each, bins, frames."""

    batch: int
    """Mixtures."""
    group: int
    """Masks drawn for each."""
    freq: int
    """Bins."""
    frame: int
    """Frames."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a proposal."""
        return self.batch, self.freq, self.frame


CASES = {
    "beta_fused_vs_torch_distributions": Work(8, 1, 256, 256),
    "beta_fused_vs_torch_distributions_group_of_4": Work(2, 4, 256, 256),
}

Masks = Float[Tensor, "batch group freq frame"]


@dataclass(frozen=True, eq=False)
class _Side:
    """One way to do the work."""

    draw: Callable[[], Masks]
    loss: Callable[[Masks], Float[Tensor, ""]]


def _ours(proposal: Tensor, old: Tensor, work: Work) -> _Side:
    generator = torch.Generator().manual_seed(0)

    def loss(mask: Masks) -> Tensor:
        terms = policy_terms(BetaMask(proposal), mask, anchors=(BetaMask(old),))
        return terms.log_prob.mean() + LAMBDA_ENTROPY * terms.entropy.mean() - LAMBDA_KL * terms.kl[0].mean()

    return _Side(lambda: BetaMask(proposal).sample(generator, work.group), loss)


def _peer(proposal: Tensor, old: Tensor, work: Work) -> _Side:
    def policy(p: Tensor) -> Beta:
        p = p.clamp(PROPOSAL_EPS, 1 - PROPOSAL_EPS)
        return Beta(1 + KAPPA * p, 1 + KAPPA * (1 - p), validate_args=False)

    def draw() -> Masks:
        with torch.no_grad():
            return policy(proposal).sample((work.group,)).transpose(0, 1).clamp(1e-6, 1 - 1e-6)

    def loss(mask: Masks) -> Tensor:
        new = policy(proposal)
        log_prob = new.log_prob(mask.transpose(0, 1)).mean()
        divergence = kl_divergence(new, policy(old)).mean()
        total: Tensor = log_prob + LAMBDA_ENTROPY * new.entropy().mean() - LAMBDA_KL * divergence
        return total

    return _Side(draw, loss)


def _step(side: _Side, proposal: Tensor) -> float:
    proposal.grad = None
    start = time.perf_counter()
    side.loss(side.draw()).backward()
    return time.perf_counter() - start


def _check_agreement(sides: dict[str, _Side], proposal: Tensor, name: str) -> float:
    """Both sides on the same masks; the larger of the two differences."""
    mask = sides["ours"].draw()
    found = []
    for side in sides.values():
        value = side.loss(mask)
        found.append((float(value.detach()), torch.autograd.grad(value, proposal)[0]))
    (ours, slope), (peer, peer_slope) = found
    difference = max(abs(ours - peer), float((slope - peer_slope).abs().max() / peer_slope.abs().max()))
    if not difference <= AGREEMENT:
        raise AuralignError(
            f"differs from torch.distributions by {difference:.1e}",
            where=name,
            hint="one of the two has changed",
        )
    return difference


def bench(*, cases: dict[str, Work] | None = None, repeats: int = 3) -> dict[str, dict[str, object]]:
    """Times of the fused policy and its peer, in the form that ``auralign bench policy --json`` prints.

    Args:
        cases: Work by name of the entry; `CASES` by default.
        repeats: Interleaved repeats of each side, after one that is not timed.
    """
    entries: dict[str, dict[str, object]] = {}
    for name, work in (CASES if cases is None else cases).items():
        generator = torch.Generator().manual_seed(1)
        proposal = torch.rand(work.shape, generator=generator).requires_grad_()
        old = (proposal.detach() + 0.02 * torch.randn(work.shape, generator=generator)).clamp(0, 1)
        sides = {"ours": _ours(proposal, old, work), "peer": _peer(proposal, old, work)}
        difference = _check_agreement(sides, proposal, name)
        best = dict.fromkeys(sides, float("inf"))
        for _ in range(repeats):
            for side in sides:
                best[side] = min(best[side], _step(sides[side], proposal))
        size = "×".join(map(str, work.shape))
        entries[name] = {
            "ours_s": best["ours"],
            "peer_s": best["peer"],
            "ratio": best["peer"] / best["ours"],
            "peer": "torch.distributions.Beta",
            "work": f"sample, log-prob, entropy, KL and backward: {size} bins, {work.group} mask(s) each",
            "max_difference": difference,
        }
    return entries
