"""Separating recordings: queries, streams, files.

>>> Query(texts=("violin",)).stem
'violin'
"""

from auralign.batch.outcome import FileOutcome
from auralign.separation.plan import SeparateOptions
from auralign.separation.query import Query
from auralign.separation.result import Separation
from auralign.separation.session import DEFAULT_MODEL, Separator

__all__ = ["DEFAULT_MODEL", "FileOutcome", "Query", "SeparateOptions", "Separation", "Separator"]
