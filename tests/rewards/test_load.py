from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from auralign.errors import AuralignError, UsageError
from auralign.rewards.base import Scene
from auralign.rewards.load import BUILTIN, CheckedReward, RewardConfig, compose, load_reward
from auralign.rewards.signal import FidelityReward
from auralign.runtime import config

SCENE = Scene(torch.ones(2, 3, 8), torch.ones(2, 8), 16_000, target=torch.ones(2, 8))

MODULE = """
    import torch
    limit = 3

    def mean(scene):
        return scene.estimate.mean(-1)

    def with_default(scene, power=1.0):
        return scene.estimate.mean(-1) ** power

    def optional(scene=None):
        return scene.estimate.mean(-1)

    def factory(strength=2.0):
        return lambda scene: strength * scene.estimate.mean(-1)

    class Loud:
        def __call__(self, scene):
            return 3 * scene.estimate.mean(-1)

        @staticmethod
        def nested(scene):
            return 4 * scene.estimate.mean(-1)

    class Picky:
        def __init__(self, weight):
            self.weight = weight

        def __call__(self, scene):
            return scene.estimate.mean(-1)

    instance = Loud()

    def two(scene, other):
        return scene.estimate.mean(-1)

    def keyword(*, scene):
        return scene.estimate.mean(-1)

    def makes_nothing():
        return 5

    def breaks():
        raise RuntimeError("no weights")

    def anything(*sounds):
        return sounds[0].estimate.mean(-1)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "listening_rewards.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "listening_bad.py").write_text("x = 1 / 0\n")
    (tmp_path / "listening_needs.py").write_text("import surely_not_installed\n")
    (tmp_path / "listening_odd.py").write_text("def f(:\n")
    (tmp_path / "listening_pack").mkdir()
    (tmp_path / "listening_pack" / "inner.py").write_text(
        "def one(scene):\n    return scene.estimate.mean(-1)\n"
    )
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("listening_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("listening_rewards.mean", 1.0),
        ("listening_rewards:mean", 1.0),
        ("listening_rewards.with_default", 1.0),
        ("listening_rewards.optional", 1.0),
        ("listening_rewards.factory", 2.0),
        ("listening_rewards.Loud", 3.0),
        ("listening_rewards.instance", 3.0),
        ("listening_rewards:Loud.nested", 4.0),
        ("listening_rewards.anything", 1.0),
        ("listening_pack.inner.one", 1.0),
        ("listening_pack.inner:one", 1.0),
    ],
)
def test_a_file_in_the_working_directory_gives_rewards_by_path(here, path, value):
    torch.testing.assert_close(load_reward(path)(SCENE), torch.full((2, 3), value))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("listening_rewards.maen", ["did you mean 'mean'"]),
        ("listening_reward.mean", ["no module 'listening_reward'", "installed packages"]),
        ("listening_pack.innr.one", ["no module 'listening_pack.innr'"]),
        ("listening_rewards.limit", ["a int, not a function"]),
        ("listening_rewards.two", ["2 arguments (scene, other)"]),
        ("listening_rewards.keyword", ["needs 1 arguments (scene)"]),
        ("listening_rewards.makes_nothing", ["returns is a int"]),
        ("listening_rewards.breaks", ["RuntimeError", "no weights"]),
        ("listening_rewards.Picky", ["TypeError", "weight"]),
        ("listening_bad.f", ["importing listening_bad failed", "ZeroDivisionError at listening_bad.py:1"]),
        ("listening_needs.f", ["importing listening_needs failed", "surely_not_installed"]),
        ("listening_odd.f", ["SyntaxError"]),
        ("semantc", ["did you mean 'semantic'"]),
        ("", ["known: semantic, fidelity"]),
        ("a..b", ["no such reward"]),
        (".mean", ["no such reward"]),
        ("my rewards.mean", ["no such reward"]),
    ],
)
def test_a_path_that_gives_no_reward_says_why(here, path, words):
    with pytest.raises(AuralignError) as caught:
        load_reward(path)
    assert all(word in str(caught.value) for word in [*words, repr(path)]), str(caught.value)


def test_the_cause_of_a_failed_import_is_kept(here):
    with pytest.raises(AuralignError) as caught:
        load_reward("listening_bad.f")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_users_file_never_hides_an_installed_module(here, monkeypatch):
    (here / "colorsys.py").write_text("def only_here(scene):\n    return None\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with pytest.raises(UsageError, match="colorsys has no 'only_here'"):
        load_reward("colorsys.only_here")


def test_built_in_rewards_go_by_name_and_can_be_replaced():
    assert isinstance(load_reward("fidelity"), FidelityReward)
    assert {"semantic", "fidelity"} <= set(BUILTIN)

    def mine(scene):
        return scene.estimate.mean(-1)

    assert load_reward("semantic", builtin={"semantic": lambda: mine}) is mine


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, ["returned None"]),
        (3.0, ["returned a float"]),
        (torch.ones(3, 2), ["shape (3, 2)", "(2, 3)"]),
        (torch.ones(2, 3, 1), ["shape (2, 3, 1)"]),
        (torch.tensor(1.0), ["shape ()"]),
        (torch.ones(2, 3, dtype=torch.long), ["torch.int64", ".float()"]),
        (
            torch.tensor([[0, 1, 2], [3, 4, -float("inf")]]),
            ["1 of its 6 values are infinite", "item 1, member 2"],
        ),
    ],
)
def test_a_wrong_answer_is_refused_with_the_name_of_the_reward(answer, words):
    with pytest.raises(AuralignError) as caught:
        CheckedReward(lambda scene: answer, "mine")(SCENE)
    assert all(word in str(caught.value) for word in [*words, "reward 'mine'"]), str(caught.value)


def test_an_exception_of_the_reward_names_it_and_its_line_and_keeps_the_cause():
    def wrong(scene):
        return scene.estimate[7]

    with pytest.raises(AuralignError, match=r"reward 'mine'.*IndexError at test_load.py:\d+") as caught:
        CheckedReward(wrong, "mine")(SCENE)
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_interrupt_is_not_taken_for_a_failure():
    def stopped(scene):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CheckedReward(stopped, "mine")(SCENE)


@pytest.mark.parametrize("sound", ["estimate", "mixture", "target"])
def test_a_reward_that_changes_a_sound_is_caught(sound):
    scene = Scene(torch.ones(2, 3, 8), torch.ones(2, 8), 16_000, target=torch.ones(2, 8))

    def spoil(scene):
        getattr(scene, sound).mul_(2)
        return scene.estimate.mean(-1)

    with pytest.raises(AuralignError, match="in place"):
        CheckedReward(spoil, "mine")(scene)
    with torch.inference_mode():
        inside = Scene(torch.ones(2, 3, 8), torch.ones(2, 8), 16_000)
        assert CheckedReward(lambda s: s.estimate.mean(-1), "mine")(inside).shape == (2, 3)


def test_nan_passes_and_every_precision_becomes_float32():
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        value = torch.tensor([[1, 2, float("nan")], [4, 5, 6]], dtype=dtype)
        out = CheckedReward(lambda scene, value=value: value, "mine")(SCENE)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, value.float(), equal_nan=True)


def test_answers_leave_the_graph_unless_asked():
    estimate = torch.ones(2, 3, 8, requires_grad=True)
    scene = Scene(estimate, torch.ones(2, 8), 16_000)

    def reward(scene):
        return scene.estimate.mean(-1)

    assert not CheckedReward(reward, "mine")(scene).requires_grad
    learned = torch.ones(2, 3, requires_grad=True)  # a leaf keeps its flag under no_grad
    assert not CheckedReward(lambda scene: learned, "mine")(scene).requires_grad
    CheckedReward(reward, "mine", keep_graph=True)(scene).sum().backward()
    torch.testing.assert_close(estimate.grad, torch.full((2, 3, 8), 1 / 8))


def test_the_rewards_of_a_recipe_become_one(here):
    rewards = (
        RewardConfig("fidelity", weight=0.5),
        RewardConfig("listening_rewards:Loud", name="loud", weight=2.0, normalise="group"),
        RewardConfig("listening_rewards.mean", weight=0.0),
    )
    composite = compose(rewards)
    assert composite.trained_on == {"fidelity": True, "loud": True, "mean": False}
    assert "si_sdri" in composite.trained_metrics
    scored = composite.score(SCENE)
    assert set(scored.parts) == {"fidelity", "loud", "mean"}
    torch.testing.assert_close(scored.total, 0.5 * scored.parts["fidelity"] + 2 * scored.parts["loud"])


def test_a_reward_table_reads_from_toml():
    found = config.loads('path = "a.b"\nweight = 2\nnormalise = "running"\nunscorable = "skip"', RewardConfig)
    assert (found.title, found.weight, found.normalise, found.unscorable) == ("b", 2.0, "running", "skip")
    with pytest.raises(UsageError, match="group"):
        config.loads('normalise = "by group"', RewardConfig)


def test_the_encoder_of_the_semantic_reward_can_be_named():
    def made(encoder="reward-small"):
        return lambda scene: encoder

    for path, encoder in (("semantic", "reward-small"), ("semantic:runs/mine/model", "runs/mine/model")):
        assert load_reward(path, builtin={"semantic": made})(SCENE) == encoder
        assert RewardConfig(path).title == "semantic"
