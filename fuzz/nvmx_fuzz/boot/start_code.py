"""Assembly of the image's L1: from the boot loader into VMX operation, and on to the next script."""

from typing import Final

from nvmx_fuzz.boot import places
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.vmcs import L1_CR0, L1_CR4


def _copies(ranges: tuple[tuple[int, int], ...], width: int, instruction: str) -> str:
    """What makes memory as it was, with an instruction that copies *width* bytes."""
    lines = []
    for start, end in ranges:
        lines += [
            f"mov esi, {places.PRISTINE + start}",
            f"mov edi, {start}",
            f"mov ecx, {(end - start) // width}",
            instruction,
        ]
    return "\n    ".join(lines)


START: Final = f"""
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
    mov ebx, {places.PARAMETERS}
    cmp qword ptr [rbx + {places.PARAMETER_DOORBELL}], 0
    jne no_serial_port
    mov al, 0xFF
    out 0x21, al
    out 0xA1, al
    call serial_start
no_serial_port:
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
    mov ebx, {places.PARAMETERS}
    cmp qword ptr [rbx + {places.PARAMETER_DOORBELL}], {places.RINGS_SILENTLY}
    je next
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
    {_copies(places.RESTORED, 8, "rep movsq")}
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
    mov edx, {places.QEMU_POWER_PORT}
    mov eax, {places.POWER_OFF}
    out dx, ax
sleep:
    cli
    hlt
    jmp sleep
shutdown_word:
    .ascii "Shutdown"
"""

"""Once per image: the processor, the capability MSRs; then per scenario: clean memory, its script."""

ENTRY: Final = f"""
    cli
    cld
    mov esp, {places.IMAGE + 0x1000}
    {_copies(places.PROGRAM, 4, ".byte 0xF3, 0xA5")}
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
    .long BOOT_ADDRESS
    .word {layout.L1_CODE_SELECTOR}
"""
"""32-bit code that the boot loader jumps to: copies L1 to its place and turns on 64-bit mode."""
