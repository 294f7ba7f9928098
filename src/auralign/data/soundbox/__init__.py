"""The real-sound corpus: recordings and rendered instruments from Debian packages."""

from __future__ import annotations

from auralign.data.soundbox.builder import build

__all__ = ["build"]
