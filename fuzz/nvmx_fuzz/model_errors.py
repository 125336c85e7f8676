"""What is our own bug: kept apart from findings, under another name and another exit status."""

from pathlib import Path
from typing import Final

from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.files import content_name, write_whole


class ModelErrors:
    """The inputs for which the model contradicts itself, in one folder."""

    def __init__(self, folder: Path, l0_name: str) -> None:
        """Keep them in *folder*, which exists; they happened with the L0 called *l0_name*."""
        self._folder: Final = folder
        self._l0_name: Final = l0_name
        self.seen: Final[list[tuple[str, str]]] = []
        """(what was raised, the path of its scenario or "")."""

    def keep(self, data: bytes, report: str) -> Path:
        """Write an input and the traceback it led to; raises BadFile."""
        scenario = decode(data)
        content = encode(scenario)
        name = content_name(content)[:16]
        path = self._folder / f"{name}.scn"
        last = report.strip().splitlines()[-1]
        comments = (f"our own bug: {last}", f"with L0 {self._l0_name}")
        write_whole(path.with_suffix(".bin"), content)
        write_whole(path, format_scenario(scenario, comments).encode())
        write_whole(path.with_suffix(".txt"), report.encode())
        self.seen.append((last, str(path)))
        return path

    def crashed(self, sentence: str) -> None:
        """Note that the fuzzing process itself broke."""
        self.seen.append((sentence, ""))
