"""L1's program: an interpreter of a script in memory, assembled once.

Its handler of interrupts returns without IRET, because IRET would open NMIs: in a scenario L1 does that
when a step or its manners say so.

A script is a sequence of operations of four 64-bit words: the operation, then three operands. Everything
that L1 does in a scenario is one of them, so one image runs any number of scripts.
"""

import functools
import struct
from typing import Final, NamedTuple

from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.assembly import machine_code

# Operations of a script, in the order of the table of handlers.
END: Final = 0
VMWRITE: Final = 1
"""field, value"""
STORE32: Final = 2
"""address, value"""
STORE64: Final = 3
VMPTRLD: Final = 4
"""address of the pointer"""
VMCLEAR: Final = 5
ENTER: Final = 6
"""0 VMLAUNCH, 1 VMRESUME; 1 behind MOV SS; address of L2's general registers"""
MARK: Final = 7
"""a place at which something may arrive"""
EOI: Final = 8
IRET: Final = 9
OPEN: Final = 10
"""open interrupts for a moment; 1 to end each of them"""
INVEPT: Final = 11
STORE_BYTES: Final = 12
"""address, the bytes as a number, how many"""

HANDLERS: Final = (
    "op_end", "op_vmwrite", "op_store32", "op_store64", "op_vmptrld", "op_vmclear", "op_enter", "op_mark",
    "op_eoi", "op_iret", "op_open", "op_invept", "op_store_bytes",
)  # fmt: skip

EXIT_FIELDS: Final = (
    0x4402, 0x6400, 0x4404, 0x4406, 0x4408, 0x440A, 0x440C, 0x640A, 0x2400, 0x681E, 0x681C, 0x6820, 0x4818,
    0x4824, 0x4826, 0x6822, 0x482E, 0x0810, 0x4016, 0x4018, 0x401A,
)  # fmt: skip
"""What L1 reads after an exit, by encoding; CR2 and DR6 follow in the record."""

RECORD_EXIT: Final = 0
RECORD_VMFAIL: Final = 1
RECORD_INTERRUPT: Final = 3
RECORD_NMI: Final = 4
RECORD_UNEXPECTED: Final = 6

REGISTERS: Final = ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp")
"""L2's general registers in the order in which ``ENTER`` finds them."""

_POWER_ON: Final = f"""
boot:
    mov esp, {layout.L1_STACK_TOP}
    mov r13d, {layout.VARIABLES}
    mov ecx, 0x1B
    mov eax, 0xFEE00D00
    xor edx, edx
    wrmsr
    mov ecx, 0x80F
    mov eax, 0x10F
    wrmsr
    mov ecx, 0x3A
    mov eax, 5
    wrmsr
    mov ecx, 0x480
    rdmsr
    and eax, 0x7FFFFFFF
    mov dword ptr [{layout.VMXON_REGION}], eax
    mov dword ptr [{layout.VMCS_REGIONS[0]}], eax
    mov dword ptr [{layout.VMCS_REGIONS[1]}], eax
    vmxon qword ptr [r13 + {layout.VMXON_POINTER}]
"""
INTERPRETER: Final = f"""
begin:
    mov r15, qword ptr [r13 + {layout.SCRIPT_POINTER}]
loop:
    cmp dword ptr [r13 + {layout.STOP_FLAG}], 0
    jne start
    mov rax, qword ptr [r15]
    mov rbx, qword ptr [r15 + 8]
    mov rcx, qword ptr [r15 + 16]
    mov rdx, qword ptr [r15 + 24]
    add r15, 32
    jmp qword ptr [r13 + rax*8 + {layout.OPERATION_TABLE}]
op_end:
    jmp start
op_vmwrite:
    vmwrite rbx, rcx
    jmp loop
op_store32:
    mov dword ptr [rbx], ecx
    jmp loop
op_store64:
    mov qword ptr [rbx], rcx
    jmp loop
op_vmptrld:
    vmptrld qword ptr [rbx]
    jmp loop
op_vmclear:
    vmclear qword ptr [rbx]
    jmp loop
op_mark:
    jmp mark
op_marked:
    jmp loop
op_eoi:
    mov ecx, 0x80B
    xor eax, eax
    xor edx, edx
    wrmsr
    jmp loop
op_iret:
    mov rax, rsp
    push {layout.L1_DATA_SELECTOR}
    push rax
    pushfq
    push {layout.L1_CODE_SELECTOR}
    lea rbx, [rip + op_marked]
    push rbx
    iretq
op_open:
    mov qword ptr [r13 + {layout.ENDS_INTERRUPTS}], rbx
    sti
    nop
    nop
    cli
    jmp loop
op_invept:
    mov ebx, 2
    invept rbx, [r13 + {layout.INVEPT_DESCRIPTOR}]
    jmp loop
op_store_bytes:
    mov byte ptr [rbx], cl
    shr rcx, 8
    inc rbx
    dec edx
    jne op_store_bytes
    jmp loop
op_enter:
    mov qword ptr [r13 + {layout.SAVED_SCRIPT}], r15
    mov r8, rbx
    mov r9, rcx
    mov r10, rdx
    mov eax, dword ptr [r10]
    mov ebx, dword ptr [r10 + 4]
    mov ecx, dword ptr [r10 + 8]
    mov edx, dword ptr [r10 + 12]
    mov esi, dword ptr [r10 + 16]
    mov edi, dword ptr [r10 + 20]
    mov ebp, dword ptr [r10 + 24]
    test r8, r8
    jne op_resume
    test r9, r9
    je launch
    jmp launch_behind_mov_ss
op_resume:
    test r9, r9
    je resume
    jmp resume_behind_mov_ss
arrived:
    push rax
    push rcx
    push rdx
    push r13
    mov r13d, {layout.VARIABLES}
    mov rax, qword ptr [rsp + 32]
    mov qword ptr [r13 + {layout.MAILBOX2 + 8}], 1
    mov qword ptr [r13 + {layout.MAILBOX2 + 16}], rax
    cmp eax, 2
    je arrived_nmi
    cmp eax, 16
    jb arrived_exception
    mov qword ptr [r13 + {layout.MAILBOX2}], {RECORD_INTERRUPT}
    cmp qword ptr [r13 + {layout.ENDS_INTERRUPTS}], 0
    je arrived_record
    mov ecx, 0x80B
    xor eax, eax
    xor edx, edx
    wrmsr
    jmp arrived_record
arrived_nmi:
    mov qword ptr [r13 + {layout.MAILBOX2}], {RECORD_NMI}
    jmp arrived_record
arrived_exception:
    mov qword ptr [r13 + {layout.MAILBOX2}], {RECORD_UNEXPECTED}
arrived_record:
    jmp record2
arrived_done:
    pop r13
    pop rdx
    pop rcx
    pop rax
    add rsp, 8
    cmp dword ptr [r13 + {layout.MAILBOX2}], {RECORD_INTERRUPT}
    je arrived_return
    iretq
arrived_return:
    mov rcx, qword ptr [rsp]
    mov rsp, qword ptr [rsp + 24]
    sti
    jmp rcx
exited:
    mov r13d, {layout.VARIABLES}
    mov r15, qword ptr [r13 + {layout.SAVED_SCRIPT}]
    mov qword ptr [r13 + {layout.MAILBOX}], {RECORD_EXIT}
    mov qword ptr [r13 + {layout.MAILBOX + 8}], {len(EXIT_FIELDS) + 2}
    lea r8, [r13 + {layout.EXIT_FIELD_TABLE}]
    lea r9, [r13 + {layout.MAILBOX + 16}]
    mov ecx, {len(EXIT_FIELDS)}
read_field:
    movzx ebx, word ptr [r8]
    xor eax, eax
    vmread rax, rbx
    mov qword ptr [r9], rax
    add r8, 2
    add r9, 8
    dec ecx
    jne read_field
    mov rax, cr2
    mov qword ptr [r9], rax
    mov rax, dr6
    mov qword ptr [r9 + 8], rax
    jmp record
failed:
    mov r13d, {layout.VARIABLES}
    mov r15, qword ptr [r13 + {layout.SAVED_SCRIPT}]
    mov qword ptr [r13 + {layout.MAILBOX}], {RECORD_VMFAIL}
    mov qword ptr [r13 + {layout.MAILBOX + 8}], 1
    mov rax, 0
    jc failed_invalid
    mov ebx, 0x4400
    vmread rax, rbx
failed_invalid:
    mov qword ptr [r13 + {layout.MAILBOX + 16}], rax
    jmp record
launch:
    vmlaunch
launch_failed:
    jmp failed
resume:
    vmresume
resume_failed:
    jmp failed
launch_behind_mov_ss:
    mov ss, word ptr [r13 + {layout.DATA_SELECTOR}]
launch_shadow:
    vmlaunch
launch_shadow_failed:
    jmp failed
resume_behind_mov_ss:
    mov ss, word ptr [r13 + {layout.DATA_SELECTOR}]
resume_shadow:
    vmresume
resume_shadow_failed:
    jmp failed
"""
"""The interpreter of scripts. It goes to ``start`` at the end of one, through ``mark``, ``record`` and
``record2`` on the way.

A field that the processor does not have reads as 0.
"""

_BEFORE: Final = f"""
start:
    mov r13d, {layout.VARIABLES}
    mov esp, {layout.L1_STACK_TOP}
    jmp end
"""
_PLACES: Final = """
mark:
    nop
    jmp op_marked
record:
    nop
    jmp loop
record2:
    nop
    jmp arrived_done
end:
    nop
    jmp begin
"""
"""The places at which the helper of the machine ``bochs`` looks."""

_SOURCE: Final = _POWER_ON + _BEFORE + INTERPRETER + _PLACES


class L1Program(NamedTuple):
    """The assembled program and the addresses of the places that somebody has to know."""

    code: bytes
    labels: dict[str, int]


@functools.cache
def l1_program() -> L1Program:
    """Assemble L1's program at ``layout.L1_CODE``."""
    code, labels = assemble(_SOURCE, layout.L1_CODE)
    return L1Program(code, labels)


def assemble(source: str, origin: int) -> tuple[bytes, dict[str, int]]:
    """Code and labels of a source text; the assembler reports no labels, so a table of them is appended."""
    names = [line[:-1] for line in source.splitlines() if line.endswith(":")]
    table = "".join(f".quad {name}\n" for name in names)
    code = machine_code(source + table, origin)
    size = 8 * len(names)
    values = struct.unpack(f"<{len(names)}Q", code[-size:])
    return code[:-size], dict(zip(names, values, strict=True))


def handler_table(labels: dict[str, int], handlers: tuple[str, ...] = HANDLERS) -> bytes:
    """The addresses of the operations, by number."""
    return struct.pack(f"<{len(handlers)}Q", *(labels[name] for name in handlers))


def interrupt_stubs(labels: dict[str, int]) -> bytes:
    """One stub for each vector: push it, jump to the common handler."""
    stubs = bytearray()
    for vector in range(256):
        start = layout.L1_HANDLERS + vector * layout.HANDLER_STUB_SIZE
        jump = labels["arrived"] - (start + 10)
        stub = b"\x68" + struct.pack("<I", vector) + b"\xe9" + struct.pack("<i", jump)
        stubs += stub.ljust(layout.HANDLER_STUB_SIZE, b"\xcc")
    return bytes(stubs)
