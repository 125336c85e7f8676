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

from nvmx_fuzz.boot import places
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.l1_program import (
    EXIT_FIELDS,
    HANDLERS,
    INTERPRETER,
    RECORD_UNEXPECTED,
    L1Program,
    assemble,
)
from nvmx_fuzz.realise.vmcs import L1_CR0, L1_CR4

# Operations of a script beside those of the interpreter.
SELF_INTERRUPT: Final = len(HANDLERS)
"""vector: an interrupt for L1 arrives"""
SELF_NMI: Final = SELF_INTERRUPT + 1
CALL: Final = SELF_INTERRUPT + 2
"""address of a script that ends with RETURN"""
RETURN: Final = SELF_INTERRUPT + 3
RESTART: Final = SELF_INTERRUPT + 4
"""address of the script that runs instead, from clean memory; nothing of this one is printed"""

_OPERATIONS: Final = (
    *("op_watched_enter" if name == "op_enter" else name for name in HANDLERS),
    "op_self_interrupt", "op_self_nmi", "op_call", "op_return", "op_restart",
)  # fmt: skip

_X2APIC_ICR: Final = 0x830
_X2APIC_SELF_IPI: Final = 0x83F
_NMI_TO_ID: Final = 0x4400

_START: Final = f"""
boot:
    mov ax, {layout.L1_DATA_SELECTOR}
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, {layout.L1_STACK_TOP}
    mov r13d, {layout.VARIABLES}
    mov r11d, {places.EVENTS}
    mov r14d, {places.OUTPUT}
    xor r12d, r12d
    mov ax, {layout.L1_TSS_SELECTOR}
    ltr ax
    mov al, 0xFF
    out 0x21, al
    out 0xA1, al
    call serial_start
    mov eax, 1
    cpuid
    mov esi, 1
    bt ecx, 5
    jae refuse
    mov esi, 2
    bt ecx, 21
    jae refuse
    mov ecx, 0x3A
    rdmsr
    mov esi, 3
    test al, 1
    jne feature_control_locked
    mov eax, 5
    xor edx, edx
    wrmsr
feature_control_locked:
    test al, 4
    je refuse
    mov ecx, 0x1B
    rdmsr
    or eax, 0xC00
    wrmsr
    mov ecx, 0x80F
    mov eax, 0x10F
    xor edx, edx
    wrmsr
    mov ecx, 0x835
    mov eax, 0x10000
    wrmsr
    mov ecx, 0x836
    wrmsr
    mov ecx, 0x480
    rdmsr
    and eax, 0x7FFFFFFF
    mov dword ptr [{layout.VMXON_REGION}], eax
    mov dword ptr [{places.PRISTINE + layout.VMCS_REGIONS[0]}], eax
    mov dword ptr [{places.PRISTINE + layout.VMCS_REGIONS[1]}], eax
    mov dword ptr [{layout.VMCS_REGIONS[0]}], eax
    mov dword ptr [{layout.VMCS_REGIONS[1]}], eax
    mov rax, cr4
    or eax, 0x2000
    mov cr4, rax
    mov esi, 4
    vmxon qword ptr [r13 + {layout.VMXON_POINTER}]
    jc refuse
    je refuse
    mov rax, qword ptr [{places.PARAMETERS + places.PARAMETER_FIRST}]
    mov qword ptr [{places.NUMBER}], rax
    mov word ptr [r14], 0x6D40
    add r14, 2
    xor ebp, ebp
    mov ebx, {places.SHADOW}
read_capability:
    lea ecx, [rbp + {places.FIRST_CAPABILITY_MSR}]
    rdmsr
    shl rdx, 32
    or rax, rdx
    mov qword ptr [rbx + rbp*8], rax
    inc ebp
    cmp ebp, {places.CAPABILITY_MSRS}
    jb read_capability
    mov esi, {places.SHADOW}
    mov edi, {places.CAPABILITY_MSRS}
    call emit_values
    call end_line
next:
    mov ebx, {places.NUMBER}
    mov rax, qword ptr [rbx]
    mov ecx, {places.PARAMETERS}
    cmp rax, qword ptr [rcx + {places.PARAMETER_END}]
    jae finished
    inc qword ptr [rbx]
    mov rbx, qword ptr [rcx + {places.PARAMETER_TABLE}]
    mov r15, qword ptr [rbx + rax*8]
clean_start:
    mov r11d, {places.EVENTS}
    mov r14d, {places.OUTPUT}
    xor r12d, r12d
    mov byte ptr [r14], 0x23
    inc r14
    call emit_hex
    vmclear qword ptr [r13 + {layout.VMCS_POINTERS}]
    vmclear qword ptr [r13 + {layout.VMCS_POINTERS + 8}]
    RESTORE
    mov ebx, 2
    invept rbx, [r13 + {layout.INVEPT_DESCRIPTOR}]
    xor eax, eax
    mov cr2, rax
    mov eax, 0xFFFF0FF0
    mov dr6, rax
    jmp loop
refuse:
    mov word ptr [r14], 0x2021
    add r14, 2
    mov eax, esi
    call emit_hex
    call end_line
finished:
    mov r14d, {places.OUTPUT}
    mov byte ptr [r14], 0x24
    inc r14
    call end_line
    mov edx, 0x3FD
    mov ecx, 0x100000
serial_drains:
    in al, dx
    test al, 0x40
    jne drained_out
    dec ecx
    jne serial_drains
drained_out:
    mov edx, {places.BOCHS_SHUTDOWN_PORT}
    lea rsi, [rip + shutdown_word]
    mov ecx, 8
    rep outsb
sleep:
    cli
    hlt
    jmp sleep
shutdown_word:
    .ascii "Shutdown"
"""

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
    jmp op_enter
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

_RECORDS: Final = f"""
record:
    cmp qword ptr [r13 + {layout.MAILBOX}], 0
    jne record_vmfail
    mov bl, 0x78
    lea rsi, [r13 + {layout.MAILBOX + 16}]
    mov edi, {len(EXIT_FIELDS) + 2}
    call emit_record
    call emit_stack
    jmp recorded
record_vmfail:
    mov bl, 0x76
    lea rsi, [r13 + {layout.MAILBOX + 16}]
    mov edi, 1
    call emit_record
recorded:
    inc r12
    jmp loop
emit_stack:
    xor ebx, ebx
    xor r8d, r8d
stack_word:
    mov eax, dword ptr [rbx*4 + {places.STACK_BOTTOM}]
    cmp eax, dword ptr [rbx*4 + {places.SHADOW}]
    je stack_next
    test r8d, r8d
    jne stack_value
    mov word ptr [r14], 0x7320
    add r14, 2
    inc r8d
stack_value:
    mov rbp, rax
    call emit_pair
stack_next:
    inc ebx
    cmp ebx, {places.STACK_WORDS}
    jb stack_word
    mov ebx, 0x681C
    vmread rcx, rbx
    mov ebx, 0x4818
    vmread rdx, rbx
    test dl, 0x60
    jne scrub_all
    sub rcx, {places.STACK_BOTTOM}
    cmp rcx, {places.STACK_TOP - places.STACK_BOTTOM}
    jbe scrub
scrub_all:
    mov ecx, {places.STACK_TOP - places.STACK_BOTTOM}
scrub:
    shr ecx, 2
    mov edi, {places.STACK_BOTTOM}
    mov eax, {places.SCRUBBED}
    rep stosd
    ret
emit_record:
    mov byte ptr [r14], 0x20
    mov byte ptr [r14 + 1], bl
    add r14, 2
emit_values:
    xor ebx, ebx
next_value:
    mov rbp, qword ptr [rsi + rbx*8]
    test rbp, rbp
    je skip_value
    call emit_pair
skip_value:
    inc ebx
    cmp ebx, edi
    jb next_value
    ret
emit_pair:
    mov byte ptr [r14], 0x20
    inc r14
    mov eax, ebx
    call emit_hex
    mov byte ptr [r14], 0x3A
    inc r14
    mov rax, rbp
    call emit_hex
    ret
emit_hex:
    mov rdx, rax
    or rdx, 1
    bsr rcx, rdx
    and ecx, 0x3C
hex_digit:
    mov rdx, rax
    shr rdx, cl
    and edx, 15
    add edx, 48
    cmp edx, 58
    jb hex_store
    add edx, 39
hex_store:
    mov byte ptr [r14], dl
    inc r14
    sub ecx, 4
    jns hex_digit
    ret
"""

_OUTPUT: Final = f"""
end_line:
    mov esi, {places.OUTPUT}
    mov eax, 0x811C9DC5
checksum:
    movzx edx, byte ptr [rsi]
    xor eax, edx
    imul eax, eax, 0x01000193
    inc rsi
    cmp rsi, r14
    jb checksum
    mov word ptr [r14], 0x2A20
    add r14, 2
    call emit_hex
    mov byte ptr [r14], 10
    inc r14
    mov esi, {places.OUTPUT}
    mov rcx, r14
    sub rcx, rsi
    mov eax, {places.PARAMETERS}
    cmp qword ptr [rax + {places.PARAMETER_DOORBELL}], 0
    je serial_out
    mov eax, ecx
    mov edx, {places.DOORBELL_PORT}
    out dx, eax
    ret
serial_out:
    mov edx, 0x3FD
    in al, dx
    test al, 0x20
    je serial_out
    mov edx, 0x3F8
    outsb
    dec ecx
    jne serial_out
    ret
serial_start:
    lea rsi, [rip + serial_settings]
    mov ecx, 7
serial_setting:
    movzx edx, byte ptr [rsi]
    add edx, 0x3F8
    mov al, byte ptr [rsi + 1]
    out dx, al
    add esi, 2
    dec ecx
    jne serial_setting
    ret
serial_settings:
    .byte 1, 0, 3, 0x80, 0, 1, 1, 0, 3, 3, 2, 0xC7, 4, 3
"""


def _restore() -> str:
    """The copies that make memory as it was."""
    lines = []
    for start, end in places.RESTORED:
        lines += [
            f"mov esi, {places.PRISTINE + start}",
            f"mov edi, {start}",
            f"mov ecx, {(end - start) // 8}",
            "rep movsq",
        ]
    return "\n    ".join(lines)


@functools.cache
def boot_program() -> L1Program:
    """Assemble the program at ``layout.L1_CODE``; ``boot`` is where it starts, in 64-bit mode."""
    parts = (
        _START.replace("RESTORE", _restore()), _END_OF_SCRIPT, INTERPRETER, _RECORDS,
        _OPERATIONS_OF_ITS_OWN, _OUTPUT,
    )  # fmt: skip
    code, labels = assemble("".join(parts), layout.L1_CODE)
    if layout.L1_CODE + len(code) > layout.L1_HANDLERS:
        raise AssertionError("L1's program runs into its interrupt handlers")
    return L1Program(code, labels)


def operation_table(labels: dict[str, int]) -> bytes:
    """The addresses of the operations, by number."""
    return struct.pack(f"<{len(_OPERATIONS)}Q", *(labels[name] for name in _OPERATIONS))


def while_recording(rip: int) -> bool:
    """Whether L1 stood between an exit or VMfail and the end of its record."""
    labels = boot_program().labels
    return (
        labels["exited"] <= rip < labels["launch"]
        or labels["record"] <= rip < labels["op_watched_enter"]
    )


@functools.cache
def entry_code() -> bytes:
    """The 32-bit code that the boot loader jumps to: copies everything to its place, turns on 64-bit mode."""
    return _assemble_32(f"""
    cli
    cld
    mov esp, {places.IMAGE + 0x1000}
    mov esi, {places.PRISTINE}
    xor edi, edi
    mov ecx, {0x40000 // 4}
    .byte 0xF3, 0xA5
    mov esi, {places.PRISTINE + 0x100000}
    mov edi, 0x100000
    mov ecx, {(layout.SCRIPT - 0x100000) // 4}
    .byte 0xF3, 0xA5
    lgdt [{places.GDT_POINTER}]
    lidt [{places.IDT_POINTER}]
    mov eax, {L1_CR4 & ~0x2000}
    mov cr4, eax
    mov eax, {layout.L1_PML4}
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x901
    wrmsr
    mov eax, {L1_CR0}
    mov cr0, eax
    .byte 0xEA
    .long {boot_program().labels["boot"]}
    .word {layout.L1_CODE_SELECTOR}
""")


def _assemble_32(source: str) -> bytes:
    from keystone import KS_ARCH_X86, KS_MODE_32, Ks  # noqa: PLC0415 - a second mode of the assembler

    encoded, _count = Ks(KS_ARCH_X86, KS_MODE_32).asm(source, places.ENTRY)
    return bytes(encoded)
