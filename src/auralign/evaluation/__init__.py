"""Scoring models: protocols, tables, comparisons, benchmarks."""

from auralign.evaluation.run import EvaluationResult, run_separation

__all__ = ["EvaluationResult", "run_separation"]
