"""Policies: what an agent may do, as distributions with sample, log-probability, entropy and divergence."""
