"""Scenarios as an image for a processor that is not here, which offers all that the model knows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.image import boot_image
from nvmx_fuzz.boot.iso import iso_of_image
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.realise.vmcs import NotRealisableError
from nvmx_fuzz.scenario_files import load

if TYPE_CHECKING:
    from nvmx_fuzz.realise.script import Operation

_ALL: Final = 0xFFFFFFFF << 32
EVERYTHING: Final = Capabilities(
    (0, _ALL, _ALL, _ALL, _ALL, 1 << 30 | 0x1E0, 0, 0, 0, 0, 0, _ALL, (1 << 64) - 1)
)
"""Every control, every activity state, injections of length 0."""


def image_of(
    files: Sequence[str], *, is_disc: bool
) -> tuple[bytes, list[str], list[tuple[str, str]]]:
    """The image, the names of its scenarios by number, and those left out with the reason.

    Raises: BadFile, MissingError.
    """
    scripts: list[list[Operation]] = []
    names, refused = [], []
    for name in files:
        scenario = load(name).scenario
        try:
            scripts.append(stand_alone_moved(scenario, EVERYTHING).realised.script)
            names.append(name)
        except NotRealisableError as error:
            refused.append((name, error.reason))
    image = boot_image(scripts)
    return (iso_of_image(image) if is_disc else image), names, refused
