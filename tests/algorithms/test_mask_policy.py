"""One decision of a mask policy without any separator behind it, and what a loop does when its guard speaks."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Beta

from auralign.algorithms.guarded import export, go_back, reading, stops
from auralign.algorithms.mars_sep_config import Config, PolicyConfig
from auralign.algorithms.mask_policy import draw_and_compare, policy_loss
from auralign.algorithms.training import TrainState
from auralign.errors import AuralignError
from auralign.policy.exploration import Exploration
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite, Term
from auralign.rewards.guard import Guard, GuardConfig, Reading, Verdict
from auralign.rl.advantage import Baseline
from auralign.rl.surrogate import Coefficients
from auralign.runtime.distributed import World
from auralign.runtime.run import Run
from auralign.runtime.tracker import Tracker

ITEMS, ROWS, FRAMES = 2, 8, 6
NOTHING = Coefficients(entropy=0.0, kl_old=0.0)
WANTED = torch.rand(ITEMS, ROWS, FRAMES, generator=torch.Generator().manual_seed(1)).round() * 0.8 + 0.1


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(mask: torch.Tensor) -> Scene:
    """The masks themselves are what is heard."""
    return Scene(estimate=mask.flatten(2), mixture=torch.ones(len(mask), mask[0, 0].numel()), rate_hz=16_000)


def closeness(heard: Scene) -> torch.Tensor:
    return -(heard.estimate - WANTED.flatten(1)[:, None]).square().mean(-1)


def a_policy(*, explore=None, **changes) -> PolicyConfig:
    explored = Exploration(**{"form": "bin", "emphasis": 0.0, **(explore or {})})
    return PolicyConfig(**{"explore": explored, "coefficients": NOTHING, **changes})


def drawn(p: PolicyConfig, proposal: torch.Tensor, reward=closeness, *, seed: int = 0, listen=scene):
    """One roll-out, and the composite that scored it."""
    rewards = Composite([Term("it", reward, normalise="running")])
    energy = torch.rand(proposal.shape, generator=chance(7)) + 0.1
    return draw_and_compare(p, rewards, Baseline(), proposal, energy, listen, chance(seed), 9.0), rewards


def free(fill: float = 0.5) -> torch.Tensor:
    return torch.full((ITEMS, ROWS, FRAMES), fill)


# draw, listen, compare


@pytest.mark.parametrize("explore", [{}, {"form": "tile", "tile": (4, 3)}], ids=["bin", "tile"])
def test_every_drawn_mask_is_heard_once_and_nothing_has_a_graph(explore):
    heard = []

    def listen(mask):
        heard.append(mask)
        assert not torch.is_grad_enabled()
        return scene(mask)

    roll, rewards = drawn(a_policy(explore=explore, group=6), free().requires_grad_(), listen=listen)
    (mask,) = heard
    assert mask.shape == (ITEMS, 6, ROWS, FRAMES)
    assert torch.equal(mask, roll.drawn.mask)
    assert rewards.state_dict()["it"]["count"] == ITEMS * 6, "the running scale saw each once"
    for value in (mask, roll.old_log_prob, roll.advantage.value):
        assert not value.requires_grad


def test_the_numbers_to_watch_leave_out_what_cannot_be_scored():
    table = torch.tensor([[1.0, 3.0, torch.nan, 5.0], [2.0, 2.0, 2.0, 2.0]])
    roll, _ = drawn(a_policy(explore={"pairing": "independent"}), free(), lambda _: table)
    numbers = roll.numbers
    assert numbers["reward/it"] == pytest.approx(17 / 7), "as the reward gave it"
    assert numbers["reward/total"] == pytest.approx(0, abs=1e-6), "normalised"
    spread = float(torch.tensor([1.0, 3.0, 5.0, 2.0, 2.0, 2.0, 2.0]).std(correction=0))
    assert numbers["reward/spread"] == pytest.approx(math.sqrt(8 / 3) / spread / 2, rel=1e-5)
    assert numbers["unscored_share"] == pytest.approx(1 / 8)
    assert numbers["degenerate_share"] == 0.5
    assert numbers["kappa"] == 9.0
    assert roll.advantage.kept.logical_not().nonzero().tolist() == [[0, 2]]


def test_only_the_published_advantage_moves_the_baseline():
    for advantage, moved in (("published", True), ("group", False), ("leave_one_out", False)):
        baseline = Baseline()
        p, rewards = a_policy(advantage=advantage), Composite([Term("it", closeness)])
        roll = draw_and_compare(p, rewards, baseline, free(), free(), scene, chance(), 9.0)
        assert (baseline.value is not None) == moved
        if moved:
            assert baseline.value == pytest.approx(roll.numbers["reward/total"])


# push


@pytest.mark.parametrize("step", [0.0, 0.15, 0.6])
def test_a_moved_proposal_has_the_clipped_objective_of_its_density_ratio(step):
    """Oracle: torch's Beta in float64, ratio and clip written out."""
    p = a_policy(coefficients=Coefficients(entropy=0.3, kl_old=0.2, kl_reference=0.7), clip=0.05)
    roll, _ = drawn(p, free(0.4))
    direction = torch.rand(ITEMS, ROWS, FRAMES, generator=chance(3)) - 0.5
    moved, fixed = (free(0.4) + step * direction).clamp(0.05, 0.95), free(0.7)
    loss, numbers = policy_loss(p, roll, moved, fixed)
    new, old, reference = (
        Beta(1 + 9 * m, 1 + 9 * (1 - m)) for m in (x.double()[:, None] for x in (moved, free(0.4), fixed))
    )
    action = roll.drawn.action.double()
    ratio = (new.log_prob(action) - old.log_prob(action)).mean((2, 3)).exp()
    gain = roll.advantage.value.double()
    clipped = torch.minimum(ratio * gain, ratio.clamp(0.95, 1.05) * gain)
    kl = torch.distributions.kl_divergence
    entropy, near, far = (float(x.mean()) for x in (new.entropy(), kl(new, old), kl(new, reference)))
    expected = -(ROWS * FRAMES * float(clipped.mean()) + 0.3 * entropy - 0.2 * near - 0.7 * far)
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert numbers["ratio"] == pytest.approx(float(ratio.mean()), rel=1e-4)
    outside = ((gain > 0) & (ratio > 1.05)) | ((gain < 0) & (ratio < 0.95))
    assert numbers["clip_share"] == pytest.approx(float(outside.double().mean()), abs=1e-6)
    assert numbers["kl_old"] == pytest.approx(near, rel=1e-3, abs=1e-6)
    assert numbers["entropy"] == pytest.approx(entropy, rel=1e-4)
    if step == 0.6:
        assert numbers["clip_share"] > 0, "the clip is reached"


@pytest.mark.parametrize(
    ("ratio", "advantage"),
    [
        ("joint", "leave_one_out"),
        ("mean_log", "group"),
        ("per_bin", "published"),
        ("mean_log", "leave_one_out"),
    ],
)
def test_free_masks_find_the_mask_that_the_reward_wants(ratio, advantage):
    p = a_policy(group=8, ratio=ratio, advantage=advantage)
    logits = free(0.0).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.2)
    before = float(closeness(scene(logits.detach().sigmoid()[:, None])).mean())
    for step in range(50):
        proposal = logits.sigmoid()
        roll, _ = drawn(p, proposal, seed=step)
        loss, numbers = policy_loss(p, roll, proposal)
        assert numbers["clip_share"] == numbers["approx_kl"] == 0
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = float(closeness(scene(logits.detach().sigmoid()[:, None])).mean())
    assert after > 0.5 * before, "both are below 0: half of the error is gone"


# when the guard speaks


class Kept(TrainState):
    """A training state that only remembers what was asked of it."""

    def __init__(self) -> None:
        self.step, self.loaded, self.saved = 7, [], []
        self.average = SimpleNamespace(model=SimpleNamespace(save=lambda *given: self.saved.append(given)))

    def load_weights(self, state) -> None:
        self.loaded.append(state)


class Seen(Tracker):
    """A tracker that only remembers what it was told."""

    def __init__(self) -> None:
        self.seen = []

    def log(self, step, values) -> None:
        self.seen.append((step, values))


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(tmp_path, Config(), "run", algorithm="mars_sep", folder=tmp_path / "run")


FELL = Verdict("rollback", "it fell", 7, "fidelity-fell")


def test_the_guard_is_told_loss_gradient_and_mask_of_a_step():
    told = reading(3, {"loss": 0.5, "gradient_norm": 2.0, "mask": 0.4, "ratio": 1.0})
    assert told == Reading(3, loss=0.5, gradient_norm=2.0, mean_mask=0.4)
    assert reading(3, {"loss": 0.5, "gradient_norm": 2.0}).mean_mask is None, "a control draws no mask"
    verdict = Guard(GuardConfig()).observe(reading(1, {"loss": math.nan, "gradient_norm": 1.0}))
    assert verdict.alarm == "not-finite"


def test_only_a_verdict_to_stop_stops():
    assert not stops(None)
    assert not stops(FELL)
    assert stops(Verdict("stop", "it fell", 3, "fidelity-fell"))


def test_an_alarm_before_anything_was_saved_says_so(run):
    state = Kept()
    with pytest.raises(AuralignError, match="before anything was saved") as error:
        go_back(run, state, FELL, None)
    assert "it fell" in str(error.value)
    assert not state.loaded


def test_going_back_takes_the_weights_of_the_best_checkpoint_and_leaves_the_step(run):
    state, tracker = Kept(), Seen()
    for step, score in ((1, 2.0), (2, 5.0), (3, 4.0)):
        run.checkpoints.save(step, {"model": {"x": torch.tensor(float(step))}}, score=score)
    go_back(run, state, FELL, tracker)
    (loaded,) = state.loaded
    assert float(loaded["model"]["x"]) == 2
    assert state.step == 7
    assert tracker.seen == [(7, {"guard/rollback": 1.0})]
    go_back(run, state, FELL, None)
    assert len(state.loaded) == 2, "a process that does not log goes back too"


def test_only_the_first_process_writes_the_model(run):
    state = Kept()
    export(run, state, World(1, 2, 1))
    assert not state.saved
    export(run, state, World(0, 2, 0))
    ((folder, card),) = state.saved
    assert folder == run.path / "model"
    assert card["name"] == run.path.name
