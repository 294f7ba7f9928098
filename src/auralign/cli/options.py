"""Kinds of options that several commands share."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

Flag = Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")]
"""A switch: off unless named, with no --no- twin."""
