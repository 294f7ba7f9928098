"""Rewards by name: the built-in ones, and any Python function by its dotted path.

A user's reward is a function of a :class:`~auralign.rewards.base.Scene`::

    # my_module.py
    def brightness(scene):
        return spectral_centroid(scene.estimate)      # batch x group, nan = cannot be scored

and is called ``my_module.brightness`` (or ``my_package.module:factory``) in a recipe. A class, or a function that
takes no scene, is called once and must return the reward. Modules are looked for in the working directory too.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import AuralignError, UsageError
from auralign.rewards.base import Reward, Scene
from auralign.rewards.compose import Composite, Normalise, Term, Unscorable
from auralign.rewards.signal import FidelityReward

_EXAMPLE = "write it as my_module.my_reward or my_package.my_module:my_reward"


def _semantic(encoder: str = "reward-small") -> Reward:
    from auralign.models.reward_encoder import RewardEncoder
    from auralign.rewards.semantic import SemanticReward
    from auralign.runtime import weights

    listener = RewardEncoder.load(weights.path(encoder))
    listener.narrow = (
        True  # a third of a training step otherwise; scores of a group differ by far more than the error
    )
    reward: Reward = SemanticReward(listener)
    return reward


def _speech(maker: str, *arguments: str) -> Callable[..., Reward]:
    """What makes a reward of :mod:`auralign.rewards.speech`, which is imported when it is asked for."""

    def make(*more: str) -> Reward:
        speech = importlib.import_module("auralign.rewards.speech")
        found: Reward = getattr(speech, maker)(*arguments, *more)
        return found

    return make


def _word_errors(place: str = "") -> Reward:
    from auralign.rewards.speech_words import word_errors_reward

    return word_errors_reward(place)


BUILTIN: dict[str, Callable[..., Reward]] = {
    "semantic": _semantic,
    "fidelity": FidelityReward,
    "dnsmos_ovrl": _speech("DnsMosReward", "ovrl"),
    "dnsmos_sig": _speech("DnsMosReward", "sig"),
    "dnsmos_bak": _speech("DnsMosReward", "bak"),
    "dnsmos_p808": _speech("DnsMosReward", "p808"),
    "speaker": _speech("speaker_reward"),
    "speaker_mixture": _speech("speaker_reward", "mixture"),
    "si_sdr": _speech("SiSdrReward"),
    "pesq": _speech("pesq_reward"),
    "estoi": _speech("estoi_reward"),
    "spectral_features": _speech("FeatureReward"),
    "speech_bert": _speech("speech_bert_reward"),
    "word_errors": _word_errors,
}
"""What makes each reward that needs no path."""

_WITH_ARGUMENT = ("semantic", "speech_bert", "word_errors")  # may be written name:argument


@dataclass(frozen=True)
class RewardConfig:
    """One reward of a recipe: a ``[[rewards]]`` table."""

    path: str = "semantic"
    """``semantic`` (or ``semantic:ENCODER``, a name or folder), ``fidelity``, for speech ``dnsmos_ovrl`` (``_sig``,
    ``_bak``, ``_p808``), ``speaker``, ``speaker_mixture``, ``si_sdr``, ``pesq``, ``estoi``, ``spectral_features``,
    ``speech_bert:PLACE@LAYER``, ``word_errors:PLACE``, or the dotted path of a function."""
    name: str = ""
    """Its name in logs; by default the built-in name or the function's."""
    weight: float = 1.0
    """Its share; below 0 punishes, 0 only logs."""
    normalise: Normalise = "none"
    """Divide by the standard deviation of all rewards seen (``running``) or by that within groups (``group``)."""
    unscorable: Unscorable = "leave"
    """What nan does: the member leaves its group, or this term is skipped for it."""

    @property
    def title(self) -> str:
        """The name in logs."""
        if self.name:
            return self.name
        kind, colon, _ = self.path.partition(":")
        if colon and kind in _WITH_ARGUMENT:
            return kind
        return self.path.replace(":", ".").rpartition(".")[2]


def compose(
    rewards: Sequence[RewardConfig],
    *,
    builtin: Mapping[str, Callable[..., Reward]] | None = None,
    keep_graph: bool = False,
) -> Composite:
    """The rewards of a recipe as one, each behind :class:`CheckedReward`.

    Args:
        rewards: The recipe's tables.
        builtin: See :func:`load_reward`.
        keep_graph: Leave gradients through the rewards possible (pathwise mode).
    """
    terms = []
    for one in rewards:
        reward = load_reward(one.path, builtin=builtin)
        checked = CheckedReward(reward, one.title, keep_graph=keep_graph)
        terms.append(Term(one.title, checked, one.weight, one.normalise, one.unscorable))
    return Composite(terms)


def load_reward(path: str, *, builtin: Mapping[str, Callable[..., Reward]] | None = None) -> Reward:
    """The reward of a name or dotted path.

    Args:
        path: A name in :data:`BUILTIN`, ``semantic:ENCODER`` (a name or folder), ``speech_bert:PLACE@LAYER``,
            ``word_errors:PLACE``, ``module.function`` or ``package.module:function``.
        builtin: Makers of built-in rewards that replace those of :data:`BUILTIN`, for example with an encoder
            that is loaded already.

    Raises:
        UsageError: There is no such module or attribute, or it is no reward.
        AuralignError: The user's module fails while it is imported, or its factory fails.
    """
    known = {**BUILTIN, **(builtin or {})}
    if path in known:
        return known[path]()
    kind, given, argument = path.partition(":")
    if given and kind in _WITH_ARGUMENT:
        return known[kind](argument)
    where = f"reward {path!r}"
    module_name, colon, attribute = path.partition(":")
    if not colon:
        module_name, _, attribute = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        near = difflib.get_close_matches(path, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}; or {_EXAMPLE}"
        raise UsageError("there is no such reward", where=where, hint=hint)
    found: Any = _import(module_name, where)
    for name in attribute.split("."):
        found = _attribute(found, name, where)
    return _as_reward(found, where)


def _import(name: str, where: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last: a user's file never hides an installed package
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(
                f"there is no module {error.name!r}",
                where=where,
                why=f"looked in {here} and in the installed packages",
                hint=f"run from the folder that holds it, or set PYTHONPATH; {_EXAMPLE}",
            ) from error
        raise _failed(f"importing {name} failed", where, error) from error
    except Exception as error:
        raise _failed(f"importing {name} failed", where, error) from error


def _attribute(owner: Any, name: str, where: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        public = [one for one in dir(owner) if not one.startswith("_")]
        near = difflib.get_close_matches(name, public, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(public[:12]) or 'nothing'}"
        title = getattr(owner, "__name__", type(owner).__name__)
        raise UsageError(f"{title} has no {name!r}", where=where, hint=hint) from error


def _as_reward(found: Any, where: str) -> Reward:
    """A reward out of what the path names: itself, or what a class or factory makes."""
    if not callable(found):
        raise UsageError(
            f"it is {_a(found)}, not a function", where=where, hint="a reward is called with a scene"
        )
    if not (inspect.isclass(found) or _takes_no_scene(found, where)):
        return found  # type: ignore[no-any-return]
    try:
        made = found()
    except Exception as error:
        raise _failed("making the reward failed", where, error) from error
    if not callable(made):
        raise UsageError(
            f"it takes no scene, and what it returns is {_a(made)}, not a reward",
            where=where,
            hint="give it one parameter, the scene, or let it return a function of a scene",
        )
    return made  # type: ignore[no-any-return]


def _takes_no_scene(found: Any, where: str) -> bool:
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):  # built in C: nothing is known, so it is taken as it is
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) > 1 or (needed and needed[0] not in positional):
        names = ", ".join(p.name for p in needed)
        raise UsageError(
            f"it needs {len(needed)} arguments ({names}); a reward is called with the scene alone",
            where=where,
            hint="give the others defaults, or write a function without arguments that returns the reward",
        )
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return not needed and not takes_any and not (positional and positional[0].name == "scene")


@final
class CheckedReward:
    """A reward whose every answer is checked before it can spoil a policy.

    The answer must be a floating tensor ``batch group`` without infinities; nan means that a member cannot be
    scored. It comes back as float32 on the device of the estimate, cut off from the graph unless asked otherwise.

    Args:
        reward: What scores a scene.
        name: Its name in messages.
        keep_graph: Leave gradients through the reward possible.
    """

    def __init__(self, reward: Reward, name: str, *, keep_graph: bool = False) -> None:
        self.reward, self.name, self.keep_graph = reward, name, keep_graph
        self.metrics: tuple[str, ...] = tuple(getattr(reward, "metrics", ()))

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """Score a scene.

        Raises:
            AuralignError: The reward failed, or its answer is none; the cause is kept.
        """
        where = f"reward {self.name!r}"
        sounds = [scene.estimate, scene.mixture]
        sounds += [wave for wave in (scene.target, scene.interferer) if wave is not None]
        before = [wave._version for wave in sounds if not wave.is_inference()]
        try:
            with torch.set_grad_enabled(self.keep_graph and torch.is_grad_enabled()):
                value = self.reward(scene)
        except Exception as error:
            raise _failed("it failed", where, error) from error
        if before != [wave._version for wave in sounds if not wave.is_inference()]:
            raise AuralignError(
                "it changed the sounds of the scene in place",
                where=where,
                hint="work on a copy: scene.estimate.clone()",
            )
        return _checked(value, scene, where, self.keep_graph)


def _checked(answer: Any, scene: Scene, where: str, keep_graph: bool) -> Float[Tensor, "batch group"]:
    shape = tuple(scene.estimate.shape[:2])
    wanted = f"a floating tensor of shape (batch, group) = {shape}"
    if not isinstance(answer, Tensor):
        raise AuralignError(f"it returned {_a(answer)}", where=where, hint=f"return {wanted}")
    if tuple(answer.shape) != shape:
        raise AuralignError(
            f"it returned the shape {tuple(answer.shape)}", where=where, hint=f"return {wanted}"
        )
    if not answer.is_floating_point():
        raise AuralignError(f"it returned {answer.dtype}", where=where, hint=f"return {wanted}: add .float()")
    value: Tensor = answer.to(scene.estimate.device, torch.float32)
    infinite = value.detach().isinf()
    if bool(infinite.any()):
        item, member = (int(n) for n in infinite.nonzero()[0])
        raise AuralignError(
            f"{int(infinite.sum())} of its {value.numel()} values are infinite",
            where=where,
            why=f"the first is that of item {item}, member {member}",
            hint="bound the reward, or return nan for a sound that cannot be scored",
        )
    return value if keep_graph else value.detach()


def _failed(what: str, where: str, error: Exception) -> AuralignError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return AuralignError(what, where=where, why=f"{type(error).__name__}{place}: {error}")


def _a(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
