"""Scenarios on machines that boot the image: `bochs-boot`, and those that put a Linux KVM under it."""

import platform
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Final, NamedTuple

from nvmx_core.bugs.versions import numbers_of_release, version_of_release
from nvmx_fuzz.boot.batch import LAST_LINE, Answer, Batch, BootError
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.divergences import ANY_KERNEL
from nvmx_fuzz.boot.emulator import Ended, Settings, run_disc
from nvmx_fuzz.boot.host import is_in_bochs, run_monitor
from nvmx_fuzz.boot.iso import iso_of_image
from nvmx_fuzz.boot.linux import disc_with_kvm, kernel_release, known_release, kvm_in_bochs
from nvmx_fuzz.boot.moved import fit_booting, stand_alone_moved
from nvmx_fuzz.boot.naming import Naming
from nvmx_fuzz.boot.reading import checksum, journal_of, visible
from nvmx_fuzz.boot.remembered import remembered
from nvmx_fuzz.boot.standalone import Standalone
from nvmx_fuzz.codec import decode
from nvmx_fuzz.compare import first_difference
from nvmx_fuzz.outcomes import DIFFERENT, INCIDENT, NOT_REALISABLE, SAME, Outcome
from nvmx_fuzz.realise.vmcs import NotRealisableError

BATCH_MAX: Final = 1000
"""Scenarios of one boot."""
_EMULATED: Final = Settings(megabytes=128, silent_seconds=1.0, start_seconds=60.0)
_EMULATED_LINUX: Final = Settings(megabytes=512, silent_seconds=30.0, start_seconds=120.0)


class Kind(NamedTuple):
    """What a machine is made of.

    ``release``: how the kernel with its L0 calls itself, None for no L0; ``on_bochs``: whether Bochs runs it;
    ``parts``: what names all that its capabilities follow from, where asking them costs a long boot.
    """

    name: str
    batch: Callable[[], Batch]
    release: Callable[[], str] | None
    on_bochs: Callable[[], bool]
    parts: Callable[[], str] | None = None


class BootingMachine:
    """A machine that boots the image (a `Comparer`)."""

    shrink_runs: Final = 0
    batch_size: Final = BATCH_MAX

    def __init__(self, kind: Kind) -> None:
        self._kind: Final = kind
        self._batch: Final = kind.batch()
        self.restarts = 0

    @cached_property
    def _release(self) -> str:
        """How the kernel with its L0 calls itself; "" for no L0."""
        return self._kind.release() if self._kind.release else ""

    @cached_property
    def version(self) -> str:
        """The catalogue's name of its L0; "" for none."""
        return version_of_release(self._release) if self._release else ""

    @cached_property
    def kernel(self) -> tuple[int, int]:
        """The version of the kernel with its L0; that of none without one."""
        return numbers_of_release(self._release) or ANY_KERNEL

    @property
    def _has_l0(self) -> bool:
        return self._kind.release is not None

    @cached_property
    def on_bochs(self) -> bool:
        """Whether its processor is Bochs."""
        return self._kind.on_bochs()

    def naming(self, capabilities: Capabilities) -> Naming:
        """How outcomes of it are called where scenarios were fitted to *capabilities*."""
        # A host inside Bochs is what the machine of that name starts.
        name = "kvm-bochs" if self._has_l0 and self.on_bochs else self._kind.name
        return Naming(name, self.on_bochs, capabilities, self.version, self.kernel)

    @property
    def is_at_hand(self) -> bool:
        """Whether the kernel with its L0 is here, so that asking for its release fetches nothing."""
        return self._kind.release is not kernel_release or bool(known_release())

    @property
    def label(self) -> str:
        """Its name with the release of its L0: what journals of it are kept under."""
        return f"{self._kind.name}-{self._release}" if self._release else self._kind.name

    @cached_property
    def capabilities(self) -> Capabilities:
        """What its processor offers.

        Raises: BootError, MissingToolError.
        """
        capabilities = remembered(self._kind.parts, self._batch.capabilities)
        problem = capabilities.suffices()
        if problem:
            raise BootError(problem)
        return self.with_habits(capabilities)._replace(has_monitor=self._has_l0)

    def with_habits(self, capabilities: Capabilities) -> Capabilities:
        """Capabilities with what no MSR tells of this machine, but for our monitor."""
        return capabilities.with_habits(on_bochs=self.on_bochs, has_l0=self._has_l0)

    @property
    def boots(self) -> int:
        """How often the machine was booted."""
        return self._batch.boots

    def can_run(self, content: bytes) -> bool:
        """Whether a scenario can stand alone on it."""
        try:
            stand_alone_moved(decode(content), self.capabilities)
        except NotRealisableError:
            return False
        return True

    def compare(self, scenarios: Sequence[bytes]) -> Iterator[Outcome]:
        """The outcome of each scenario, in order."""
        for start in range(0, len(scenarios), BATCH_MAX):
            yield from self._compare(scenarios[start : start + BATCH_MAX])

    def _compare(self, scenarios: Sequence[bytes]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        realised: dict[int, Standalone] = {}
        for index, content in enumerate(scenarios):
            try:
                realised[index] = stand_alone_moved(decode(content), self.capabilities)
            except NotRealisableError as error:
                outcomes[index] = Outcome(NOT_REALISABLE, error.reason)
        before = self._batch.boots
        answers = self._batch.run([one.realised.script for one in realised.values()])
        self.restarts += max(self._batch.boots - before - 1, 0)
        for (index, one), answer in zip(realised.items(), answers, strict=True):
            outcomes[index] = outcome_of(one, answer, has_rf=self.capabilities.saves_rf)
        return [outcomes[index] for index in range(len(scenarios))]

    def known(self, content: bytes, outcome: Outcome) -> str:
        """What the outcome is called (`Naming.known`); "" if nothing is known of it."""
        naming = self.naming(self.capabilities)
        return naming.known(fit_booting(decode(content), self.capabilities), outcome)

    def memory(self) -> int:
        """Nothing stays resident between two boots."""
        return 0

    def close(self) -> None:
        """Every boot has ended already."""


def outcome_of(expected: Standalone, answer: Answer, *, has_rf: bool) -> Outcome:
    """The outcome of a scenario whose line is there, or is not."""
    rules = tuple(entry.rule for entry in expected.realised.entries)
    if answer.line is None:
        return Outcome(INCIDENT, answer.reason, None, rules)
    shown = visible(journal_of(answer.line, expected, answer.smm), has_rf=has_rf)
    ours = visible(expected.realised.journal, has_rf=has_rf)
    found = first_difference(ours, shown, expected.realised.entries)
    if answer.reason and not found:  # it shows the same, but is another scenario
        return Outcome(INCIDENT, answer.reason, None, rules)
    return Outcome(DIFFERENT if found else SAME, "", found, rules, checksum(shown))


def _bochs_boot() -> Batch:
    """The image on the full Bochs, without any hypervisor below."""

    def start(image: bytes) -> Ended:
        return run_disc(iso_of_image(image), _EMULATED, LAST_LINE)

    return Batch(start, sweep=True)


def _kvm_bochs() -> Batch:
    """The image below a stock Linux KVM, which runs inside the full Bochs."""

    def start(image: bytes) -> Ended:
        return run_disc(disc_with_kvm(image), _EMULATED_LINUX, LAST_LINE)

    return Batch(start, doorbell=True)


def _kvm() -> Batch:
    """The image below the KVM of this host."""
    return Batch(run_monitor, doorbell=True)


def _always() -> bool:
    return True


_KINDS: Final = (
    Kind("bochs-boot", _bochs_boot, None, _always),
    Kind("kvm", _kvm, platform.release, is_in_bochs),
    Kind("kvm-bochs", _kvm_bochs, kernel_release, _always, kvm_in_bochs),
)
BOOTING: Final[dict[str, Kind]] = {kind.name: kind for kind in _KINDS}
