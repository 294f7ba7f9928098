"""auralign: audio models aligned with what a listener asked for."""

__version__ = "0.1.0"
