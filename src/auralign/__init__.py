"""auralign: audio models aligned with what a listener asked for.

Importing this package loads no model, touches no network and writes nothing::

    import auralign

    out = auralign.separate("mix.wav", "violin")
    out.target, out.residual, out.rate_hz, out.presence
    out.save("out")

    out = auralign.enhance("call.wav", strength=0.8)
    out.enhanced, out.residual, out.rate_hz
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from auralign.errors import AudioError, AuralignError, DataError, ModelUnavailableError, UsageError
from auralign.version import VERSION as __version__

if TYPE_CHECKING:
    from auralign.enhancement import Enhancement, SpeechEnhancer
    from auralign.separation import Query, Separation, Separator

__all__ = [
    "AudioError",
    "AuralignError",
    "DataError",
    "Enhancement",
    "ModelUnavailableError",
    "Query",
    "Separation",
    "Separator",
    "SpeechEnhancer",
    "UsageError",
    "__version__",
    "enhance",
    "load",
    "separate",
]

_LAZY = {
    "Query": "auralign.separation",
    "Separation": "auralign.separation",
    "Separator": "auralign.separation",
    "Enhancement": "auralign.enhancement",
    "SpeechEnhancer": "auralign.enhancement",
}
_loaded: dict[str, Any] = {}


@overload
def load(  # type: ignore[overload-overlap]  # the other names are separators
    model: Literal["flowse-small", "log-mmse"], *, device: str = "auto"
) -> SpeechEnhancer: ...
@overload
def load(model: str = "mars-sep-small", *, device: str = "auto") -> Separator: ...
def load(model: str = "mars-sep-small", *, device: str = "auto") -> Any:
    """A model, loaded once for many files: a :class:`Separator`, or a :class:`SpeechEnhancer`.

    Args:
        model: Name (see ``auralign models list``, or ``log-mmse``) or folder of a trained model.
        device: ``auto`` or ``cpu``; enhancement also takes ``cuda`` and ``mps``.
    """
    from auralign.enhancement import is_enhancer

    if is_enhancer(model):
        from auralign.enhancement import SpeechEnhancer

        return SpeechEnhancer.load(model, device=device)
    from auralign.separation import Separator

    return Separator.load(model, device=device)


def separate(source: Any, *queries: Query | str, model: str = "mars-sep-small") -> Any:
    """Take queried sounds out of a recording.

    Args:
        source: A path, a file object, or ``(array, rate_hz)`` with the array as channel x time.
        queries: Texts, or :class:`Query` objects for pictures, examples and negative queries.
        model: Name or folder of the model; it stays loaded for the next call.

    Returns:
        A :class:`Separation`, or a list of them for several queries.
    """
    from auralign.separation import Separator

    return _kept(Separator, model).separate(source, *queries)


def enhance(source: Any, *, model: str = "flowse-small", **treatment: Any) -> Enhancement:
    """Take the noise out of a recording of speech.

    Args:
        source: A path, a file object, or ``(array, rate_hz)`` with the array as channel x time.
        model: Name or folder of the model; it stays loaded for the next call.
        treatment: ``strength``, ``steps``, ``seed``, ``upper``, ``channels``: see :meth:`SpeechEnhancer.enhance`.
    """
    from auralign.enhancement import SpeechEnhancer

    found: Enhancement = _kept(SpeechEnhancer, model).enhance(source, **treatment)
    return found


def _kept(kind: Any, model: str) -> Any:
    """A model of one kind, loaded at most once."""
    key = f"{kind.__name__} {model}"
    if key not in _loaded:
        _loaded[key] = kind.load(model)
    return _loaded[key]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'auralign' has no attribute {name!r}")
