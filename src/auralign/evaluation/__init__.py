"""Evaluation by each paper's protocol: tables of one row per item, presets, oracles and metric benchmarks."""
