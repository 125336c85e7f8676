"""Who runs at the end of a run, as the END record says it."""

from typing import Final

MODE_L1: Final = 0
MODE_L2: Final = 1
MODE_SMM: Final = 2
MODE_DEAD: Final = 3
MODE_NAMES: Final = ("L1", "L2", "SMM", "dead")
