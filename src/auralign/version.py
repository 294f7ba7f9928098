"""The version, where every layer may look it up."""

VERSION = "0.1.0"
