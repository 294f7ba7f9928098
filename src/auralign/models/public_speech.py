r"""Public checkpoints of SGMSE+ and flowmse, given by the user as the ``.ckpt`` files that their authors publish.

| project | paper | network output here | sampled by |
|---|---|---|---|
| SGMSE+ (sp-uhh/sgmse) | Richter et al. 2023, arXiv:2208.05830 | score ∇ ln p_t | `flow.ouve`, 60 evaluations |
| flowmse (seongq/flowmse) | Lee et al. 2025, arXiv:2508.06840 | velocity x₁ − x₀ | `flow.ode`, 5 evaluations |

In both projects the model is minus the network; the sign goes into its last layer, once, while it is read. The
averaged weights (torch-ema, ``ema.shadow_params``) are taken, as the authors' own evaluation does: a list without
names, in the order of the parameters. Old versions of torch-ema leave the time frequencies out, which are not trained
and come from the state dict then. Settings come from ``hyper_parameters``; what is not there is the published
default, and `PublicSettings.assumed` says so.

SGMSE's other networks (``ncsnpp_v2``, ``ncsnpp_48k``, ``dcunet``) and its Schrödinger bridge are refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from auralign.errors import ModelUnavailableError
from auralign.models.enhancer import EnhancerModel
from auralign.models.ncsnpp import MULTIPLIERS, NCSNpp
from auralign.models.published_names import PublishedTensor, from_published, published_tensors
from auralign.models.score_enhancer import ScoreEnhancer
from auralign.runtime.lightning_file import read_lightning

Family = Literal["sgmse", "flowmse"]
PACKAGES = ("sgmse", "flowmse", "torch_ema")
"""Whose classes such files name in their settings."""

_SHARED: Mapping[str, Any] = {
    "backbone": "ncsnpp",
    "ch_mult": MULTIPLIERS,
    "num_res_blocks": 2,
    "attn_resolutions": (16,),
    "t_eps": 0.03,
    "n_fft": 510,
    "hop_length": 128,
    "spec_factor": 0.15,
    "spec_abs_exponent": 0.5,
    "transform_type": "exponent",
    "window": "hann",
}
DEFAULTS: Mapping[Family, Mapping[str, Any]] = {
    "sgmse": {**_SHARED, "sde": "ouve", "theta": 1.5, "sigma_min": 0.05, "sigma_max": 0.5},
    "flowmse": {**_SHARED, "ode": "flowmatching", "sigma_min": 0.0, "sigma_max": 0.487, "loss_type": "mse"},
}
"""Settings that matter here, under the names that the checkpoints use, as both projects' training scripts set them."""
_ONLY: Mapping[str, Any] = {
    "backbone": "ncsnpp",
    "sde": "ouve",
    "ode": "flowmatching",
    "transform_type": "exponent",
    "window": "hann",
    "sr": 16_000,
    "centered": True,
    "T_rev": 1.0,
    "scale_by_sigma": True,
    "embedding_type": "fourier",
    "resblock_type": "biggan",
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "progressive_combine": "sum",
    "nonlinearity": "swish",
    "fir": True,
    "skip_rescale": True,
    "conditional": True,
}
"""Settings that have one value here; a checkpoint with another one is another model."""

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class PublicSettings:
    """What a checkpoint says of itself, or what is assumed where it says nothing."""

    family: Family
    values: Mapping[str, Any]
    """Under the names of the checkpoint: those of :data:`DEFAULTS`, and ``loss_type`` where it is there."""
    assumed: tuple[str, ...]
    """Names that the file does not have; their values are the published defaults."""
    weights: Literal["averaged", "last"]
    """Moving averages, or the last weights of training where the file has no averages."""

    @property
    def front(self) -> dict[str, Any]:
        """Options of :class:`CompressedSpectrum`."""
        v = self.values
        return {
            "n_fft": int(v["n_fft"]),
            "hop": int(v["hop_length"]),
            "exponent": float(v["spec_abs_exponent"]),
            "factor": float(v["spec_factor"]),
        }

    @property
    def network(self) -> dict[str, Any]:
        """Options of :class:`NCSNpp`; its width is read from the tensors."""
        v = self.values
        return {
            "width": int(v["nf"]),
            "multipliers": [int(m) for m in v["ch_mult"]],
            "blocks": int(v["num_res_blocks"]),
            "attention": [int(a) for a in v["attn_resolutions"]],
            "freqs": int(v["n_fft"]) // 2 + 1,
        }


@final
@dataclass(frozen=True, eq=False)
class PublicCheckpoint:
    """A network with the authors' weights and what is known of it."""

    settings: PublicSettings
    network: NCSNpp
    """Answers with the velocity (flowmse) or the score (SGMSE+)."""

    def enhancer(self) -> EnhancerModel | ScoreEnhancer:
        """The model that enhances recordings, with the authors' sampler and number of steps."""
        s, v = self.settings, self.settings.values
        t_eps = float(v["t_eps"])
        model: EnhancerModel | ScoreEnhancer
        with torch.device("meta"):
            if s.family == "flowmse":
                model = EnhancerModel(
                    "ncsnpp",
                    s.network,
                    front=s.front,
                    scale=float(v["sigma_max"]),
                    steps=5,
                    grid="stopped",
                    t_eps=t_eps,
                    level="peak",
                    name="flowmse",
                )
            else:
                sde = {key: float(v[key]) for key in ("theta", "sigma_min", "sigma_max")}
                model = ScoreEnhancer(s.network, front=s.front, sde=sde, t_eps=t_eps, name="sgmse")
        model.net = self.network
        return model.eval()

    def card(self) -> dict[str, Any]:
        """What is written beside converted weights."""
        s = self.settings
        return {
            "source": f"checkpoint of {s.family}, given by the user",
            "weights": s.weights,
            "settings": {key: _plain(value) for key, value in s.values.items()},
            "assumed": list(s.assumed),
            "licence": "that of the checkpoint; see its authors",
        }


def read_public(path: Path, *, family: Family | None = None) -> PublicCheckpoint:
    """Read a checkpoint that SGMSE+ or flowmse published, or that was trained with their code.

    Args:
        path: The ``.ckpt`` file, as downloaded.
        family: For files without settings: which project it is of. Files that say it are believed.

    Raises:
        ModelUnavailableError: No such file, another model, or tensors that are missing or do not fit.
    """
    held = read_lightning(path, packages=PACKAGES)
    state = held.get("state_dict")
    if not isinstance(state, Mapping) or "dnn.all_modules.0.W" not in state:
        raise ModelUnavailableError(
            "the checkpoint holds no NCSN++",
            where=str(path),
            why="it has no tensor 'dnn.all_modules.0.W' in its state_dict",
            hint="give a .ckpt file of SGMSE+ or flowmse",
        )
    dnn = {n.removeprefix("dnn."): t for n, t in state.items() if n.startswith("dnn.")}
    said, ema = held.get("hyper_parameters"), held.get("ema")
    said = said if isinstance(said, Mapping) else {}
    settings = _settings(path, said, family, width=len(dnn["all_modules.0.W"]), averaged=ema is not None)
    with torch.device("meta"):
        network = NCSNpp(**settings.network)
    names = published_tensors(network)
    _check_shapes(path, network, names, dnn)
    tensors = dnn if ema is None else _averaged(path, ema, dnn, names)
    _check_shapes(path, network, names, tensors)
    if settings.weights == "last":
        _log.warning("%s has no averaged weights; the last ones of its training are used", path.name)
    filled = {name: tensor.clone() for name, tensor in from_published(network, tensors).items()}
    network.load_state_dict(filled, assign=True)
    return PublicCheckpoint(settings, network.eval())


def convert_public(
    path: Path, folder: Path, *, family: Family | None = None
) -> EnhancerModel | ScoreEnhancer:
    """Read a published checkpoint and write it as safetensors in float32, with a card; returns the model.

    Args:
        path: The ``.ckpt`` file.
        folder: Where ``model.safetensors`` and ``card.json`` go.
        family: See :func:`read_public`.
    """
    checkpoint = read_public(path, family=family)
    model = checkpoint.enhancer()
    model.save(folder, checkpoint.card(), half=False)
    return model


def _settings(
    path: Path, said: Mapping[str, Any], family: Family | None, *, width: int, averaged: bool
) -> PublicSettings:
    found: Family | None = "flowmse" if "ode" in said else "sgmse" if "sde" in said else family
    if found is None:
        raise ModelUnavailableError(
            "the checkpoint does not say whether it is of SGMSE+ or flowmse",
            where=str(path),
            why="its hyper_parameters have neither 'sde' nor 'ode'",
            hint="say family='sgmse' or family='flowmse'",
        )
    defaults = DEFAULTS[found]
    values = {name: said.get(name, value) for name, value in defaults.items()}
    values["nf"] = width
    values |= {name: said[name] for name in ("loss_type",) if name in said}
    other = {n: said[n] for n, only in _ONLY.items() if n in said and said[n] != only}
    if found == "flowmse" and float(values["sigma_min"]) != 0:
        other["sigma_min"] = values["sigma_min"]
    if other:
        raise ModelUnavailableError(
            f"this kind of {found} checkpoint is not supported",
            where=str(path),
            why=", ".join(f"{name} is {value!r}" for name, value in other.items()),
            hint="the 16 kHz checkpoints with backbone 'ncsnpp' are: SGMSE+ with sde 'ouve', flowmse with sigma_min 0",
        )
    assumed = tuple(name for name in defaults if name not in said)
    if assumed:
        _log.warning("%s does not say %s; published defaults are used", path.name, ", ".join(assumed))
    return PublicSettings(found, values, assumed, "averaged" if averaged else "last")


def _averaged(
    path: Path, ema: Any, dnn: Mapping[str, Tensor], names: list[PublishedTensor]
) -> dict[str, Tensor]:
    """Averaged weights by name: the list is in the order of the parameters, which is that of the state dict."""
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    order = [t.published for t in names]
    trained = [t.published for t in names if t.trained]
    if not isinstance(shadow, list) or len(shadow) not in (len(order), len(trained)):
        count = f"{len(shadow)} tensors" if isinstance(shadow, list) else "no list"
        raise ModelUnavailableError(
            "the averaged weights do not belong to this network",
            where=str(path),
            why=f"'ema' has {count}, the network {len(order)}, {len(trained)} of them trained",
        )
    if list(dnn) != order:
        first = next(
            (n for n, o in zip(list(dnn) + [""] * len(order), order, strict=False) if n != o), "more"
        )
        raise ModelUnavailableError(
            "the tensors are not in the order of the network, so that averaged weights cannot be named",
            where=str(path),
            why=f"the first that differs is {first!r}",
            hint="give the .ckpt file as it was published",
        )
    return {**dnn, **dict(zip(order if len(shadow) == len(order) else trained, shadow, strict=True))}


def _check_shapes(
    path: Path, network: NCSNpp, names: list[PublishedTensor], tensors: Mapping[str, Tensor]
) -> None:
    state = network.state_dict()
    missing = [t.published for t in names if t.published not in tensors]
    wrong = [
        f"{t.published} {tuple(tensors[t.published].shape)} for {t.shape(state[t.ours])}"
        for t in names
        if t.published in tensors and tuple(tensors[t.published].shape) != t.shape(state[t.ours])
    ]
    extra = sorted(set(tensors) - {t.published for t in names})
    if missing or wrong or extra:
        parts = {"missing": missing, "misshapen": wrong, "unknown": extra}
        raise ModelUnavailableError(
            f"{len(names) - len(missing) - len(wrong)} of {len(names)} tensors fit this size of NCSN++",
            where=str(path),
            why="; ".join(f"{len(v)} {key}, first {v[0]}" for key, v in parts.items() if v),
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
