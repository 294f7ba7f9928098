"""Rewards: what a separated sound is worth, as functions of a scene."""
