"""Signals in and out: files, rates, spectra, mixing, loudness."""
