"""Assembly of the image's L1: records of what it saw, and how a line of them goes out."""

from typing import Final

from nvmx_fuzz.boot import places
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.l1_program import EXIT_FIELDS

RECORDS: Final = f"""
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

OUTPUT: Final = f"""
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
