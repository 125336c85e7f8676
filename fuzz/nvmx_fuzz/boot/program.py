"""L1's program in the bootable image: the interpreter, and all that it needs around it.

It brings the processor from the boot loader into 64-bit mode and VMX operation, runs one script after
another, and prints what L1 saw, a line a scenario (``wire.py`` has the form). Interrupts and NMIs that L1
takes go into a list of their own, because an NMI may come while a record is being written; each notes
where L1 stood.

R11 is the end of that list, R12 counts records, R14 is the end of the line: L2 is 32-bit code and cannot
change them.
"""

import functools
import struct
from typing import Final

from nvmx_fuzz.boot import places, record_code, start_code
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.assembly import machine_code
from nvmx_fuzz.realise.l1_program import (
    HANDLERS,
    INTERPRETER,
    RECORD_UNEXPECTED,
    L1Program,
    assemble,
)

# Operations of a script beside those of the interpreter.
SELF_INTERRUPT: Final = len(HANDLERS)
"""vector: an interrupt for L1 arrives"""
SELF_NMI: Final = SELF_INTERRUPT + 1
CALL: Final = SELF_INTERRUPT + 2
"""address of a script that ends with RETURN"""
RETURN: Final = SELF_INTERRUPT + 3
RESTART: Final = SELF_INTERRUPT + 4
"""address of the script that runs instead, from clean memory; nothing of this one is printed"""
STOP: Final = SELF_INTERRUPT + 5
"""a stop for our monitor (``stops.py``): place, where, what"""

_OPERATIONS: Final = (
    *("op_watched_enter" if name == "op_enter" else name for name in HANDLERS),
    "op_self_interrupt", "op_self_nmi", "op_call", "op_return", "op_restart", "op_stop",
)  # fmt: skip

_X2APIC_ICR: Final = 0x830
_X2APIC_SELF_IPI: Final = 0x83F
_NMI_TO_ID: Final = 0x4400

_END_OF_SCRIPT: Final = f"""
start:
    mov r13d, {layout.VARIABLES}
    mov esp, {layout.L1_STACK_TOP}
    xor ebp, ebp
    xor r10d, r10d
    mov ebx, {places.SHADOW}
read_apic:
    lea ecx, [rbp + 0x820]
    cmp ebp, 8
    jb read_register
    lea ecx, [rbp + 0x808]
read_register:
    rdmsr
    mov eax, eax
    mov qword ptr [rbx + rbp*8], rax
    popcnt eax, eax
    add r10d, eax
    inc ebp
    cmp ebp, 16
    jb read_apic
    mov bl, 0x7A
    mov esi, {places.SHADOW}
    mov edi, 16
    call emit_record
    inc r12
    mov qword ptr [r13 + {layout.ENDS_INTERRUPTS}], 1
    mov rax, rsp
    push {layout.L1_DATA_SELECTOR}
    push rax
    pushfq
    push {layout.L1_CODE_SELECTOR}
    lea rbx, [rip + drain]
    push rbx
    iretq
drain:
    sti
    nop
    nop
    cli
    test r10d, r10d
    je drained
    mov ecx, 0x80B
    xor eax, eax
    xor edx, edx
    wrmsr
    dec r10d
    jmp drain
drained:
    mov r8d, {places.EVENTS}
emit_event:
    cmp r8, r11
    jae events_done
    mov bl, 0x69
    cmp qword ptr [r8], 4
    jb event_letter
    mov bl, 0x6E
    je event_letter
    mov bl, 0x75
event_letter:
    lea rsi, [r8 + 8]
    mov edi, 3
    call emit_record
    add r8, 32
    jmp emit_event
events_done:
    call end_line
    jmp next
"""

_OPERATIONS_OF_ITS_OWN: Final = f"""
op_watched_enter:
    mov r8, rcx
    mov esi, {places.STACK_BOTTOM}
    mov edi, {places.SHADOW}
    mov ecx, {places.STACK_WORDS // 2}
    rep movsq
    mov rcx, r8
    cmp dword ptr [r13 + {places.STOPS_WAIT}], 0
    je op_enter
    dec dword ptr [r13 + {places.STOPS_WAIT}]
    mov r9, rdx
    xor eax, eax
    mov edx, {places.STOP_PORT}
    out dx, eax
    mov rdx, r9
    jmp op_enter
op_stop:
    test ebx, ebx
    je tell_stop
    mov dword ptr [r13 + {places.STOPS_WAIT}], 2
tell_stop:
    lea eax, [r15 - 32]
    mov edx, {places.STOP_PORT}
    out dx, eax
    jmp loop
op_self_interrupt:
    mov ecx, {_X2APIC_SELF_IPI}
    mov eax, ebx
    xor edx, edx
    wrmsr
    jmp loop
op_self_nmi:
    mov ecx, 0x802
    rdmsr
    mov edx, eax
    mov ecx, {_X2APIC_ICR}
    mov eax, {_NMI_TO_ID}
    wrmsr
    jmp loop
op_call:
    mov qword ptr [r13 + {layout.SCRIPT_POINTER}], r15
    mov r15, rbx
    jmp loop
op_restart:
    mov r15, rbx
    mov eax, {places.NUMBER}
    mov rax, qword ptr [rax]
    dec rax
    jmp clean_start
op_return:
    mov r15, qword ptr [r13 + {layout.SCRIPT_POINTER}]
    jmp loop
mark:
    jmp op_marked
record2:
    cmp r11d, {places.EVENTS_END}
    jae arrived_done
    mov rax, qword ptr [r13 + {layout.MAILBOX2}]
    mov qword ptr [r11], rax
    mov rcx, qword ptr [r13 + {layout.MAILBOX2 + 16}]
    mov qword ptr [r11 + 8], rcx
    mov rcx, qword ptr [rsp + 40]
    mov qword ptr [r11 + 16], rcx
    mov qword ptr [r11 + 24], r12
    add r11, 32
    cmp eax, {RECORD_UNEXPECTED}
    jne arrived_done
    jmp start
"""


@functools.cache
def boot_program() -> L1Program:
    """Assemble the program at ``layout.L1_CODE``; ``boot`` is where it starts, in 64-bit mode."""
    parts = (
        start_code.START, _END_OF_SCRIPT, INTERPRETER, record_code.RECORDS,
        _OPERATIONS_OF_ITS_OWN, record_code.OUTPUT,
    )  # fmt: skip
    code, labels = assemble("".join(parts), layout.L1_CODE)
    if layout.L1_CODE + len(code) > layout.L1_HANDLERS:
        raise AssertionError("L1's program runs into its interrupt handlers")
    return L1Program(code, labels)


def operation_table(labels: dict[str, int]) -> bytes:
    """The addresses of the operations, by number."""
    return struct.pack(f"<{len(_OPERATIONS)}Q", *(labels[name] for name in _OPERATIONS))


_BEHIND_ENTRIES: Final = (
    "launch_failed", "resume_failed", "launch_shadow_failed", "resume_shadow_failed",
)  # fmt: skip
"""Where L1 goes on behind a VMLAUNCH or VMRESUME that has failed."""


def while_recording(rip: int) -> bool:
    """Whether L1 stood between an exit or VMfail and the end of its record."""
    labels = boot_program().labels
    return (
        labels["exited"] <= rip < labels["launch"]
        or labels["record"] <= rip < labels["op_watched_enter"]
        or rip in [labels[name] for name in _BEHIND_ENTRIES]
    )


@functools.cache
def entry_code() -> bytes:
    """The 32-bit code at ``places.ENTRY``."""
    source = start_code.ENTRY.replace("BOOT_ADDRESS", str(boot_program().labels["boot"]))
    return machine_code(source, places.ENTRY, long_mode=False)
