"""Batches of recordings: which files are written, all of them or none, and a record of what made them.

Separation and enhancement give their own streams; everything about files is here.
"""
