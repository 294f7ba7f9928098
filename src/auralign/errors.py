"""What can go wrong, said in four parts: what, where, why, and what to do.

The command line turns each class into its exit code; Python callers catch :class:`AuralignError`.
"""

from __future__ import annotations


class AuralignError(Exception):
    """Base of every error that auralign raises on purpose.

    Args:
        what: The failure in one sentence, with the offending value.
        where: File, option or record it belongs to.
        why: The cause, when known.
        hint: What the user can do about it.

    >>> str(AuralignError("the file has no samples", where="a.wav", hint="check the recording"))
    'a.wav: the file has no samples. To fix: check the recording'
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        self.what, self.where, self.why, self.hint = what, where, why, hint
        text = f"{where}: {what}" if where else what
        if why:
            text += f" ({why})"
        if hint:
            text += f". To fix: {hint}"
        super().__init__(text)


class AudioError(AuralignError):
    """A sound cannot be read, processed or written."""


class DataError(AuralignError):
    """A corpus, manifest or list is missing, damaged or contradictory."""


class UsageError(AuralignError):
    """The caller asked for something that does not exist or does not fit together."""

    exit_code = 2


class ModelUnavailableError(AuralignError):
    """Weights are missing, damaged, or of another version than the rest of the model."""

    exit_code = 3
