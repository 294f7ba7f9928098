"""Separation against its naive forms and against real time: one process, interleaved, smallest times.

Peak memory and the time from process start are taken in processes of their own. The shipped model is used where it is
installed; otherwise a random one of the same size, and ``model`` says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from auralign.errors import AuralignError
from auralign.models.separator import SeparatorModel
from auralign.runtime import weights
from auralign.separation import DEFAULT_MODEL
from auralign.separation.stream import StemStream

QUERY_DIM = 256
SHIPPED_SIZE = {"widths": (32, 64, 128, 224), "fine": 16, "hidden": 96, "query_dim": QUERY_DIM}
AGREEMENT = 1e-4
"""Largest difference of a sample that still counts as the same stem."""

Entry = dict[str, object]


@dataclass(frozen=True)
class Sizes:
    """How much work each entry does."""

    short_s: int = 30
    """Sound that is separated in this process."""
    queries: int = 8
    """Queries where there are many."""
    long_s: int = 3600
    """Sound whose peak memory is taken."""
    file_s: int = 10
    """Sound in a file that the command separates."""


def bench(*, repeats: int = 3, sizes: Sizes | None = None, model: Path | None = None) -> dict[str, Entry]:
    """Times of our separation and its peers, in the form that ``auralign bench separation --json`` prints.

    Args:
        repeats: Interleaved repeats of each.
        sizes: Work to do.
        model: Folder of a model; by default the shipped one.
    """
    sizes = sizes or Sizes()
    with tempfile.TemporaryDirectory(prefix="auralign-") as scratch:
        folder, name = _model_folder(Path(scratch), model)
        loaded = SeparatorModel.load(folder)
        entries = {
            "streamed_vs_whole_file": _streamed(loaded, sizes, repeats),
            "one_trunk_pass_vs_one_each": _many_queries(loaded, sizes, repeats),
            "stereo_48khz_vs_real_time": _real_time(loaded, sizes, repeats),
            "long_stream_vs_real_time": _long(folder, sizes),
            "start_to_stems_vs_length": _from_start(folder, Path(scratch), sizes),
        }
    return {key: {**entry, "model": name} for key, entry in entries.items()}


def _model_folder(scratch: Path, given: Path | None) -> tuple[Path, str]:
    """The model to time, and what to call it."""
    if given is not None:
        return given, given.name
    try:
        return weights.path(DEFAULT_MODEL, offline=True), DEFAULT_MODEL
    except AuralignError:
        torch.manual_seed(0)
        SeparatorModel("small", dict(SHIPPED_SIZE)).save(scratch / "random", {"name": "random"})
        return scratch / "random", "random weights of the shipped size"


def _noise(seconds: int, rate_hz: int, channels: int) -> Float32[np.ndarray, "channel time"]:
    generator = np.random.default_rng(0)
    return np.float32(0.1) * generator.standard_normal((channels, seconds * rate_hz), dtype=np.float32)


def _vectors(count: int) -> Float[Tensor, "query dim"]:
    vectors = torch.randn(count, QUERY_DIM, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(vectors, dim=-1)


def _through(
    model: SeparatorModel,
    wave: Float32[np.ndarray, "channel time"],
    rate_hz: int,
    query: Float[Tensor, "query dim"],
) -> Float32[np.ndarray, "query channel time"]:
    """Our form: blocks of one second through one stream."""
    stream = StemStream(model, query, rate_hz, len(wave), shared=False)
    blocks = [stream.process(wave[:, at : at + rate_hz]) for at in range(0, wave.shape[1], rate_hz)]
    blocks.append(stream.process(wave[:, :0], True))
    return np.concatenate([block.targets for block in blocks], axis=-1)


def _whole(
    model: SeparatorModel, wave: Float32[np.ndarray, "channel time"], query: Float[Tensor, "query dim"]
) -> Float32[np.ndarray, "query channel time"]:
    """The naive form: the whole spectrogram at once, and the whole network again for every query (16 kHz)."""
    sound = torch.from_numpy(wave)
    window = torch.hann_window(model.n_fft)
    stems = []
    with torch.inference_mode():
        for vector in query:
            spec = model.spectrogram(sound)
            middle = spec.abs().square().mean(dim=0, keepdim=True).sqrt()
            state = model.net.analyse(
                torch.complex(middle, torch.zeros_like(middle)), sound.mean(0, keepdim=True)
            )
            mask = model.net.answer(state, vector[None, None]).mask[0]
            stems.append(
                torch.istft(
                    mask * spec, model.n_fft, model.hop, window=window, length=sound.shape[-1]
                ).numpy()
            )
    return np.stack(stems)


def _compare(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Smallest times of both, taken in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for n, call in enumerate((ours, peer)):
            start = time.perf_counter()
            call()
            best[n] = min(best[n], time.perf_counter() - start)
    return best[0], best[1]


def _entry(ours_s: float, peer_s: float, peer: str, work: str) -> Entry:
    return {"ours_s": ours_s, "peer_s": peer_s, "ratio": peer_s / ours_s, "peer": peer, "work": work}


def _streamed(model: SeparatorModel, sizes: Sizes, repeats: int) -> Entry:
    wave, query = _noise(sizes.short_s, model.rate_hz, 2), _vectors(sizes.queries)
    times = _compare(
        lambda: _through(model, wave, model.rate_hz, query), lambda: _whole(model, wave, query), repeats
    )
    work = f"{sizes.short_s} s, stereo, 16 kHz, {sizes.queries} queries"
    return _entry(*times, "whole spectrogram at once, the network once a query", work)


def _many_queries(model: SeparatorModel, sizes: Sizes, repeats: int) -> Entry:
    wave, query = _noise(sizes.short_s, model.rate_hz, 1), _vectors(sizes.queries)

    def together() -> Float32[np.ndarray, "query channel time"]:
        return _through(model, wave, model.rate_hz, query)

    def one_by_one() -> Float32[np.ndarray, "query channel time"]:
        return np.concatenate([_through(model, wave, model.rate_hz, one[None]) for one in query])

    difference = float(np.abs(together() - one_by_one()).max())
    if not difference <= AGREEMENT:
        raise AuralignError(f"queries asked together and alone differ by {difference:.1e}", where="bench")
    work = f"{sizes.short_s} s, mono, 16 kHz, {sizes.queries} queries"
    entry = _entry(*_compare(together, one_by_one, repeats), "one stream a query", work)
    return {**entry, "max_difference": difference}


def _real_time(model: SeparatorModel, sizes: Sizes, repeats: int) -> Entry:
    wave, query = _noise(sizes.short_s, 48_000, 2), _vectors(1)
    ours_s, _ = _compare(lambda: _through(model, wave, 48_000, query), lambda: None, repeats)
    work = f"{sizes.short_s} s, stereo, 48 kHz, 1 query, {torch.get_num_threads()} threads"
    return _entry(ours_s, float(sizes.short_s), "real time", work)


def _long(folder: Path, sizes: Sizes) -> Entry:
    """A long stream in a process of its own, for its peak memory."""
    words = [sys.executable, "-m", __spec__.name if __spec__ else __name__, str(folder), str(sizes.long_s)]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    work = f"{sizes.long_s} s, stereo, 48 kHz, 1 query, streamed in a process of its own"
    entry = _entry(found["seconds"], float(sizes.long_s), "real time", work)
    return {**entry, "peak_mb": found["peak_mb"]}


def _from_start(folder: Path, scratch: Path, sizes: Sizes) -> Entry:
    """The command as a user runs it: process start, imports, encoder, model, file in, stems out."""
    source, out = scratch / "mix.wav", scratch / "out"
    soundfile.write(source, _noise(sizes.file_s, 44_100, 2).T, 44_100, subtype="PCM_16")
    program = "import sys; from auralign.cli import main; sys.exit(main())"
    words = ["separate", str(source), "-q", "violin", "--model", str(folder), "-o", str(out), "--quiet"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True)
    spent = time.perf_counter() - start
    work = f"auralign separate of a {sizes.file_s}-s stereo file at 44.1 kHz, one text query"
    return _entry(spent, float(sizes.file_s), "the recording's own length", work)


def stream_of(folder: Path, seconds: int) -> dict[str, float]:
    """Separate so many seconds of stereo noise at 48 kHz; time and peak memory of this process."""
    model = SeparatorModel.load(folder)
    stream = StemStream(model, _vectors(1), 48_000, 2)
    second = _noise(1, 48_000, 2)
    start = time.perf_counter()
    for _ in range(seconds):
        stream.process(second)
    stream.process(second[:, :0], True)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Most memory that this process has held, in MB; Linux counts a parent's into ``ru_maxrss``, hence /proc."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        kib = next(float(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return kib * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    sys.stdout.write(json.dumps(stream_of(Path(sys.argv[1]), int(sys.argv[2]))))
