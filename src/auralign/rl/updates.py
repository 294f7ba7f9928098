"""The updates of flow policies by name: what each is, where it comes from, and what a loop has to give it.

Four families. *Trajectory* updates need stochastic steps and their densities. *Forward-process* updates need clean
samples from any solver, and velocities of an old policy. *Preference* updates need pairs and a frozen reference.
*Selection* trains on chosen samples by plain flow matching.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, final

from auralign.errors import UsageError

Family = Literal["trajectory", "forward_process", "preference", "selection"]

Need = Literal["noisy_steps", "clean_samples", "old_velocity", "reference", "average", "pairs"]
"""noisy_steps: a rollout with kept transitions. clean_samples: the ends of trajectories only. old_velocity: of the
policy that drew. reference: the frozen base model. average: a moving average of the policy. pairs: better and worse."""


@final
@dataclass(frozen=True)
class UpdateSpec:
    """One update."""

    name: str
    """In recipes."""
    family: Family
    """Which functions and data it uses."""
    needs: frozenset[Need]
    """What the loop has to provide."""
    function: str
    """Where its equation is, under `auralign.rl`."""
    meaning: str
    """One line."""
    source: str
    """Paper or code."""


def _spec(name: str, family: Family, needs: tuple[Need, ...], function: str, *about: str) -> UpdateSpec:
    meaning, source = about
    return UpdateSpec(name, family, frozenset(needs), function, meaning, source)


UPDATES: Mapping[str, UpdateSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _spec(
                "flow_grpo",
                "trajectory",
                ("noisy_steps",),
                "flow_surrogate.surrogate",
                "clipped ratio of every stochastic step",
                "Flow-GRPO, arXiv:2505.05470",
            ),
            _spec(
                "guard",
                "trajectory",
                ("noisy_steps",),
                "flow_surrogate.surrogate",
                "the same with centred ratios and equal gradients at all steps",
                "GRPO-Guard, arXiv:2510.22319",
            ),
            _spec(
                "dppo",
                "trajectory",
                ("noisy_steps",),
                "flow_surrogate.surrogate",
                "no clip: a step that is too far by its exact divergence may only come back",
                "Flow-DPPO, arXiv:2606.11025",
            ),
            _spec(
                "gspo",
                "trajectory",
                ("noisy_steps",),
                "flow_surrogate.surrogate",
                "one ratio and one clip for a whole trajectory",
                "GSPO, arXiv:2507.18071",
            ),
            _spec(
                "nft",
                "forward_process",
                ("clean_samples", "old_velocity", "reference"),
                "forward_process.nft",
                "good samples attract and bad ones repel through two implicit policies",
                "DiffusionNFT, arXiv:2509.16117",
            ),
            _spec(
                "awm",
                "forward_process",
                ("clean_samples", "old_velocity", "average"),
                "forward_process.awm",
                "flow matching weighted by the advantage, with clip and moving average",
                "AWM, arXiv:2509.25050",
            ),
            _spec(
                "advantage_flow",
                "forward_process",
                ("clean_samples", "old_velocity", "reference"),
                "forward_process.advantage_flow",
                "samples, old and reference policy pull as one square",
                "AdvantageFlow, arXiv:2605.26013",
            ),
            _spec(
                "dpo",
                "preference",
                ("clean_samples", "reference", "pairs"),
                "preference.diffusion_dpo",
                "best against worst of each group, relative to a reference",
                "Diffusion-DPO, arXiv:2311.12908",
            ),
            _spec(
                "crpo",
                "preference",
                ("clean_samples", "reference", "pairs"),
                "preference.crpo",
                "the same, and the winner is matched too",
                "TangoFlux, arXiv:2412.21037",
            ),
            _spec(
                "best_of_n",
                "selection",
                ("clean_samples",),
                "selection.reward_filter",
                "the best member of each group is matched",
                "RAFT, arXiv:2304.06767",
            ),
            _spec(
                "sft",
                "selection",
                ("clean_samples",),
                "selection.reward_filter",
                "all members well above their group are matched: the control",
                "reward-filtered fine-tuning",
            ),
        )
    }
)
"""All updates, in the order of the families."""


def find_update(name: str) -> UpdateSpec:
    """The update of that name.

    >>> find_update("guard").family
    'trajectory'
    """
    if name not in UPDATES:
        raise UsageError(
            f"there is no update called {name!r}", where="update", hint=f"use one of {', '.join(UPDATES)}"
        )
    return UPDATES[name]
