r"""Speech enhancement by a flow from the noisy recording to clean speech, and what every enhancer offers.

Lee et al. 2025, *FlowSE* (flowmse, arXiv:2508.06840): states are compressed complex spectra, the prior is the noisy
one plus complex noise, :math:`x_1 = y + \sigma z`. The recording is brought to one level first and back afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from auralign.errors import ModelUnavailableError, UsageError
from auralign.flow.ode import Solver, solve
from auralign.flow.path import FLOWMSE_SCALE, Velocity, noisy_mean, standard_normal_like, velocity_from_data
from auralign.flow.schedule import Grid, stopped, uniform
from auralign.models.compressed_spectrum import CompressedSpectrum
from auralign.models.flow_nets import make_network
from auralign.models.model_file import read_model, write_model
from auralign.runtime.seed import derive

FORMAT = "auralign-enhancer-1"
RATE_HZ = 16_000
LEVEL = 0.1
"""Root of the mean square that recordings are brought to (rms), or ten times it for the largest sample (peak)."""
LEAST_LEVEL = 1e-5
"""What is fainter than -100 dBFS is not made louder than that would be."""


@runtime_checkable
class Enhancer(Protocol):
    """Anything that takes noise out of speech."""

    name: str
    """What it is called in tables."""
    rate_hz: int
    """The rate it hears."""

    def enhance_wave(
        self, wave: Float[Tensor, "batch time"], *, steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "batch time"]:
        """The speech in recordings of one channel, same length, start and level.

        Args:
            wave: Recordings.
            steps: Evaluations of the network, where it is asked more than once; ``None`` takes its own number.
            seed: Equal seeds give equal results; item i of a batch has noise of its own.
        """


@final
class EnhancerModel(nn.Module):
    """A flow with its front end.

    Args:
        network: Name in :mod:`auralign.models.flow_nets`.
        options: Its options.
        front: Options of :class:`CompressedSpectrum`.
        scale: σ of the prior.
        steps: Evaluations when nothing else is asked for.
        grid: ``uniform`` times, or ``stopped`` ones that end with a step from ``t_eps``.
        t_eps: Least time that training draws.
        level: What is made equal: the mean square, or the largest sample (SGMSE+ and flowmse).
        name: What it is called in tables.
    """

    rate_hz = RATE_HZ

    def __init__(
        self,
        network: str = "band_unet",
        options: Mapping[str, Any] | None = None,
        *,
        front: Mapping[str, Any] | None = None,
        scale: float = FLOWMSE_SCALE,
        steps: int = 4,
        grid: Literal["uniform", "stopped"] = "uniform",
        t_eps: float = 0.03,
        level: Literal["rms", "peak"] = "rms",
        name: str = "flowse",
    ) -> None:
        super().__init__()
        if grid not in ("uniform", "stopped") or level not in ("rms", "peak"):
            raise UsageError(f"grid {grid!r}, level {level!r}", hint="uniform or stopped, rms or peak")
        self.settings: dict[str, Any] = {
            "network": network,
            "options": dict(options or {}),
            "front": dict(front or {}),
            "scale": scale,
            "steps": steps,
            "grid": grid,
            "t_eps": t_eps,
            "level": level,
        }
        self.name, self.scale, self.steps, self.t_eps = name, scale, steps, t_eps
        self.front = CompressedSpectrum(**self.settings["front"])
        self.answer, self.net = make_network(network, self.settings["options"])
        self.card: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def gain(self, wave: Float[Tensor, "*batch time"]) -> Float[Tensor, "*batch 1"]:
        """What recordings are multiplied by before anything else."""
        if self.settings["level"] == "rms":
            now = wave.square().mean(-1, keepdim=True).sqrt()
            return LEVEL / now.clamp_min(LEAST_LEVEL)
        return 1 / wave.abs().amax(-1, keepdim=True).clamp_min(LEAST_LEVEL)

    def spectrogram(self, wave: Float[Tensor, "*batch time"]) -> Complex[Tensor, "*batch freq frame"]:
        """Compressed spectra; the level is the caller's."""
        return self.front.spectrum(wave)

    def waveform(
        self, spec: Complex[Tensor, "*batch freq frame"], length: int
    ) -> Float[Tensor, "*batch time"]:
        """Back to so many samples."""
        return self.front.waveform(spec, length)

    def data(
        self,
        x: Complex[Tensor, "batch freq frame"],
        noisy: Complex[Tensor, "batch freq frame"],
        t: Float[Tensor, " batch"],
    ) -> Complex[Tensor, "batch freq frame"]:
        """Expected clean spectra x̂₀ of states at times t."""
        said = cast(Tensor, self.net(x, noisy, t.float()))
        return said if self.answer == "data" else x - t.float()[:, None, None] * said

    def velocity(self, noisy: Complex[Tensor, "batch freq frame"]) -> Velocity:
        """dx/dt around these recordings, for :mod:`auralign.flow`."""

        def field(x: Tensor, t: Tensor) -> Tensor:
            said = cast(Tensor, self.net(x, noisy, t.float()))
            return velocity_from_data(x, said, t) if self.answer == "data" else said

        return field

    def times(self, steps: int | None = None) -> Grid:
        """The grid of so many evaluations."""
        count = self.steps if steps is None else steps
        if count < 1:
            raise UsageError(f"{count} steps are none", where="steps", hint="take 1 to 8")
        return (
            stopped(count, self.t_eps) if self.settings["grid"] == "stopped" and count > 1 else uniform(count)
        )

    @torch.inference_mode()
    def enhance_wave(
        self,
        wave: Float[Tensor, "batch time"],
        *,
        steps: int | None = None,
        seed: int = 0,
        solver: Solver = "euler",
    ) -> Float[Tensor, "batch time"]:
        """See :class:`Enhancer`."""
        if not bool(wave.isfinite().all()):
            raise UsageError("the recording has samples that are not finite", where=self.name)
        if not wave.numel():
            return wave.clone()
        gain = self.gain(wave.float())
        noisy = self.spectrogram((wave.float() * gain).to(self.device))
        path = noisy_mean(noisy, scale=self.scale)
        start = path.restore(_noise_of_each(noisy, seed))
        clean = solve(self.velocity(noisy), start, self.times(steps), solver=solver)
        return self.waveform(clean, wave.shape[-1]).to(wave) / gain

    def save(self, folder: Path, card: Mapping[str, Any], *, half: bool = True) -> None:
        """Write ``model.safetensors`` and ``card.json``; `half` stores matrices as float16."""
        meta = {"format": FORMAT, "settings": json.dumps(self.settings)}
        write_model(folder, self.state_dict(), meta, {"name": self.name, **card}, half=half)

    @classmethod
    def load(cls, folder: Path) -> EnhancerModel:
        """Read what :meth:`save` wrote; the file is checked against its card.

        Raises:
            ModelUnavailableError: The file is missing, damaged or of another kind.
        """
        tensors, meta, path = read_model(folder, kind="speech enhancer", wanted=FORMAT)
        card_file = path.with_name("card.json")
        try:
            settings = json.loads(meta["settings"])
            card = json.loads(card_file.read_text(encoding="utf-8")) if card_file.exists() else {}
            model = cls(**settings, name=str(card.get("name", path.parent.name)))
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, UsageError, RuntimeError) as error:
            raise ModelUnavailableError(
                "the model's description does not fit its weights",
                where=str(path),
                why=str(error).splitlines()[-1].strip(),
                hint="see `auralign models list`",
            ) from error
        model.card = card
        return model.eval()


def _noise_of_each(noisy: Tensor, seed: int) -> Tensor:
    """Noise that belongs to the place in the batch, whatever else is in it."""
    rows = []
    for item in range(len(noisy)):
        generator = torch.Generator().manual_seed(derive(seed, "prior", item))
        rows.append(standard_normal_like(noisy[item : item + 1].cpu(), generator=generator))
    return torch.cat(rows).to(noisy.device)
