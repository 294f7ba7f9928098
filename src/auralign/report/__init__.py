"""Results as one self-contained HTML file: players that switch in sync, spectrograms, scores, curves."""
