"""Reward workers: same scores in order, bounded, errors by name, and no process outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from auralign.errors import AuralignError, UsageError
from auralign.rewards.base import Scene
from auralign.rewards.load import load_reward
from auralign.rewards.workers import RewardWorkers

WAIT_S = 250.0  # a worker imports torch first, which takes its time on a busy machine
MODULE = """
import os, time
import torch
def first(scene):
    return scene.estimate[..., 0] + (0 if scene.target is None else scene.target[:, :1])
def slow(scene):
    time.sleep(0.3)
    return scene.estimate[..., 0]
def names(scene):
    return torch.tensor([[float(len(t))] for t in scene.texts]).expand(scene.estimate.shape[:2])
def picky(scene):
    if scene.estimate.max() > 100:
        raise ValueError("no such voice")
    return scene.estimate[..., 0]
def dies(scene):
    os._exit(7)
def process(scene):
    return torch.full(scene.estimate.shape[:2], float(os.getpid()))
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorers")
    (folder / "slow_scorers.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patched.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def pool(module):
    paths = {name: f"slow_scorers.{name}" for name in ("first", "names", "process")} | {"si": "si_sdr"}
    with RewardWorkers(paths, workers=2, waiting=2) as workers:
        yield workers


def scene(start: float = 0.0) -> Scene:
    wave = torch.arange(5.0)[:, None].repeat(1, 400) * 0.1 + torch.rand(5, 400) * 0.01 + start
    estimate = torch.stack([wave, 2 * wave], dim=1)
    return Scene(estimate, wave, 16000, target=wave, texts=("a", "bb", "ccc", "dddd", "eeeee"))


def test_scores_equal_those_of_this_process_in_order(pool):
    scenes = [scene(start) for start in (0.0, 10.0, 20.0)]
    here = load_reward("si_sdr")
    answers = [pending.result(WAIT_S) for pending in [pool.submit(one) for one in scenes[:2]]]
    answers.append(pool.submit(scenes[2]).result(WAIT_S))
    for one, answer in zip(scenes, answers, strict=True):
        torch.testing.assert_close(answer["first"], one.estimate[..., 0] + one.target[:, :1])
        torch.testing.assert_close(answer["si"], here(one))
        assert answer["names"][:, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert os.getpid() not in answers[0]["process"].unique().tolist()
    torch.testing.assert_close(pool.reward("si")(scenes[0]), here(scenes[0]))
    with pytest.raises(UsageError, match="no reward 'none'"):
        pool.reward("none")


def test_submitting_waits_while_too_much_is_unfinished_and_errors_carry_the_name(module):
    paths = {"patient": "slow_scorers.slow", "voice": "slow_scorers.picky"}
    with RewardWorkers(paths, workers=1, waiting=1) as workers:
        pending = workers.submit(scene())
        assert not pending.done()
        second = workers.submit(scene(start=1000.0))
        assert pending.done()
        with pytest.raises(AuralignError, match=r"reward 'voice'.*no such voice"):
            second.result(WAIT_S)
        third = workers.submit(scene()).result(WAIT_S)  # and goes on working
        assert set(third) == {"patient", "voice"}


def test_a_worker_that_dies_is_an_error(module):
    with RewardWorkers({"dies": "slow_scorers.dies"}) as workers:
        with pytest.raises(AuralignError, match="worker died"):
            workers.submit(scene()).result(WAIT_S)
        with pytest.raises(AuralignError, match="workers are gone"):
            workers.submit(scene())


@pytest.mark.slow
def test_workers_end_when_the_parent_is_killed(module):
    code = """
import sys, torch
from auralign.rewards.base import Scene
from auralign.rewards.workers import RewardWorkers
if __name__ == "__main__":
    workers = RewardWorkers({"process": "slow_scorers.process"})
    wave = torch.ones(1, 9)
    print(int(workers.submit(Scene(wave[:, None], wave, 16000)).result()["process"]), flush=True)
    sys.stdin.read()
"""
    file = module / "parent.py"
    file.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.communicate()
    for _ in range(100):
        if not alive(worker):
            break
        time.sleep(0.1)
    else:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker outlived its parent")


def alive(pid: int) -> bool:
    """Whether the process runs (one that only waits to be collected does not)."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_wrong_settings_are_errors():
    with pytest.raises(UsageError, match="no reward"):
        RewardWorkers({})
    with pytest.raises(UsageError, match="waiting is 0"):
        RewardWorkers({"a": "si_sdr"}, waiting=0)
    assert np.array_split(np.arange(5), 2)[0].tolist() == [0, 1, 2]
