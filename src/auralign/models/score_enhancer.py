r"""Speech enhancement by a score and the diffusion of SGMSE+ (Richter et al. 2023, arXiv:2208.05830).

The recording is divided by its largest sample, compressed (`compressed_spectrum`), and sampled by predictor and
corrector (`flow.ouve`): 30 steps ask the network 60 times. `enhancer.EnhancerModel` is the same for flows, which need
5; both are an `enhancer.Enhancer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from auralign.errors import ModelUnavailableError, UsageError
from auralign.flow.ouve import OUVE, PredictorCorrector, Score, sample
from auralign.flow.schedule import stopped
from auralign.models.compressed_spectrum import CompressedSpectrum
from auralign.models.model_file import read_model, write_model
from auralign.models.ncsnpp import NCSNpp
from auralign.runtime.seed import derive

FORMAT = "auralign-score-enhancer-1"
LEAST_PEAK = 1e-5


@final
class ScoreEnhancer(nn.Module):
    """A score network with its process, sampler and front end.

    Args:
        options: Options of :class:`NCSNpp`.
        front: Options of :class:`CompressedSpectrum`.
        sde: Options of :class:`OUVE`.
        sampler: Options of :class:`PredictorCorrector`.
        steps: Steps when nothing else is asked for.
        t_eps: Least time at which the network is asked.
        name: What it is called in tables.
    """

    rate_hz = 16_000

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        front: Mapping[str, Any] | None = None,
        sde: Mapping[str, Any] | None = None,
        sampler: Mapping[str, Any] | None = None,
        steps: int = 30,
        t_eps: float = 0.03,
        name: str = "sgmse",
    ) -> None:
        super().__init__()
        parts = {"options": options, "front": front, "sde": sde, "sampler": sampler}
        self.settings: dict[str, Any] = {
            **{key: dict(value or {}) for key, value in parts.items()},
            "steps": steps,
            "t_eps": t_eps,
        }
        self.name, self.steps, self.t_eps = name, steps, t_eps
        self.front = CompressedSpectrum(**self.settings["front"])
        self.sde, self.sampler = OUVE(**self.settings["sde"]), PredictorCorrector(**self.settings["sampler"])
        self.net = NCSNpp(**self.settings["options"])
        self.card: dict[str, Any] = {}

    def score(self, noisy: Complex[Tensor, "batch freq frame"]) -> Score:
        """The gradient of ln p_t around these recordings, for :func:`auralign.flow.ouve.sample`."""
        return lambda x, t: self.net(x, noisy, t.float())

    @torch.inference_mode()
    def enhance_wave(
        self, wave: Float[Tensor, "batch time"], *, steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "batch time"]:
        """The speech in recordings of one channel, same length and level; see :class:`Enhancer`.

        Args:
            wave: Recordings.
            steps: Predictor steps, at least 2; each asks the network once more for every correction.
            seed: Equal seeds give equal results, whatever else is in the batch.

        Raises:
            UsageError: Samples that are not finite, or fewer than two steps.
        """
        if not bool(wave.isfinite().all()):
            raise UsageError("the recording has samples that are not finite", where=self.name)
        times = stopped(self.steps if steps is None else steps, self.t_eps)
        if not wave.numel():
            return wave.clone()
        device = next(self.parameters()).device
        peak = wave.float().abs().amax(-1, keepdim=True).clamp_min(LEAST_PEAK)
        noisy = self.front.spectrum((wave.float() / peak).to(device))
        rows = []
        for item in range(len(noisy)):
            y = noisy[item : item + 1]
            generator = torch.Generator(device).manual_seed(derive(seed, "diffusion", item))
            rows.append(sample(self.sde, self.score(y), y, times, generator=generator, how=self.sampler))
        clean = self.front.waveform(torch.cat(rows), wave.shape[-1])
        return (clean.to(peak) * peak).to(wave)

    def save(self, folder: Path, card: Mapping[str, Any], *, half: bool = True) -> None:
        """Write ``model.safetensors`` and ``card.json``; `half` stores matrices as float16."""
        meta = {"format": FORMAT, "settings": json.dumps(self.settings)}
        write_model(folder, self.state_dict(), meta, {"name": self.name, **card}, half=half)

    @classmethod
    def load(cls, folder: Path) -> ScoreEnhancer:
        """Read what :meth:`save` wrote; the file is checked against its card.

        Raises:
            ModelUnavailableError: The file is missing, damaged or of another kind.
        """
        tensors, meta, path = read_model(folder, kind="score enhancer", wanted=FORMAT)
        card_file = path.with_name("card.json")
        try:
            card = json.loads(card_file.read_text(encoding="utf-8")) if card_file.exists() else {}
            with torch.device("meta"):
                model = cls(**json.loads(meta["settings"]), name=str(card.get("name", path.parent.name)))
            model.load_state_dict(tensors, assign=True)
        except (KeyError, TypeError, ValueError, UsageError, RuntimeError) as error:
            raise ModelUnavailableError(
                "the model's description does not fit its weights",
                where=str(path),
                why=str(error).splitlines()[-1].strip(),
                hint="convert the published checkpoint again",
            ) from error
        model.card = card
        return model.eval()
