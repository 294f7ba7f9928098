"""Equations of reinforcement learning: advantages, surrogates, trust regions. No loops."""
