"""One Bochs CPU in this process: brought up once, then runs scripts of L1.

A process holds one session only, and a bug of the emulator may end the process: ``worker.py`` keeps it apart.
"""

import ctypes
import mmap
import struct
from typing import Final

from nvmx_core.guests.memory import CODE, HANDLER, page_address
from nvmx_fuzz.bochs.helper import CPU_MODELS, library_version, load_helper
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.image import base_image
from nvmx_fuzz.realise.l1_program import END, l1_program
from nvmx_fuzz.realise.schedule import Item
from nvmx_fuzz.realise.script import encode, preparation
from nvmx_fuzz.realise.vmcs import L1_CR0, L1_CR4, L1_EFER

STEPS_MAX: Final = 200_000
"""Places of L1 and boundaries of L2 that a run passes at most."""


_PLACES: Final = (
    "launch", "resume", "launch_shadow", "resume_shadow", "mark", "exited", "failed", "record", "record2",
    "end",
)  # fmt: skip
"""Labels of L1's program that the helper knows, in the order of its `struct places`."""

RawRecord = tuple[int, ...]


class Session:
    """The CPU, its memory, and L1 waiting for a script."""

    def __init__(self) -> None:
        self._helper: Final = load_helper()
        # The CPU joins page and offset with OR: the buffer has to begin at a page.
        pages = mmap.mmap(-1, layout.MEMORY_SIZE)
        self._memory: Final = (ctypes.c_uint8 * layout.MEMORY_SIZE).from_buffer(pages)
        self._base = base_image()
        ctypes.memmove(self._memory, self._base, layout.MEMORY_SIZE)
        self._helper.nvmx_memory(self._memory, ctypes.c_uint64(layout.MEMORY_SIZE))
        self._tell_places()
        self._session: Final = _power_on()
        self._write_script(struct.pack("<4Q", END, 0, 0, 0))
        self._started = False

    def _tell_places(self) -> None:
        labels = l1_program().labels
        places = [labels[name] for name in _PLACES]
        places += [page_address(CODE), page_address(HANDLER) + layout.PAGE]
        places += [layout.VARIABLES + layout.MAILBOX, layout.VARIABLES + layout.MAILBOX2]
        places += [layout.VARIABLES + layout.STOP_FLAG, layout.POSTED_INTERRUPT_DESCRIPTOR]
        self._helper.nvmx_places((ctypes.c_uint64 * len(places))(*places))

    def _write_script(self, script: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self._memory) + layout.SCRIPT, script, len(script))

    def run(self, script: bytes, schedule: list[Item]) -> list[RawRecord]:
        """Run one script from a clean machine; the records of the log, kind first."""
        if not self._started:
            self._start()
        self._reset()
        self._write_script(script)
        return self._call(schedule, first=False)

    def _start(self) -> None:
        """Boot L1, then let it fill both VMCSs."""
        self._call([], first=True)
        self._keep_boot()
        self._write_script(encode(preparation()))
        self._call([], first=False)
        self._keep_boot()
        self._started = True

    def _keep_boot(self) -> None:
        """What L1 wrote when it booted belongs to the start of every run."""
        flag = layout.VARIABLES + layout.STOP_FLAG
        ctypes.memset(ctypes.addressof(self._memory) + flag, 0, 4)
        self._base = bytes(self._memory)

    def _reset(self) -> None:
        """Put memory back to the start, except code, whose stale decodings the emulator would keep."""
        self._helper.nvmx_clean()
        address = ctypes.addressof(self._memory)
        for start, end in _RESTORED:
            ctypes.memmove(address + start, self._base[start:end], end - start)

    def _call(self, schedule: list[Item], first: bool) -> list[RawRecord]:
        words = [word for item in schedule for word in item]
        items = (ctypes.c_uint64 * len(words))(*words)
        length = self._helper.nvmx_run(
            items, ctypes.c_uint64(len(schedule)), ctypes.c_uint64(STEPS_MAX), int(first)
        )
        return _records(self._helper.nvmx_log()[:length])


_RESTORED: Final = (
    (layout.LOW_PAGE, layout.LOW_PAGE + layout.PAGE),
    (layout.L2_PAGE_DIRECTORY, layout.L2_PAGE_TABLE + layout.PAGE),
    (0x10000, 0x16000),  # L2's tables, stack and data; its code is written by L1
    (layout.VARIABLES, layout.VARIABLES + 2 * layout.PAGE),
    (layout.VMCS_REGIONS[0], layout.MSR_LOAD_LIST),
)


def _records(words: list[int]) -> list[RawRecord]:
    records = []
    index = 0
    while index < len(words):
        head = words[index]
        count = head >> 32
        records.append((head & 0xFFFFFFFF, *words[index + 1 : index + 1 + count]))
        index += 1 + count
    return records


def _power_on() -> object:
    """A session of the package whose CPU stands at the start of L1's program, in 64-bit mode."""
    import bochscpu  # noqa: PLC0415 - only after the helper was loaded
    from bochscpu import _bochscpu as library  # noqa: PLC0415

    _choose_model(library.__file__)
    session = bochscpu.Session()
    state = bochscpu.State()
    state.rip = l1_program().labels["boot"]
    state.rflags = 2
    state.cr0, state.cr3, state.cr4, state.efer = L1_CR0, layout.L1_PML4, L1_CR4, L1_EFER
    state.dr6, state.dr7 = 0xFFFF0FF0, 0x400
    state.apic_base = 0xFEE00900
    state.xcr0 = 1
    state.cs = _segment(layout.L1_CODE_SELECTOR, 0xA09B)
    data = _segment(layout.L1_DATA_SELECTOR, 0xC093)
    state.ss = state.ds = state.es = state.fs = state.gs = data
    state.tr = _segment(layout.L1_TSS_SELECTOR, 0x8B, layout.L1_TSS, 0x67)
    for name, base, limit in (("gdtr", layout.L1_GDT, 0x27), ("idtr", layout.L1_IDT, 0xFFF)):
        table = library.GlobalSegment()
        table.base, table.limit = base, limit
        setattr(state, name, table)
    session.cpu.state = state
    return session


def _segment(selector: int, attributes: int, base: int = 0, limit: int = 0xFFFFFFFF) -> object:
    import bochscpu  # noqa: PLC0415 - see _power_on

    segment = bochscpu.Segment()
    segment.present, segment.selector, segment.attr = True, selector, attributes
    segment.base, segment.limit = base, limit
    return segment


def _choose_model(path: str) -> None:
    library = ctypes.CDLL(path)
    library.sim_get_param_enum.restype = ctypes.c_void_p
    parameter = library.sim_get_param_enum(b"cpu.model", None)
    choose = library["_ZN15bx_param_enum_c3setEl"]
    choose.argtypes = (ctypes.c_void_p, ctypes.c_long)
    choose(parameter, CPU_MODELS[library_version()])
