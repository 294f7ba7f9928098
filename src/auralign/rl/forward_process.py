r"""Updates of the forward process: rewarded samples are noised again and matched, no trajectory is kept.

Any solver may draw the samples, with any number of steps and no noise; the update needs the clean sample, its
advantage, and the velocities of the current, the old and perhaps the reference policy at noised samples.

**DiffusionNFT** (Zheng et al. 2025, arXiv:2509.16117). With a probability r of being good, two implicit policies
:math:`v^\pm = (1 \mp \beta) v_{old} \pm \beta v_\theta` are matched to the same target:
:math:`L = \frac{1}{\beta}[r |v^+ - u|^2 + (1 - r) |v^- - u|^2]`. Its code compares predicted data,
x̂₀ = x_t − t v, and divides each error by its own mean modulus, which evens out the times.

**AWM** (advantage weighted matching, arXiv:2509.25050). The error of matching stands for the log-likelihood,
:math:`\ln \pi(x_0) = -w_t(e_\theta)`, and the rest is the clipped policy gradient: ρ = exp(w_t(e_old) − w_t(e_θ)).

**AdvantageFlow** (arXiv:2605.26013, in GA-AF-FlowSE's form). Squared distances of x̂₀ from the
sample, from the old and from the reference policy's x̂₀, weighted A, γ and λ, are one square about the centre
(A x₀ + γ x̂₀,old + λ x̂₀,ref) / κ with κ = A + γ + λ; γ = 1 − A keeps it convex where A < 0.

All objectives are to be maximised, and do not move the policy where A = 0 (r = ½) while v_θ = v_old.

Symbols: as in `matching`; r optimality, A advantage, β strength of the implicit policies, x̂₀ predicted data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from auralign.errors import UsageError
from auralign.flow.path import along
from auralign.rl.flow_surrogate import ClipRange
from auralign.rl.matching import (
    Noised,
    excess_error,
    matching_error,
    mean_modulus,
    mean_of,
    mean_square,
    real_scalars,
)

MatchingWeight = Literal["uniform", "t", "t_squared", "huber", "ghuber"]
"""w_t(e): e, t e, t² e, t √e, t e^p / p."""

LEAST_MODULUS = 1e-5
"""Errors of prediction are divided by no less."""

HUBER_FLOOR = 1e-10
"""Added to errors under a root, whose slope at 0 is infinite."""


@final
@dataclass(frozen=True, eq=False)
class Velocities:
    """What the policies say at the noised samples; only the first has a gradient."""

    new: Inexact[Tensor, "row *shape"]
    """v_θ."""
    old: Inexact[Tensor, "row *shape"]
    """v_old, of the policy that drew the samples (or a slow copy)."""
    reference: Inexact[Tensor, "row *shape"] | None = None
    """v_ref, of the frozen base model."""
    average: Inexact[Tensor, "row *shape"] | None = None
    """v of a moving average of the policy."""


@final
@dataclass(frozen=True, eq=False)
class ForwardUpdate:
    """Objective and the numbers to watch."""

    objective: Float[Tensor, ""]
    """To be maximised, penalties included."""
    error: Float[Tensor, ""]
    """Mean e_θ on the policy's own samples."""
    moved: Float[Tensor, ""]
    """mean |v_θ − v_old|²: 0 at the first inner step."""
    drift: Float[Tensor, ""]
    """mean |v_θ − v_ref|²; nan without a reference."""
    clip_share: Float[Tensor, ""]
    """Share of rows whose gradient was dropped; only AWM clips."""


@final
@dataclass(frozen=True)
class Penalties:
    """Distances of velocities that are taken from the objective, mean over real scalars."""

    reference: float = 0.0
    """Of |v_θ − v_ref|²; 1e-4 in DiffusionNFT."""
    average: float = 0.0
    """Of |v_θ − v_average|²; 0.1 to 1 holds AWM."""


def optimality(advantage: Float[Tensor, " row"], *, limit: float = 5.0) -> Float[Tensor, " row"]:
    """DiffusionNFT's r = clip(A / (2 A_max) + ½, 0, 1).

    >>> optimality(torch.tensor([-9.0, 0.0, 2.5])).tolist()
    [0.0, 0.5, 0.75]
    """
    return (advantage.detach() / (2 * limit) + 0.5).clamp(0, 1)


def nft(
    noised: Noised,
    v: Velocities,
    advantage: Float[Tensor, " row"],
    *,
    strength: float = 1.0,
    limit: float = 5.0,
    penalties: Penalties = Penalties(reference=1e-4),
    kept: Bool[Tensor, " row"] | None = None,
) -> ForwardUpdate:
    """DiffusionNFT: −A_max / β · mean[r E⁺ + (1 − r) E⁻], E = mean |x̂₀ − x₀|² / mean |x̂₀ − x₀| (divisor detached).

    Args:
        noised: Samples with noise.
        v: Velocities; `old` is the slow copy of `old_policy_decay`.
        advantage: A of each row.
        strength: β; 1, or 0.1 with several rewards.
        limit: A_max of the advantages.
        penalties: Against drift.
        kept: Rows that count.
    """
    if not strength > 0:
        raise UsageError(f"a strength of {strength} trains nothing", where="nft", hint="use 1, or 0.1")
    old = v.old.detach()
    toward = (1 - strength) * old + strength * v.new
    away = (1 + strength) * old - strength * v.new
    good = optimality(advantage, limit=limit)
    value = good * _even_error(noised, toward) + (1 - good) * _even_error(noised, away)
    return _update(-value * (limit / strength), None, noised, v, penalties, kept)


def awm(
    noised: Noised,
    v: Velocities,
    advantage: Float[Tensor, " row"],
    *,
    weight: MatchingWeight = "ghuber",
    power: float = 0.25,
    clip: ClipRange | None = None,
    penalties: Penalties = Penalties(average=0.1),
    kept: Bool[Tensor, " row"] | None = None,
) -> ForwardUpdate:
    """Advantage weighted matching: mean of min(ρ A, clip(ρ) A), ρ = exp(w_t(e_old) − w_t(e_θ)).

    Args:
        noised: Samples with noise.
        v: Velocities.
        advantage: A of each row.
        weight: w; the paper's is uniform, its code's ghuber.
        power: p of ghuber.
        clip: Range of ρ, in nats of −D w or as published (1e-5 to 1, unit mean). None is A ln π itself, whose
            gradient is the same at the first inner step and which nothing holds after it.
        penalties: Against drift; a moving average is what keeps it stable.
        kept: Rows that count.
    """
    gain = advantage.detach()
    log_ratio = _likelihood_gain(noised, v, weight, power)
    free = torch.expm1(log_ratio) * gain
    if clip is None:
        return _update(gain * log_ratio, None, noised, v, penalties, kept)
    low, high = clip.bounds(real_scalars(noised.x_t, noised.valid).clamp_min(1))
    held = torch.expm1(log_ratio.clamp(low, high)) * gain
    clipped = held.detach() < free.detach()
    return _update(gain + torch.minimum(free, held), clipped, noised, v, penalties, kept)


def advantage_flow(
    noised: Noised,
    v: Velocities,
    advantage: Float[Tensor, " row"],
    *,
    reference_weight: float = 1e-3,
    kept: Bool[Tensor, " row"] | None = None,
) -> ForwardUpdate:
    """AdvantageFlow with γ = 1 − A: −(1 + λ) mean |x̂₀ − centre|², centre = (A x₀ + γ x̂₀,old + λ x̂₀,ref) / (1 + λ).

    Args:
        noised: Samples with noise.
        v: Velocities; a reference is needed unless its weight is 0.
        advantage: A of each row, held within ±1 as published.
        reference_weight: λ.
        kept: Rows that count.
    """
    gain = along(advantage.detach().clamp(-1, 1), noised.x_t)
    # as steps from the old prediction, which are exactly 0 where nothing is to be learned
    old = _data(noised, v.old.detach())
    pull = gain * (noised.x_0 - old)
    if reference_weight:
        if v.reference is None:
            raise UsageError(
                f"the reference has the weight {reference_weight}, but no velocity",
                where="advantage_flow",
                hint="evaluate the frozen model too, or set reference_weight to 0",
            )
        pull = pull + reference_weight * (_data(noised, v.reference.detach()) - old)
    whole = 1 + reference_weight
    value = whole * mean_square(_data(noised, v.new) - old - pull / whole, noised.valid)
    return _update(-value, None, noised, v, Penalties(), kept)


OldPolicySchedule = Literal["on_policy", "ramp", "late_ramp"]
"""How slowly the old policy follows; see `old_policy_decay`."""


def old_policy_decay(update: int, schedule: OldPolicySchedule = "ramp") -> float:
    """DiffusionNFT's decay η of the old policy, θ_old ← η θ_old + (1 − η) θ, after so many updates.

    on_policy: 0. ramp: min(0.001 n, 0.5). late_ramp: 0 until 75, then 0.0075 a step up to 0.999.

    >>> old_policy_decay(200), old_policy_decay(2000), old_policy_decay(175, "late_ramp")
    (0.2, 0.5, 0.75)
    """
    if schedule == "on_policy":
        return 0.0
    if schedule == "ramp":
        return min(0.001 * update, 0.5)
    return min(0.0075 * max(0, update - 75), 0.999)


def _even_error(noised: Noised, velocity: Tensor) -> Tensor:
    """Squared error of predicted data over its own mean modulus, a constant."""
    miss = _data(noised, velocity) - noised.x_0
    return mean_square(miss, noised.valid) / mean_modulus(miss.detach(), noised.valid).clamp_min(
        LEAST_MODULUS
    )


def _data(noised: Noised, velocity: Tensor) -> Tensor:
    """x̂₀ = x_t − t v."""
    return noised.x_t - along(noised.t, noised.x_t) * velocity


def _likelihood_gain(noised: Noised, v: Velocities, weight: MatchingWeight, power: float) -> Tensor:
    """w_t(e_old) − w_t(e_θ), in double precision where a root is taken of nearly equal errors."""
    excess = excess_error(v.new, v.old, noised)
    if weight in ("uniform", "t", "t_squared"):
        return -excess * noised.t ** {"uniform": 0, "t": 1, "t_squared": 2}[weight]
    exponent = 0.5 if weight == "huber" else power
    scale = 1.0 if weight == "huber" else 1 / power
    old = matching_error(v.old.detach(), noised).double()
    new = (old + excess.double()).clamp_min(0)
    gain = (old + HUBER_FLOOR) ** exponent - (new + HUBER_FLOOR) ** exponent
    return (scale * noised.t * gain).to(excess.dtype)


def _update(
    value: Tensor,
    clipped: Tensor | None,
    noised: Noised,
    v: Velocities,
    penalties: Penalties,
    kept: Tensor | None,
) -> ForwardUpdate:
    """Mean over kept rows, less penalties, with the numbers to watch."""
    objective = mean_of(value, kept)
    for name, other, weight in (
        ("reference", v.reference, penalties.reference),
        ("average", v.average, penalties.average),
    ):
        if weight and other is None:
            raise UsageError(
                f"the penalty on the distance from the {name} is {weight}, but no such velocity was given",
                where="penalties",
                hint="evaluate it too, or set 0",
            )
        if weight and other is not None:
            objective = objective - weight * mean_of(mean_square(v.new - other.detach(), noised.valid), kept)
    with torch.no_grad():
        error = mean_of(matching_error(v.new, noised), kept)
        moved = mean_of(mean_square(v.new - v.old, noised.valid), kept)
        drift = torch.full_like(error, torch.nan)
        if v.reference is not None:
            drift = mean_of(mean_square(v.new - v.reference, noised.valid), kept)
        share = torch.zeros_like(error) if clipped is None else mean_of(clipped.to(error.dtype), kept)
    return ForwardUpdate(objective, error, moved, drift, share)
