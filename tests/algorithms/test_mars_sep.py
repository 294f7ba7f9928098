from __future__ import annotations

import copy
import dataclasses
import sys
import types
from pathlib import Path

import pytest
import scipy.special
import torch

from auralign.algorithms import mars_sep, mars_sep_parts
from auralign.algorithms.batches import draw, query_vectors
from auralign.algorithms.mars_sep import Config, PolicyConfig, policy_loss, roll_out, update
from auralign.algorithms.mars_sep_parts import reference_proposal, set_up
from auralign.algorithms.scenes import Decision, Items, first_decision, residual_decision
from auralign.algorithms.separator_pass import separator_pass, supervised_terms, weighted_sum
from auralign.algorithms.training import cosine_rate, decay_groups
from auralign.data.mixer import MixConfig
from auralign.errors import UsageError
from auralign.policy.beta_mask import pool_tiles
from auralign.policy.exploration import Exploration
from auralign.rewards.load import RewardConfig
from auralign.rewards.signal import FidelityReward
from auralign.rl.surrogate import Coefficients
from auralign.runtime import config as configuration
from auralign.runtime.distributed import World
from auralign.runtime.seed import derive

RECIPES = Path(__file__).parents[2] / "recipes"
RATIOS = ("joint", "mean_log", "per_bin")
NOTHING = Coefficients(entropy=0.0, kl_old=0.0)
BIN = {"form": "bin"}

pytestmark = pytest.mark.usefixtures("tiny_watcher")


def a_batch(cfg: Config, *, leaf: bool = False):
    """Parts, state and the first decision of step 0; with ``leaf`` its logits have no network behind them."""
    parts, state, _ = set_up(cfg, World())
    batch = draw(cfg, parts.corpus, parts.banks, 0, 0)
    noise = torch.Generator().manual_seed(derive(cfg.seed, "noise", 0, 0))
    query = query_vectors(cfg, state.model, batch.raw, noise)
    out = separator_pass(state.model, batch.mixture, query, bfloat16=cfg.bfloat16)
    if leaf:
        shaken = torch.randn(out.logits.shape, generator=torch.Generator().manual_seed(9))
        out = dataclasses.replace(out, logits=(out.logits.detach() * 0.1 + shaken).requires_grad_())
    return parts, state, out, first_decision(batch, Items.of(batch, cfg.policy.asked), out)


def weights_of(state) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.model.state_dict().items()}


def changed(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture
def toy(monkeypatch):
    """Makes a function the reward ``toy.reward``."""

    def install(function):
        monkeypatch.setitem(sys.modules, "toy", types.SimpleNamespace(reward=function))
        return (RewardConfig("toy.reward"),)

    return install


# the ratio and its gradient


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["bin", "tile"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_first_inner_step_has_a_ratio_of_exactly_one(mars_config, ratio, form, precision):
    cfg = mars_config(policy={"ratio": ratio}, explore={"form": form}, precision=precision, batch=1)
    parts, state, _ = set_up(cfg, World())
    numbers = update(cfg, parts, state, World())
    assert numbers["ratio"] == pytest.approx(1.0, abs=1e-6)  # a mean whose shares are rounded
    assert numbers["clip_share"] == 0
    assert numbers["approx_kl"] == 0, "each single ratio is 1"
    assert numbers["kl_old"] == 0


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_second_inner_step_has_moved_away_from_the_snapshot(mars_config, ratio):
    policy = {"ratio": ratio, "inner_epochs": 2, "weight": 10.0}
    cfg = mars_config(policy=policy, rate=1e-2, warmup=1, anchor=0.0)
    parts, state, _ = set_up(cfg, World())
    numbers = update(cfg, parts, state, World())
    assert numbers["kl_old"] > 1e-7
    assert numbers["approx_kl"] > 0
    assert numbers["ratio"] != 1
    if ratio == "joint":
        assert numbers["clip_share"] > 0, "thousands of small moves add up"


def independent_gradient(cfg: Config, decision: Decision, roll, logits: torch.Tensor) -> torch.Tensor:
    """Of - sum A sum_i n w_i ln Beta(M_i) / count, by float64 gamma functions written out here."""
    how, drawn = cfg.policy.explore, roll.drawn
    leaf = logits.detach().double().requires_grad_()
    proposal = torch.sigmoid(decision.items.pick(leaf))
    energy = decision.energy.double()
    if how.form == "tile":
        proposal = pool_tiles(proposal, how.tile, energy)
    weight = torch.ones_like(proposal)
    if how.emphasis:
        relative = energy / energy.mean((1, 2), keepdim=True)
        pooled = pool_tiles(relative, how.tile) if how.form == "tile" else relative
        weight = pooled.clamp_min(1e-6) ** how.emphasis
    share = weight / weight.sum((1, 2), keepdim=True)
    kappa, mask = drawn.old.kappa, drawn.action.double()
    p = proposal.detach().numpy()
    psi = scipy.special.digamma(1 + kappa * p) - scipy.special.digamma(1 + kappa * (1 - p))
    score = kappa * (torch.logit(mask) - torch.from_numpy(psi)[:, None])
    kept = roll.advantage.kept.double()
    gain = roll.advantage.value.double() * kept / kept.sum()
    slope = -(gain[:, :, None, None] * score).sum(1) * share * drawn.coordinates
    (gradient,) = torch.autograd.grad(proposal, leaf, slope)
    return gradient


@pytest.mark.parametrize("explore", [BIN, {}, {"emphasis": 0.0}], ids=["bin", "tile", "alike"])
def test_at_ratio_one_every_form_has_the_gradient_of_the_expected_reward(mars_config, explore):
    for ratio in RATIOS:
        policy = {"ratio": ratio, "coefficients": NOTHING}
        cfg = mars_config(policy=policy, explore=explore)
        parts, state, out, decision = a_batch(cfg, leaf=True)
        roll = roll_out(cfg, parts, state.model, decision, (0, 0))
        assert roll.advantage.value.abs().max() > 0.01
        loss, _ = policy_loss(cfg.policy, roll, decision.proposal)
        (found,) = torch.autograd.grad(loss, out.logits)
        expected = independent_gradient(cfg, decision, roll, out.logits)
        assert float((found - expected).norm() / expected.norm()) < 1e-4, ratio


def test_the_loss_is_minus_the_objective_with_its_regularisers(mars_config):
    coefficients = Coefficients(entropy=0.3, kl_old=0.2, kl_reference=0.7)
    cfg = mars_config(policy={"coefficients": coefficients})
    parts, state, _, decision = a_batch(cfg, leaf=True)
    roll = roll_out(cfg, parts, state.model, decision, (0, 0))
    fixed = decision.proposal.detach() * 0.5
    loss, numbers = policy_loss(cfg.policy, roll, decision.proposal, fixed)
    how = cfg.policy.explore
    policy, reference = (how.policy(p, decision.energy) for p in (decision.proposal, fixed))
    share = how.weight(decision.energy)
    share = share / share.sum((1, 2), keepdim=True)
    entropy = (policy.entropy() * share).sum((1, 2)).mean()
    divergence = (policy.kl(reference) * share).sum((1, 2)).mean()
    reward = (roll.advantage.value * roll.advantage.kept).sum() / roll.advantage.kept.sum()
    expected = -(roll.drawn.coordinates * reward + 0.3 * entropy - 0.7 * divergence)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-3)
    assert numbers["entropy"] == pytest.approx(float(entropy.detach()), rel=1e-3)


def test_only_the_asked_audible_sources_logits_get_a_gradient_from_the_reward(mars_config):
    cfg = mars_config(policy={"coefficients": NOTHING, "asked": 1})
    parts, state, out, decision = a_batch(cfg, leaf=True)
    roll = roll_out(cfg, parts, state.model, decision, (0, 0))
    policy_loss(cfg.policy, roll, decision.proposal)[0].backward()
    touched = out.logits.grad.abs().sum((2, 3)) > 0
    assert touched[:, 0].all()
    assert not touched[:, 1:].any()


# roll-outs


def test_masks_and_rewards_follow_from_seed_step_and_micro_batch_alone(mars_config):
    cfg = mars_config()
    parts, state, _, decision = a_batch(cfg)
    one = roll_out(cfg, parts, state.model, decision, (3, 1))
    torch.manual_seed(99)
    again = roll_out(cfg, parts, state.model, decision, (3, 1))
    assert torch.equal(again.drawn.mask, one.drawn.mask)
    assert torch.equal(again.advantage.value, one.advantage.value)
    for other_cfg, seed in ((cfg, (4, 1)), (cfg, (3, 0)), (dataclasses.replace(cfg, seed=1), (3, 1))):
        other = roll_out(other_cfg, parts, state.model, decision, seed)
        assert not torch.equal(other.drawn.mask, one.drawn.mask)


def test_the_advantage_compares_the_rewards_of_what_the_drawn_masks_let_through(mars_config):
    cfg = mars_config()
    parts, state, _, decision = a_batch(cfg)
    roll = roll_out(cfg, parts, state.model, decision, (0, 0))
    reward = FidelityReward()(parts.scene(decision, decision.hear(state.model, roll.drawn.mask)))
    for i in range(4):  # antithetic: a member is compared with the other pair
        others = [k for k in range(4) if k // 2 != i // 2]
        expected = reward[:, i] - reward[:, others].mean(1)
        torch.testing.assert_close(roll.advantage.value[:, i], expected)
    assert roll.numbers["reward/fidelity"] == pytest.approx(float(reward.mean()))
    assert roll.numbers["reward/total"] == pytest.approx(float(reward.mean()))
    spread = reward.std(1, correction=0).mean()
    assert roll.numbers["reward/spread"] == pytest.approx(float(spread), rel=1e-4)


def test_the_published_advantage_does_not_depend_on_the_moving_baseline(mars_config):
    cfg = mars_config(
        policy={"group": 1, "advantage": "published"}, explore={**BIN, "pairing": "independent"}, batch=4
    )
    parts, state, _, decision = a_batch(cfg)
    found = []
    for baseline in (None, -3.0, 5.0):
        parts.baseline.value = baseline
        found.append(roll_out(cfg, parts, state.model, decision, (0, 0)))
        mean = found[-1].numbers["reward/total"]
        expected = mean if baseline is None else 0.92 * baseline + 0.08 * mean
        assert parts.baseline.value == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(found[-1].advantage.value, found[0].advantage.value, atol=1e-4, rtol=1e-4)
    assert float(found[0].advantage.value.mean()) == pytest.approx(0, abs=1e-5)
    assert float(found[0].advantage.value.std(correction=0)) == pytest.approx(1, abs=1e-2)


def test_concentration_follows_its_schedule(mars_config):
    cfg = mars_config(policy={"kappa": (5.0, 20.0)}, steps=4)
    parts, state, _, decision = a_batch(cfg)
    seen = [roll_out(cfg, parts, state.model, decision, (step, 0)) for step in (0, 3)]
    assert [roll.numbers["kappa"] for roll in seen] == [5.0, 20.0]
    assert [roll.drawn.old.kappa for roll in seen] == [5.0, 20.0]


def test_members_without_a_reward_leave_their_group_and_the_gradient(mars_config, toy):
    def some(scene):
        value = FidelityReward()(scene)
        value[0, 1] = torch.nan
        return value

    cfg = mars_config(policy={"coefficients": NOTHING}, rewards=toy(some))
    parts, state, out, decision = a_batch(cfg, leaf=True)
    roll = roll_out(cfg, parts, state.model, decision, (0, 0))
    assert roll.advantage.kept.logical_not().nonzero().tolist() == [[0, 1]]
    items, group = roll.advantage.kept.shape
    assert roll.numbers["unscored_share"] == pytest.approx(1 / (items * group))
    (one,) = torch.autograd.grad(
        policy_loss(cfg.policy, roll, decision.proposal)[0], out.logits, retain_graph=True
    )
    mean = independent_gradient(cfg, decision, roll, out.logits)
    assert float((one - mean).norm() / mean.norm()) < 1e-4, "a mean over those that stay"
    action = roll.drawn.action.clone()
    action[0, 1] = 1 - action[0, 1]
    moved = dataclasses.replace(roll, drawn=dataclasses.replace(roll.drawn, action=action))
    with torch.no_grad():
        moved = dataclasses.replace(moved, old_log_prob=moved.drawn.old_log_prob())
    (other,) = torch.autograd.grad(policy_loss(cfg.policy, moved, decision.proposal)[0], out.logits)
    torch.testing.assert_close(other, one)


# one step


def test_a_step_makes_one_pass_of_the_network_however_many_masks_are_drawn(mars_config, toy, monkeypatch):
    passes, heard = [], []

    def counted(*args, **kwargs):
        passes.append(1)
        return separator_pass(*args, **kwargs)

    def reward(scene):
        heard.append(tuple(scene.estimate.shape))
        return FidelityReward()(scene)

    monkeypatch.setattr(mars_sep, "separator_pass", counted)
    for group, accumulate, inner in ((2, 1, 1), (8, 1, 1), (4, 2, 1), (4, 1, 2)):
        passes.clear()
        heard.clear()
        cfg = mars_config(
            policy={"group": group, "inner_epochs": inner, "asked": 1},
            explore={"pairing": "independent"},
            accumulate=accumulate,
            rewards=toy(reward),
        )
        parts, state, _ = set_up(cfg, World())
        update(cfg, parts, state, World())
        assert len(passes) == accumulate * inner
        assert heard == [(2, group, 4096)] * accumulate, "inner epochs use the same sounds again"


def test_batch_norm_statistics_stay_as_supervision_left_them(mars_config):
    cfg = mars_config(rate=1e-2)
    parts, state, _ = set_up(cfg, World())
    before = weights_of(state)
    for _ in range(2):
        update(cfg, parts, state, World())
    moved = changed(before, weights_of(state))
    running = [name for name in before if "running" in name or "num_batches" in name]
    assert running
    assert not set(moved) & set(running)
    assert any("sound_net" in name for name in moved)
    assert not state.model.training
    kept = state.average.model.state_dict()
    assert all(torch.equal(kept[name], before[name]) for name in running)


def test_without_a_policy_a_step_is_plain_supervised_adamw_in_evaluation_mode(mars_config):
    cfg = mars_config(policy={"weight": 0.0}, rewards=(), anchor=0.7, accumulate=2)
    parts, state, _ = set_up(cfg, World())
    assert parts.rewards is None
    plain = copy.deepcopy(state.model).eval()
    optimiser = torch.optim.AdamW(decay_groups(plain, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
    for step in range(2):
        numbers = update(cfg, parts, state, World())
        rate = cosine_rate(step, cfg.steps, cfg.warmup, cfg.rate)
        optimiser.zero_grad(set_to_none=True)
        losses = []
        for micro in range(2):
            batch = draw(cfg, parts.corpus, parts.banks, step, micro)
            noise = torch.Generator().manual_seed(derive(cfg.seed, "noise", step, micro))
            out = separator_pass(plain, batch.mixture, query_vectors(cfg, plain, batch.raw, noise))
            losses.append(0.7 * weighted_sum(supervised_terms(plain, out, batch), cfg.loss))
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), cfg.clip)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        assert numbers["loss"] == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-5)
        assert numbers["rate"] == rate
    for (name, mine), theirs in zip(state.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4, msg=name)
    assert state.step == state.average.count == 2


def test_the_control_trains_on_the_mixtures_and_queries_of_the_policy(mars_config, monkeypatch):
    seen = []

    def kept(model, mixture, query, **more):
        seen.append((mixture, query.detach()))
        return separator_pass(model, mixture, query, **more)

    monkeypatch.setattr(mars_sep, "separator_pass", kept)
    for changes in ({}, {"policy": {"weight": 0.0}, "rewards": ()}):
        cfg = mars_config(**changes)
        parts, state, _ = set_up(cfg, World())
        update(cfg, parts, state, World())
    (mixture, query), (same, again) = seen
    assert torch.equal(mixture, same)
    assert torch.equal(query, again)


def test_a_batch_that_no_reward_can_score_still_learns_from_the_anchor_alone(mars_config, toy):
    nothing = toy(lambda scene: torch.full(scene.estimate.shape[:2], torch.nan))
    found = []
    for changes in (
        {"policy": {"coefficients": NOTHING}, "rewards": nothing},
        {"policy": {"weight": 0.0}, "rewards": ()},
    ):
        cfg = mars_config(**changes)
        parts, state, _ = set_up(cfg, World())
        before = weights_of(state)
        numbers = update(cfg, parts, state, World())
        found.append(weights_of(state))
        assert changed(before, found[-1])
        assert numbers["loss"] == pytest.approx(numbers["anchor"])
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)


@pytest.mark.parametrize("advantage", ["leave_one_out", "group", "published"])
def test_every_advantage_survives_a_batch_without_rewards(mars_config, toy, advantage):
    nothing = toy(lambda scene: torch.full(scene.estimate.shape[:2], torch.nan))
    cfg = mars_config(policy={"advantage": advantage}, rewards=nothing, anchor=0.0)
    parts, state, _ = set_up(cfg, World())
    numbers = update(cfg, parts, state, World())
    assert numbers["unscored_share"] == 1
    assert all(value.isfinite().all() for value in weights_of(state).values())


def test_anchor_and_policy_add_up_by_their_weights(mars_config):
    numbers = {}
    for anchor, weight in ((1.0, 0.0), (0.0, 1.0), (0.5, 3.0)):
        cfg = mars_config(anchor=anchor, policy={"weight": weight})
        parts, state, _ = set_up(cfg, World())
        numbers[anchor, weight] = update(cfg, parts, state, World())["loss"]
    expected = 0.5 * numbers[1.0, 0.0] + 3 * numbers[0.0, 1.0]
    assert numbers[0.5, 3.0] == pytest.approx(expected, rel=1e-4)


def test_a_pathwise_step_follows_from_the_seed_alone(mars_config):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        cfg = mars_config(policy={"gradient": "pathwise", "group": 2}, anchor=0.0)
        parts, state, _ = set_up(cfg, World())
        before = weights_of(state)
        update(cfg, parts, state, World())
        found.append(weights_of(state))
    assert changed(before, found[0])
    assert not changed(*found)


# the reference, and what was left over


def test_the_reference_stays_the_separator_that_the_run_started_from(mars_config):
    coefficients = Coefficients(kl_reference=0.1)
    cfg = mars_config(policy={"coefficients": coefficients}, query_noise=0.0, rate=1e-2, warmup=1)
    parts, state, _, decision = a_batch(cfg)
    torch.testing.assert_close(reference_proposal(cfg, parts, decision), decision.proposal.detach())
    update(cfg, parts, state, World())
    assert not any(p.requires_grad for p in parts.reference.parameters())
    torch.testing.assert_close(reference_proposal(cfg, parts, decision), decision.proposal.detach())
    assert reference_proposal(mars_config(), set_up(mars_config(), World())[0], decision) is None


def test_the_reference_hears_the_same_leftover_as_the_policy(mars_config):
    coefficients = Coefficients(kl_reference=0.1)
    cfg = mars_config(policy={"coefficients": coefficients, "refine": True}, query_noise=0.0)
    parts, state, _, first = a_batch(cfg)
    query = first.batch.raw.embed(parts.reference.heads, unit=False)
    second = residual_decision(state.model, first, query, bfloat16=False)
    found = second.before * 0.3  # as if the policy had moved away and found less
    left = first.batch.mixture[first.items.mixture] - found
    out = separator_pass(parts.reference, left, first.items.pick(query)[:, None])
    moved = dataclasses.replace(second, before=found, energy=out.energy, spec=out.spec)
    expected = torch.sigmoid(out.logits[:, 0])
    torch.testing.assert_close(reference_proposal(cfg, parts, moved), expected, atol=1e-5, rtol=1e-4)


def test_refining_decides_on_the_leftover_every_other_step_and_rewards_the_final_sound(
    mars_config, toy, monkeypatch
):
    heard = []

    def reward(scene):
        heard.append(scene)
        return FidelityReward()(scene)

    seconds = []

    def kept(*args, **kwargs):
        seconds.append(residual_decision(*args, **kwargs))
        return seconds[-1]

    monkeypatch.setattr(mars_sep, "residual_decision", kept)
    cfg = mars_config(policy={"refine": True}, rewards=toy(reward))
    parts, state, _ = set_up(cfg, World())
    update(cfg, parts, state, World())
    assert not seconds
    update(cfg, parts, state, World())
    (second,) = seconds
    assert heard[1].estimate.shape == (len(second.before), 4, 4096)
    found = heard[1].estimate - second.before[:, None]
    assert found.abs().amax((1, 2)).min() > 0
    assert (found.square().sum() < (heard[1].mixture - second.before).square().sum() * 4).item()


# configurations


@pytest.mark.parametrize(
    ("policy", "explore", "changes", "message"),
    [
        ({"group": 1}, {"pairing": "independent"}, {}, "a group of 1 has no other member"),
        ({"group": 2}, {"pairing": "antithetic"}, {}, "a group of 2 has no other member"),
        ({"group": 5}, {"pairing": "antithetic"}, {}, "a group of 5 is not made of mirrored pairs"),
        ({"group": 1, "advantage": "group"}, {"pairing": "independent"}, {}, "a group of 1 has no other"),
        ({"group": 0, "advantage": "published"}, {"pairing": "independent"}, {}, "a group of 0"),
        ({}, {}, {"ema": 1.0}, "ema is 1.0"),
        ({}, {}, {"mix": MixConfig(samples=5000)}, "mix.samples is 5000"),
        ({"weight": 0.0}, {}, {"anchor": 0.0}, "one of them above 0"),
        ({"weight": -1.0}, {}, {}, "must be 0 or more"),
        ({}, {}, {"anchor": -1.0}, "must be 0 or more"),
        ({"inner_epochs": 0}, {}, {}, "inner_epochs must be at least 1"),
        ({"asked": 3}, {}, {}, "asked 1 or 2"),
        ({}, {}, {"batch": 0}, "batch is 0"),
        ({}, {}, {"steps": -1}, "steps is -1"),
    ],
)
def test_impossible_configurations_name_the_value(policy, explore, changes, message):
    with pytest.raises(ValueError, match=message):
        Config(policy=PolicyConfig(**policy, explore=Exploration(**explore)), **changes)


def test_a_group_of_two_independent_masks_can_be_compared(mars_config):
    assert mars_config(policy={"group": 2}, explore={"pairing": "independent"}).policy.drawn_together == 1
    assert mars_config(policy={"group": 1, "gradient": "pathwise"}), "gradients need nothing to compare with"


@pytest.mark.parametrize(
    ("path", "hint"), [("fidelty", "fidelity"), ("no_such_module.reward", "no_such_module")]
)
def test_an_unknown_reward_is_an_error_before_anything_is_trained(mars_config, path, hint):
    with pytest.raises(UsageError, match=hint):
        set_up(mars_config(rewards=(RewardConfig(path),)), World())


def test_a_policy_without_rewards_is_an_error(mars_config):
    with pytest.raises(UsageError, match="no reward"):
        set_up(mars_config(rewards=()), World())


def test_running_scales_of_rewards_are_refused_in_several_processes(mars_config):
    cfg = mars_config(rewards=(RewardConfig("fidelity", normalise="running"),), accumulate=2)
    with pytest.raises(UsageError, match="would differ between processes"):
        set_up(cfg, World(0, 2, 0))
    with pytest.raises(UsageError, match="accumulate is 3 for 2 processes"):
        mars_sep_parts.set_up(mars_config(accumulate=3), World(0, 2, 0))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("mars_sep_*.toml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_being_written_out(path):
    cfg = configuration.load(path, Config)
    assert configuration.algorithm_of(path) == "mars_sep"
    assert configuration.loads(configuration.dump(cfg), Config) == cfg


def test_the_paper_recipe_sets_every_deviation_back():
    cfg = configuration.load(RECIPES / "mars_sep_paper.toml", Config)
    policy = cfg.policy
    assert (policy.group, policy.advantage, policy.inner_epochs, policy.kappa) == (1, "published", 1, (9.0,))
    assert (policy.explore.form, policy.explore.pairing, policy.explore.emphasis) == (
        "bin",
        "independent",
        0.0,
    )
    assert (cfg.anchor, policy.clip, policy.coefficients) == (0.0, 0.2, Coefficients(0.1, 0.01, 0.0))


def test_the_control_recipe_differs_from_the_small_one_only_in_the_policy_and_its_rewards():
    small, control = (
        configuration.to_dict(configuration.load(RECIPES / f"mars_sep_{name}.toml", Config))
        for name in ("small", "control")
    )
    assert {key for key in small if small[key] != control[key]} == {"policy", "rewards"}
    assert control["policy"]["weight"] == 0
