"""``python -m auralign``: the same as the ``auralign`` command."""

from __future__ import annotations

import sys

from auralign.cli import main

if __name__ == "__main__":
    sys.exit(main())
