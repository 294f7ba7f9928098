"""Speech out of noise: streams, files and a model loaded once.

>>> EnhanceOptions(strength=0.7).treatment.strength
0.7
"""

from auralign.batch.outcome import FileOutcome
from auralign.enhancement.plan import EnhanceOptions
from auralign.enhancement.result import Enhancement
from auralign.enhancement.session import CLASSIC, DEFAULT_MODEL, SpeechEnhancer, is_enhancer
from auralign.enhancement.stream import Treatment

__all__ = [
    "CLASSIC",
    "DEFAULT_MODEL",
    "EnhanceOptions",
    "Enhancement",
    "FileOutcome",
    "SpeechEnhancer",
    "Treatment",
    "is_enhancer",
]
