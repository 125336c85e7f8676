"""The engine: byte codec, mutators, campaign, corpus, reports and the command line."""

from typing import Final

__version__: Final = "0.1.0"
