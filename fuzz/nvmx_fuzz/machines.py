"""The machines that `nvmx-fuzz compare` sets beside `bare`, by name."""

from collections.abc import Callable
from typing import Final

from nvmx_fuzz.compare_minimise import Guess
from nvmx_fuzz.outcomes import Comparer


def open_machine(name: str) -> Comparer:
    """Start a machine of MACHINES.

    Raises: UnavailableError, here or when it first runs something.
    """
    return _OPENERS[name]()


def _bochs() -> Comparer:
    from nvmx_fuzz.bochs.worker import Worker  # noqa: PLC0415 - the others do without

    return Worker()


def _booting(name: str) -> Callable[[], Comparer]:
    def start() -> Comparer:
        try:
            from nvmx_fuzz.boot.machine import (  # noqa: PLC0415 - loads the assembler
                BOOTING,
                BootingMachine,
            )
        except ModuleNotFoundError as error:
            from nvmx_fuzz.outcomes import MissingError  # noqa: PLC0415

            raise MissingError(f"{error}; try: pip install -e '.[bochs]'") from None
        return BootingMachine(BOOTING[name])

    return start


def guess_for(name: str, machine: Comparer) -> Guess:
    """What predicts smaller scenarios for a machine, for one that the catalogue of bugs knows the L0 of."""
    if not name.startswith("kvm"):
        return lambda _kind, _shown: None
    from nvmx_fuzz.boot.machine import BootingMachine  # noqa: PLC0415 - loads the assembler
    from nvmx_fuzz.boot.predicted_minimum import predicted_minimum  # noqa: PLC0415

    assert isinstance(machine, BootingMachine)
    capabilities, version = machine.capabilities, machine.version
    return lambda kind, shown: predicted_minimum(kind, shown, capabilities, version)


_OPENERS: Final[dict[str, Callable[[], Comparer]]] = {
    "bochs": _bochs,
    "bochs-boot": _booting("bochs-boot"),
    "kvm": _booting("kvm"),
    "kvm-bochs": _booting("kvm-bochs"),
}
MACHINES: Final = tuple(_OPENERS)
