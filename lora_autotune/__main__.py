"""``python -m lora_autotune``: the command line."""

from __future__ import annotations

import sys

from lora_autotune.cli import main

if __name__ == "__main__":
    sys.exit(main())
