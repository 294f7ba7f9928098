r"""MARS-Sep: a separator's masks as a policy, improved by rewards for what a listener asked for.

Zhang et al., "MARS-Sep: Multimodal-Aligned Reinforced Sound Separation", ICLR 2026 (arXiv:2510.10509), on OmniSep.

The algorithm::

    start from the supervised separator f, batch-norm statistics frozen
    for each step
        draw mixtures X = S + N and queries Q
        P = f(X, Q), one pass; pi_old = Beta(1 + kappa P, 1 + kappa (1 - P)) in every cell      -> Eq. (2)
        draw G masks M ~ pi_old of each mixture; sounds y = iSTFT(M X)
        R = reward(y, what was asked for)                                                       -> Eq. (5)
        A = advantage of R within the group
        for each inner epoch
            r = pi(M) / pi_old(M)
            maximise  min(r A, clip(r) A) + l_H H(pi) - l_KL KL(pi || pi_old)                   -> Eq. (4)
        the updated policy is the next pi_old

Symbols: X mixture, Q query, P proposal (the separator's mask, and the mode of the policy), M mask, y estimate,
R reward, A advantage, r density ratio, kappa concentration, G group.

Deviations, each a switch of :class:`Config`; ``recipes/mars_sep_paper.toml`` sets them all back:

1. G = 4 masks a mixture, compared with each other. The paper draws one and compares it with the batch, where its moving
   baseline cancels.
2. Exploration by tiles and in mirrored pairs instead of in 65,536 independent bins.
3. The objective is scaled by the number of coordinates n, so that at r = 1 its gradient is that of the expected reward
   in each form of the ratio; the paper does not say how a ratio over all bins is formed.
4. The supervised loss stays beside the reward as an anchor; the paper names none.
5. A guard stops or rolls back a run whose reward rises while the sound gets worse.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.batches import draw, query_vectors
from auralign.algorithms.guarded import export, go_back, reading, stops
from auralign.algorithms.mars_sep_config import Config, PolicyConfig
from auralign.algorithms.mars_sep_parts import Parts, reference_proposal, set_up
from auralign.algorithms.mask_policy import RollOut, draw_and_compare, policy_loss
from auralign.algorithms.pathwise import pathwise_loss
from auralign.algorithms.scenes import Decision, Items, first_decision, residual_decision
from auralign.algorithms.separator_pass import (
    Mixtures,
    separator_pass,
    supervised_terms,
    weighted_sum,
)
from auralign.algorithms.training import (
    TrainState,
    average_gradients,
    cosine_rate,
    write_samples,
)
from auralign.algorithms.watching import Watcher, mean_mask
from auralign.errors import AuralignError
from auralign.models.separator import SeparatorModel
from auralign.policy.beta_mask import kappa_at
from auralign.rewards.guard import Guard, Reading, Verdict
from auralign.runtime.distributed import World, world
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker

__all__ = ["Config", "PolicyConfig", "policy_loss", "roll_out", "train", "update"]

log = logging.getLogger(__name__)


def roll_out(
    cfg: Config, parts: Parts, model: SeparatorModel, decision: Decision, seed: tuple[int, int]
) -> RollOut:
    """Draw masks around the frozen proposal, listen to them, compare their rewards; no gradient."""
    step, micro = seed
    assert parts.rewards is not None
    return draw_and_compare(
        cfg.policy,
        parts.rewards,
        parts.baseline,
        decision.proposal,
        decision.energy,
        lambda mask: parts.scene(decision, decision.hear(model, mask)),
        torch.Generator(decision.energy.device).manual_seed(derive(cfg.seed, "mask", step, micro)),
        kappa_at(step, cfg.steps, knots=cfg.policy.kappa),
    )


def update(cfg: Config, parts: Parts, state: TrainState[SeparatorModel], here: World) -> dict[str, float]:
    """One draw of the policy and its inner epochs; batch-norm statistics stay as supervision left them."""
    model, optimiser = state.model.eval(), state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = cosine_rate(state.step, cfg.steps, cfg.warmup, cfg.rate)
    micros = list(here.share(cfg.accumulate))
    batches = [draw(cfg, parts.corpus, parts.banks, state.step, micro).to(model.device) for micro in micros]
    rolls: dict[int, RollOut] = {}
    sums: dict[str, float] = {}
    for _ in range(cfg.policy.inner_epochs):
        optimiser.zero_grad(set_to_none=True)
        sums = {}
        for micro, batch in zip(micros, batches, strict=True):
            noise = torch.Generator().manual_seed(derive(cfg.seed, "noise", state.step, micro))
            query = query_vectors(cfg, model, batch.raw, noise)
            loss, numbers = _loss(cfg, parts, model, batch, query, rolls, (state.step, micro))
            torch.autograd.backward(loss / cfg.accumulate)
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + value / cfg.accumulate
        average_gradients(model, here)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimiser.step()
        state.average.update(model)
    state.step += 1
    totals = {name: float(here.mean(torch.tensor(value))) * here.size for name, value in sums.items()}
    return {**totals, "gradient_norm": float(norm), "rate": optimiser.param_groups[0]["lr"]}


def _loss(
    cfg: Config,
    parts: Parts,
    model: SeparatorModel,
    batch: Mixtures,
    query: Tensor,
    rolls: dict[int, RollOut],
    seed: tuple[int, int],
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Anchor and policy of one micro-batch; the first inner epoch's pass also proposes the masks that are drawn."""
    p, (step, micro) = cfg.policy, seed
    out = separator_pass(model, batch.mixture, query, bfloat16=cfg.bfloat16)
    total, numbers = torch.zeros((), device=out.energy.device), {}
    if cfg.anchor > 0:
        terms = supervised_terms(model, out, batch)
        supervised = weighted_sum(terms, cfg.loss)
        total = total + cfg.anchor * supervised
        numbers = {name: float(value.detach()) for name, value in terms.items()}
        numbers["anchor"] = float(supervised.detach())
    if parts.rewards is not None:
        decision = first_decision(batch, Items.of(batch, p.asked), out)
        if p.refine and step % 2:
            decision = residual_decision(model, decision, query, bfloat16=cfg.bfloat16)
        numbers["mask"] = mean_mask(decision.proposal.detach(), decision.energy)
        if p.gradient == "pathwise":
            torch.manual_seed(derive(cfg.seed, "mask", step, micro))
            kappa = kappa_at(step, cfg.steps, knots=p.kappa)
            entropy = p.coefficients.entropy
            loss, more = pathwise_loss(
                model,
                decision,
                parts.rewards,
                parts.scene,
                group=p.group,
                kappa=kappa,
                entropy_weight=entropy,
            )
        else:
            if micro not in rolls:
                rolls[micro] = roll_out(cfg, parts, model, decision, seed)
            loss, more = policy_loss(
                p, rolls[micro], decision.proposal, reference_proposal(cfg, parts, decision)
            )
            more |= rolls[micro].numbers
        total = total + p.weight * loss
        numbers |= more
    return total, numbers | {"loss": float(total.detach())}


def train(cfg: Config, run: Run) -> None:
    """Train from the run's newest checkpoint, or from the supervised separator.

    Raises:
        AuralignError: The guard stopped the run; its best checkpoint and the model made of it are kept.
        UsageError: The micro-batches cannot be shared equally by the processes.
        KeyboardInterrupt: The run was asked to stop; its checkpoint is written.
    """
    with world() as here, GracefulStop() as stop:
        parts, state, watcher = set_up(cfg, here)
        guard = Guard(cfg.guard)
        state.more = {**state.more, "guard": guard}
        fresh = run.checkpoints.latest() is None
        state.restore(run)
        here.barrier()  # nobody writes before everybody has read
        verdict: Verdict | None = None
        stopping = False
        resumed = None if fresh else state.step
        with run.tracker(resumed_step=resumed) if here.is_first else nullcontext() as tracker:
            if fresh:
                verdict = _look(cfg, parts, state, watcher, guard, tracker, run)
            while state.step < cfg.steps and not stopping and not stops(verdict):
                began = time.monotonic()
                values = update(cfg, parts, state, here)
                values["seconds_per_step"] = time.monotonic() - began
                stopping = bool(here.mean(torch.tensor(float(stop.requested))) > 0)  # all leave together
                _record(cfg, state, tracker, values)
                verdict = guard.observe(reading(state.step, values))
                if verdict is None and (state.step % cfg.validate_every == 0 or state.step == cfg.steps):
                    verdict = _look(cfg, parts, state, watcher, guard, tracker, run)
                elif verdict is None and stopping and here.is_first:
                    state.save(run, None)
                if verdict is not None:
                    here.barrier()
                    go_back(run, state, verdict, tracker)
    if verdict is not None and verdict.action == "stop":
        export(run, state, here)
        raise AuralignError(
            "the guard stopped the run",
            where=str(run.path),
            why=str(verdict),
            hint="its model is the best checkpoint; change the rewards or lower policy.weight",
        )
    if state.step < cfg.steps:
        log.warning("stopped by %s after step %d; `auralign resume` goes on", stop.signal_name, state.step)
        raise KeyboardInterrupt
    export(run, state, here)


def _look(
    cfg: Config,
    parts: Parts,
    state: TrainState[SeparatorModel],
    watcher: Watcher,
    guard: Guard,
    tracker: Tracker | None,
    run: Run,
) -> Verdict | None:
    """Validation of the averaged weights, and what the guard says of it; every process sees the same."""
    scores = watcher(state.average.model)
    verdict = guard.observe(
        Reading(
            state.step,
            reward=scores.get("reward"),
            si_sdri=scores["si_sdri"],
            judge=scores.get("judge"),
            mean_mask=scores["mask"],
        )
    )
    if tracker is not None:
        tracker.log(state.step, {f"val/{name}": value for name, value in scores.items()})
        log.info("step %d: %s", state.step, {name: round(value, 3) for name, value in scores.items()})
        if verdict is None:
            write_samples(state.average.model, parts.corpus, cfg.seed, tracker, state.step)
            state.save(run, scores["si_sdri"])
    return verdict


def _record(
    cfg: Config, state: TrainState[SeparatorModel], tracker: Tracker | None, values: dict[str, float]
) -> None:
    """Every so often the numbers of a step."""
    if tracker is None or (state.step % 20 and state.step != 1):
        return
    tracker.log(
        state.step,
        {name if name == "seconds_per_step" else f"train/{name}": value for name, value in values.items()},
    )
    log.info("step %d of %d: %s", state.step, cfg.steps, {k: round(v, 4) for k, v in values.items()})
