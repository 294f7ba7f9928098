"""auralign: audio models aligned with what a listener asked for.

Importing this package loads no model, touches no network and writes nothing::

    import auralign

    out = auralign.separate("mix.wav", "violin")
    out.target, out.residual, out.rate_hz, out.presence
    out.save("out")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auralign.errors import AudioError, AuralignError, DataError, ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from auralign.separation import Query, Separation, Separator

__version__ = "0.1.0"
__all__ = [
    "AudioError",
    "AuralignError",
    "DataError",
    "ModelUnavailableError",
    "Query",
    "Separation",
    "Separator",
    "UsageError",
    "load",
    "separate",
]

_LAZY = ("Query", "Separation", "Separator")
_loaded: dict[str, Any] = {}


def load(model: str = "mars-sep-small", *, device: str = "auto") -> Separator:
    """A separator, loaded once for many files and many queries.

    Args:
        model: Name (see ``auralign models list``) or folder of a trained model.
        device: ``auto`` or ``cpu``.
    """
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
    if model not in _loaded:
        _loaded[model] = load(model)
    return _loaded[model].separate(source, *queries)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import auralign.separation

        return getattr(auralign.separation, name)
    raise AttributeError(f"module 'auralign' has no attribute {name!r}")
