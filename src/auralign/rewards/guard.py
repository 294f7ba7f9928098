"""Alarms that end or roll back a run whose reward goes up while the sound gets worse.

A reward is a stand-in for what a listener wants, and a policy finds the difference. The guard watches what the
policy cannot fake: how much of the mixture passes, SI-SDR improvement on validation mixtures with known targets,
and a judge that no reward uses. It is told, it does not measure; it is plain Python, so that its whole state fits
into a checkpoint and the same readings always give the same verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

from auralign.errors import UsageError

Action = Literal["stop", "rollback"]
Alarm = Literal["not-finite", "all-pass", "all-zero", "fidelity-fell", "hacked-fidelity", "hacked-judge"]


@dataclass(frozen=True)
class GuardConfig:
    """When to raise an alarm, and what then."""

    action: Action = "rollback"
    """Go back to the best checkpoint, or stop the run."""
    rollbacks: int = 2
    """How often to go back; the next alarm stops the run."""
    all_pass: float = 0.95
    """Energy-weighted mean mask above which the separator passes everything (spec 0.3.8: SAR 87 dB, SI-SDRi 0)."""
    all_zero: float = 0.02
    """Energy-weighted mean mask below which it passes nothing."""
    fall_db: float = 0.3
    """Fall of the validation SI-SDRi, dB, below its start, or of its mean over ``patience`` below the best such."""
    confirm: int = 2
    """Readings in a row that must show a collapse or a fall; a fall of twice the size needs one."""
    patience: int = 3
    """Evaluations in a row with the reward above its start and a held-out score below its own."""
    rise: float = 0.0
    """How far the reward must be above its start to count as up."""
    fidelity_slack_db: float = 0.15
    """How far SI-SDRi may be below its start, dB, while the reward is up."""
    judge_slack: float = 0.01
    """How far the held-out judge may be below its start while the reward is up (cosine)."""

    def __post_init__(self) -> None:
        if not 0 <= self.all_zero < self.all_pass <= 1:
            raise ValueError(
                f"all_zero = {self.all_zero} and all_pass = {self.all_pass}: they must rise within [0, 1]"
            )
        for name in ("confirm", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("rollbacks", "rise", "fidelity_slack_db", "judge_slack"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not self.fall_db > 0:
            raise ValueError(f"fall_db is {self.fall_db}; it must be above 0")


@dataclass(frozen=True)
class Reading:
    """What was measured at a step; what was not measured is ``None``.

    A reading with ``si_sdri`` or ``judge`` is an evaluation: fixed validation mixtures, the mask without sampling.
    Its ``reward`` is the mean of the *unnormalised* reward on the same mixtures; a running normalisation would
    hide the rise. The first evaluation is the start that later ones are compared with: make it before the first
    update.
    """

    step: int
    loss: float | None = None
    gradient_norm: float | None = None
    mean_mask: float | None = None
    """Mean mask weighted by the energy of the mixture's bins, in [0, 1]."""
    reward: float | None = None
    si_sdri: float | None = None
    """Mean improvement in dB; nan when no estimate could be scored."""
    judge: float | None = None
    """Mean similarity by a judge that is no part of the reward."""


@dataclass(frozen=True)
class Verdict:
    """Why a run must not go on as it is.

    Attributes:
        action: What to do.
        reason: One sentence with the numbers.
        step: When.
        alarm: Which rule.
    """

    action: Action
    reason: str
    step: int
    alarm: Alarm

    def __str__(self) -> str:
        """The sentence for a log."""
        return f"step {self.step}: {self.reason}; {self.action}"


@final
class Guard:
    """Watches a run; see :class:`GuardConfig` for the rules.

    After a verdict the counters start again, the start and the best stay, and the number of rollbacks is kept: do
    *not* restore the guard when the policy is rolled back, or a run could go back for ever.

    >>> guard = Guard(GuardConfig(action="stop"))
    >>> guard.observe(Reading(0, si_sdri=4.0))
    >>> str(guard.observe(Reading(9, si_sdri=3.0)))
    'step 9: validation SI-SDRi fell from 4.00 dB at the start to 3.00 dB (limit 0.30 dB); stop'
    """

    def __init__(self, cfg: GuardConfig | None = None) -> None:
        self.cfg = cfg or GuardConfig()
        self._start: dict[str, float] = {}
        self._recent: list[float] = []
        self._best: float | None = None
        self._counts: dict[str, int] = {}
        self._rolled_back = 0

    def observe(self, reading: Reading) -> Verdict | None:
        """Take a reading; the first broken rule gives the verdict."""
        found = self._not_finite(reading) or self._collapse(reading) or self._evaluation(reading)
        if found is None:
            return None
        alarm, reason = found
        action: Action = self.cfg.action
        if action == "rollback" and self._rolled_back >= self.cfg.rollbacks:
            action = "stop"
            reason += f"; already rolled back {self._rolled_back} times"
        self._rolled_back += action == "rollback"
        self._counts.clear()
        self._recent.clear()
        return Verdict(action, reason, reading.step, alarm)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint; plain numbers only."""
        return {
            "start": dict(self._start),
            "recent": list(self._recent),
            "best": self._best,
            "counts": dict(self._counts),
            "rolled_back": self._rolled_back,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        expected = set(self.state_dict())
        if set(state) != expected:
            raise UsageError(
                "this is not the state of a guard", why=f"{sorted(state)} instead of {sorted(expected)}"
            )
        self._start = {str(name): float(value) for name, value in state["start"].items()}
        self._recent = [float(value) for value in state["recent"]]
        self._best = None if state["best"] is None else float(state["best"])
        self._counts = {str(name): int(value) for name, value in state["counts"].items()}
        self._rolled_back = int(state["rolled_back"])

    def _not_finite(self, reading: Reading) -> tuple[Alarm, str] | None:
        for name in ("loss", "gradient_norm", "mean_mask", "si_sdri"):
            value = getattr(reading, name)
            if value is not None and not math.isfinite(value):
                known = " (nan: no estimate could be scored)" if name == "si_sdri" else ""
                return "not-finite", f"{_WORDS[name]} is {value}{known}"
        for name in ("reward", "judge"):  # nan there: nothing could be scored, which is no fault
            value = getattr(reading, name)
            if value is not None and math.isinf(value):
                return "not-finite", f"{_WORDS[name]} is {value}"
        return None

    def _collapse(self, reading: Reading) -> tuple[Alarm, str] | None:
        cfg, mask = self.cfg, reading.mean_mask
        if mask is None:
            return None
        if self._in_a_row("all-pass", mask > cfg.all_pass) >= cfg.confirm:
            return "all-pass", f"the mask passes everything: mean {mask:.3f} (limit {cfg.all_pass})"
        if self._in_a_row("all-zero", mask < cfg.all_zero) >= cfg.confirm:
            return "all-zero", f"the mask passes nothing: mean {mask:.4f} (limit {cfg.all_zero})"
        return None

    def _evaluation(self, reading: Reading) -> tuple[Alarm, str] | None:
        if reading.si_sdri is None and reading.judge is None:
            return None
        for name in ("reward", "si_sdri", "judge"):
            value = getattr(reading, name)
            if value is not None and not math.isnan(value):
                self._start.setdefault(name, value)
        return self._fall(reading) or self._hacked(reading, "si_sdri") or self._hacked(reading, "judge")

    def _fall(self, reading: Reading) -> tuple[Alarm, str] | None:
        cfg, now = self.cfg, reading.si_sdri
        if now is None:
            return None
        start = self._start["si_sdri"]
        rows = self._in_a_row("fall", now < start - cfg.fall_db)
        if rows >= cfg.confirm or now < start - 2 * cfg.fall_db:
            there = f"from {start:.2f} dB at the start to {now:.2f} dB"
            return "fidelity-fell", f"validation SI-SDRi fell {there} (limit {cfg.fall_db:.2f} dB)"
        self._recent = [*self._recent, now][-cfg.patience :]
        if len(self._recent) < cfg.patience:
            return None
        mean = sum(self._recent) / cfg.patience
        self._best = mean if self._best is None else max(self._best, mean)
        if mean < self._best - cfg.fall_db:
            there = f"fell from {self._best:.2f} dB at its best to {mean:.2f} dB"
            over = f"means over {cfg.patience} evaluations, limit {cfg.fall_db:.2f} dB"
            return "fidelity-fell", f"validation SI-SDRi {there} ({over})"
        return None

    def _hacked(self, reading: Reading, name: Literal["si_sdri", "judge"]) -> tuple[Alarm, str] | None:
        cfg, reward, held = self.cfg, reading.reward, getattr(reading, name)
        if reward is None or held is None or math.isnan(reward) or math.isnan(held):
            return None
        slack = cfg.fidelity_slack_db if name == "si_sdri" else cfg.judge_slack
        up = reward > self._start["reward"] + cfg.rise
        down = held < self._start[name] - slack
        if self._in_a_row(f"hacked-{name}", up and down) < cfg.patience:
            return None
        rose = f"the reward rose from {self._start['reward']:.4f} to {reward:.4f}"
        fell = f"{_WORDS[name]} fell from {self._start[name]:.4f} to {held:.4f}"
        reason = f"{rose} while {fell}, {cfg.patience} evaluations in a row: the reward is being hacked"
        return ("hacked-fidelity" if name == "si_sdri" else "hacked-judge"), reason

    def _in_a_row(self, name: str, broken: bool) -> int:
        self._counts[name] = self._counts.get(name, 0) + 1 if broken else 0
        return self._counts[name]


_WORDS = {
    "loss": "the loss",
    "gradient_norm": "the gradient's norm",
    "mean_mask": "the mean mask",
    "reward": "the reward",
    "si_sdri": "validation SI-SDRi",
    "judge": "the held-out judge",
}
