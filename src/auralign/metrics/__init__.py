"""Scores of separated sound. Evaluation only: nothing here is trained on, and nothing here loads a model."""
