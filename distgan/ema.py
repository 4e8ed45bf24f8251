"""`distgan ema`, run by path or as a module; distgan/commands/ema.py says what it does."""

import sys
from pathlib import Path

if not __package__:  # run by path: import the package from the checkout, not this folder's modules by bare name
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distgan.commands.ema import main

if __name__ == "__main__":
    sys.exit(main())
