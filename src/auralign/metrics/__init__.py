"""Scores of separated and enhanced sound. A reward may wrap one, and reports then mark it as trained on."""
