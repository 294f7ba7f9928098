r"""Several rewards as one: weighted, each on its own scale, each logged by name.

.. math:: R = \sum_k w_k \frac{r_k - \mu_k}{\sigma_k}

Symbols: reward :math:`r_k`, weight :math:`w_k`, running mean :math:`\mu_k` and spread :math:`\sigma_k` (0 and 1
where a term is not normalised).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.rewards.base import Reward, Scene

Normalise = Literal["none", "running", "group"]
Unscorable = Literal["leave", "skip"]


@dataclass(frozen=True)
class Term:
    """One reward of a composite.

    Attributes:
        name: Its name in logs.
        reward: What scores a scene.
        weight: Its share; below 0 punishes, and 0 only logs (then the run was *not* trained on it).
        normalise: ``none``; ``running``: less the mean, over the standard deviation of all rewards seen so far;
            ``group``: over their standard deviation within groups, the only part that a group-relative
            advantage sees.
        unscorable: A member that this term gives nan: ``leave`` makes its total nan, so that it leaves the group;
            ``skip`` takes the mean of its group instead, so that this term neither favours nor punishes it.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    normalise: Normalise = "none"
    unscorable: Unscorable = "leave"

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("a reward term needs a name")
        if not math.isfinite(self.weight):
            raise UsageError(f"the weight is {self.weight}; it must be finite", where=f"reward {self.name!r}")

    @property
    def trained_on(self) -> bool:
        """Whether the policy was trained to raise it."""
        return self.weight != 0


@dataclass(frozen=True, eq=False)
class Scored:
    """What a composite says about a scene.

    Attributes:
        total: Weighted sum; what advantages are made of.
        parts: Every term as its reward gave it, by name; what is logged, and what a guard should be told.
    """

    total: Float[Tensor, "batch group"]
    parts: Mapping[str, Float[Tensor, "batch group"]]

    def means(self) -> dict[str, float]:
        """Mean of each term over its scorable members, nan if there are none."""
        return {name: float(part.detach().nanmean()) for name, part in self.parts.items()}


@final
class RunningScale:
    """Mean and variance of all rewards seen, within and between groups, without keeping them.

    Chan et al. 1983 merge a batch into the sums. Beyond ``memory`` rewards the past is scaled down, so that the
    statistics follow a reward that drifts.

    Args:
        memory: How many rewards the past counts for at most.

    >>> scale = RunningScale()
    >>> scale.update(torch.tensor([[1.0, 3.0], [5.0, torch.nan]]))
    >>> scale.mean, round(scale.std**2, 3), round(scale.group_std**2, 3)
    (3.0, 2.667, 2.0)
    """

    def __init__(self, memory: int = 50_000) -> None:
        self.memory = memory
        self._values = {name: 0.0 for name in ("count", "mean", "squares", "group_count", "group_squares")}

    @property
    def mean(self) -> float:
        """Mean reward; 0 before the first."""
        return self._values["mean"]

    @property
    def std(self) -> float:
        """Standard deviation over all rewards; 1 while there is none to speak of."""
        return _root(self._values["squares"], self._values["count"])

    @property
    def group_std(self) -> float:
        """Standard deviation within groups (each about its own mean); 1 while there is none to speak of."""
        return _root(self._values["group_squares"], self._values["group_count"])

    def update(self, reward: Float[Tensor, "batch group"]) -> None:
        """Take more rewards into account; nan is left out."""
        rows = reward.detach().double().cpu()
        seen = rows[rows.isfinite()]
        if not len(seen):
            return
        v = self._values
        for prefix in ("", "group_"):
            shrink = min(1.0, self.memory / max(1.0, v[prefix + "count"]))
            v[prefix + "count"] *= shrink
            v[prefix + "squares"] *= shrink
        count, mean = len(seen), float(seen.mean())
        total, apart = v["count"] + count, mean - v["mean"]
        v["squares"] += float((seen - mean).square().sum()) + apart**2 * v["count"] * count / total
        v["mean"] += apart * count / total
        v["count"] = total
        members = rows.isfinite().sum(dim=1)
        v["group_squares"] += float((rows - rows.nanmean(dim=1, keepdim=True)).square().nansum())
        # m members have m - 1 degrees of freedom about their mean
        v["group_count"] += float((members - 1).clamp(min=0).sum())

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return dict(self._values)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """From the checkpoint."""
        if set(state) != set(self._values):
            raise UsageError("this is not the state of a running scale", why=f"it has {sorted(state)}")
        self._values = {name: float(value) for name, value in state.items()}


def _root(squares: float, count: float) -> float:
    std = math.sqrt(squares / count) if count > 0 else 0.0
    return std if std > 1e-6 else 1.0  # a constant reward has no scale: divide by nothing


@final
class Composite:
    """A weighted sum of rewards; itself a reward.

    ``learn`` scores a training scene and takes it into the running statistics; ``score`` and a plain call leave
    them as they are, for validation.

    Args:
        terms: The rewards, each under its own name.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        names = [term.name for term in terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"two reward terms are called {twice[0]!r}", hint="give each its own name")
        if not any(term.trained_on for term in terms):
            raise UsageError("no reward term has a weight", hint="give at least one a weight other than 0")
        self.terms = tuple(terms)
        self._scales = {term.name: RunningScale() for term in terms if term.normalise != "none"}

    @property
    def trained_on(self) -> dict[str, bool]:
        """Of each term, whether the policy was trained on it."""
        return {term.name: term.trained_on for term in self.terms}

    @property
    def trained_metrics(self) -> tuple[str, ...]:
        """Metrics that the terms with a weight train on, as their rewards declare them in ``metrics``."""
        rewards = [term.reward for term in self.terms if term.trained_on]
        return tuple(sorted({str(name) for reward in rewards for name in getattr(reward, "metrics", ())}))

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """The weighted sum by the statistics as they are."""
        return self.score(scene).total

    def score(self, scene: Scene) -> Scored:
        """Total and parts by the statistics as they are."""
        return self.combine({term.name: term.reward(scene) for term in self.terms})

    def learn(self, scene: Scene) -> Scored:
        """Total and parts, with this scene in the statistics."""
        return self.learn_parts({term.name: term.reward(scene) for term in self.terms})

    def learn_parts(self, parts: Mapping[str, Float[Tensor, "batch group"]]) -> Scored:
        """The same of parts that are already scored, by workers for instance."""
        for name, scale in self._scales.items():
            scale.update(parts[name])
        return self.combine(parts)

    def combine(self, parts: Mapping[str, Float[Tensor, "batch group"]]) -> Scored:
        """Total of parts that are already scored."""
        total = None
        nothing = torch.ones_like(parts[self.terms[0].name], dtype=torch.bool)
        for term in self.terms:
            if not term.trained_on:
                continue
            value = parts[term.name]
            nothing = nothing & value.isnan()
            if term.unscorable == "skip":
                value = _group_mean_for_nan(value)
            scale = self._scales.get(term.name)
            if scale is not None:
                std = scale.group_std if term.normalise == "group" else scale.std
                value = (value - scale.mean) / std
            if term.unscorable == "skip":
                value = value.nan_to_num(nan=0.0)  # a whole group that the term cannot score
            total = term.weight * value if total is None else total + term.weight * value
        assert total is not None  # the constructor saw a weight
        return Scored(torch.where(nothing, torch.nan, total), dict(parts))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {name: scale.state_dict() for name, scale in self._scales.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint of a run with the same normalised terms."""
        if set(state) != set(self._scales):
            raise UsageError(
                "the checkpoint is of other rewards",
                why=f"it normalises {sorted(state)}, the recipe {sorted(self._scales)}",
                hint="resume with the recipe that the run began with",
            )
        for name, scale in self._scales.items():
            scale.load_state_dict(state[name])


def _group_mean_for_nan(value: Float[Tensor, "batch group"]) -> Float[Tensor, "batch group"]:
    """Members that cannot be scored take the mean of their group."""
    mean = value.detach().nanmean(dim=1, keepdim=True).expand_as(value)
    return torch.where(value.isnan(), mean, value)
