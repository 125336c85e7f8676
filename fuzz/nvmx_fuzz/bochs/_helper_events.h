/* The helper in parts (see `_helper.c`): deliveries, what an entry loads, what an exit saves. */

/* -- deliveries, instructions ---------------------------------------------------------------------------- */

void interrupt(u8, unsigned, int, u16) __asm__("_ZN8BX_CPU_C9interruptEhjbt");
void interrupt(u8 vector, unsigned type, int push_error, u16 error_code) {
    push_error &= 0xFF;
    if (!running || !guest() || draining) {
        real_interrupt(vector, type, push_error, error_code);
        return;
    }
    close_shadow();
    /* Mend: INT n, INT3 and INTO behind MOV SS keep the trap that waits there (B2, O6). */
    u32 trap = injected_trap ? injected_trap : real_inhibited(INHIBIT_DEBUG) ? CPU32(at.debug_trap) : 0;
    held_trap = (type == SOFT_INTERRUPT || type == SOFT_EXCEPTION) && trap & TRAPS ? trap : 0;
    injected_trap = 0;
    entering = 0;
    CPU32(at.activity) = ACTIVE;
    delivering = 1;
    frame_rf = CPU32(at.eflags) & RF;
    if (armed_count && !held_trap) fire_armed(); /* as in the model: behind a trap that is kept */
    real_interrupt(vector, type, push_error, error_code);
    u32 esp = (u32)CPU64(at.rsp);
    u32 frame = esp + (push_error ? 4 : 0);
    u64 values[8] = {vector, push_error ? error_code : ~0ull, ~0ull, ~0ull, CPU64(at.cr2), CPU32(at.dr6), esp, type};
    if (frame + 12 <= memory_size) {
        values[2] = *(u32 *)(memory + frame);
        values[3] = *(u32 *)(memory + frame + 8);
        if (push_error) values[1] = *(u32 *)(memory + esp);
    }
    CPU64(at.prev_rip) = CPU64(at.rip); /* mend: Bochs forgets it behind an NMI */
    if (held_trap) {
        CPU32(at.debug_trap) = held_trap;
        CPU32(at.async) |= 1;
    }
    held_trap = 0;
    run_active = delivering = 0;
    delivered = 1;
    note(LOG_DELIVER, 8, values);
}

/* Mend: RF of an exit in a delivery is that of the frame (X8). */
u32 exit_flags(unsigned, unsigned) __asm__("_ZN8BX_CPU_C16VMexitReadEFLAGSEjj");
u32 exit_flags(unsigned reason, unsigned vector) {
    u32 flags = real_exit_flags(reason, vector);
    if (running && delivering && (reason == 44 || reason == 48 || reason == 49 || reason == 62 || reason == 9))
        flags = (flags & ~RF) | frame_rf;
    return flags;
}

/* Mend: entering shutdown or wait-for-SIPI leaves IF as the VM entry loaded it. */
void enter_sleep(unsigned) __asm__("_ZN8BX_CPU_C17enter_sleep_stateEj");
void enter_sleep(unsigned state) {
    u32 interrupts = CPU32(at.eflags) & 0x200;
    sleep_mask = CPU32(at.mask);
    real_sleep(state);
    if (running) CPU32(at.eflags) |= interrupts;
}

static int highest(const u8 *vectors) {
    for (int i = 7; i >= 0; i--)
        if (((const u32 *)vectors)[i]) return i * 32 + 31 - __builtin_clz(((const u32 *)vectors)[i]);
    return -1;
}

/* Mend: an interrupt of the class in service waits; Bochs compares vectors and then gives the spurious one. */
void service_apic(void *) __asm__("_ZN15bx_local_apic_c18service_local_apicEv");
void service_apic(void *apic) {
    int request = highest((u8 *)apic + at.apic_irr), service = highest((u8 *)apic + at.apic_isr);
    if (running && request >= 0 && service >= 0 && request >> 4 <= service >> 4) return;
    real_service(apic);
}

/* Mend: a virtual interrupt that IF or a shadow holds is not taken in place of an interrupt that exits (K4). */
void external_interrupt(void) __asm__("_ZN8BX_CPU_C18HandleExtInterruptEv");
void external_interrupt(void) {
    u32 held = running && guest() ? CPU32(at.pending) & CPU32(at.mask) & VIRTUAL_INTERRUPT : 0;
    CPU32(at.pending) &= ~held;
    real_external();
    if (held) real_evaluate_virtual();
}

/* Mend: RVI becomes the highest of itself and the vectors posted, if there are any (K3). */
int posted(u8) __asm__("_ZN8BX_CPU_C31VMX_Posted_Interrupt_ProcessingEh");
int posted(u8 vector) {
    int highest_posted = highest(memory + place.descriptor);
    u8 request = cpu[at.rvi];
    int taken = real_posted(vector);
    if (running && taken) {
        cpu[at.rvi] = highest_posted > request ? (u8)highest_posted : request;
        real_evaluate_virtual();
    }
    return taken;
}

void vmexit(unsigned, u64) __asm__("_ZN8BX_CPU_C6VMexitEjm");
void vmexit(unsigned reason, u64 qualification) {
    if (running && !draining) note(LOG_SEEN, 0, NULL);
    close_shadow();
    unfinished = 0;
    if (running && CPU32(at.pending) & EVENT_SMI) CPU32(at.async) |= 1;
    if (running && reason & VALID) /* mend: a failed entry leaves blocking as it was (E0) */
        CPU32(at.mask) = (CPU32(at.mask) & ~(EVENT_NMI | EVENT_SMI)) | (entry_mask & (EVENT_NMI | EVENT_SMI));
    real_vmexit(reason, qualification);
}

/* -- what an entry loads and an exit saves ---------------------------------------------------------------- */

/* The pending debug exceptions of the VMCS as the CPU keeps them. Mends: an enabled breakpoint is a trap without a
 * condition too, and conditions come with a single step too (O6). */
static u32 pending_trap(void) {
    u32 field = vmread(GUEST_PENDING_DEBUG);
    return field & (BREAKPOINT_ENABLED | SINGLE_STEP) ? field & (BREAKPOINT_ENABLED | SINGLE_STEP | CONDITIONS) : 0;
}

u32 load_guest(u64 *) __asm__("_ZN8BX_CPU_C26VMenterLoadCheckGuestStateEPm");
u32 load_guest(u64 *qualification) {
    u32 error = real_load_guest(qualification);
    injected_trap = 0;
    if (!running || error) return error;
    u32 info = vmread(ENTRY_INFO), type = info >> 8 & 7, blocking = vmread(GUEST_BLOCKING);
    if (!(info & VALID)) {
        /* Mend: an entry into shutdown or wait-for-SIPI drops them (O6). */
        CPU32(at.debug_trap) = vmread(GUEST_ACTIVITY) > HALTED ? 0 : pending_trap();
    } else if (type == OTHER_EVENT) {
        /* Mend: this is no delivery: shadow, activity and debug exceptions are loaded (O4, O6). */
        CPU32(at.debug_trap) = pending_trap();
        if (blocking & BY_STI) real_inhibit(INHIBIT_INTERRUPTS);
        else if (blocking & BY_MOV_SS) real_inhibit(INHIBIT_INTERRUPTS | INHIBIT_DEBUG);
        if (vmread(GUEST_ACTIVITY)) real_sleep(vmread(GUEST_ACTIVITY));
    } else if (blocking & BY_MOV_SS && (type == SOFT_INTERRUPT || type == SOFT_EXCEPTION)) {
        injected_trap = pending_trap();
    }
    if (CPU32(at.debug_trap)) CPU32(at.async) |= 1;
    return 0;
}

void inject(void) __asm__("_ZN8BX_CPU_C19VMenterInjectEventsEv");
void inject(void) {
    unfinished = running;
    real_inject();
    unfinished = 0;
    u32 info = running ? vmread(ENTRY_INFO) : 0;
    if (info & VALID && (info >> 8 & 7) == OTHER_EVENT) {
        CPU32(at.mask) &= ~EVENT_MTF; /* mend: the exit comes before the first instruction (O9, M5) */
        CPU32(at.async) |= 1;
    }
}

void save_guest(u32, u32) __asm__("_ZN8BX_CPU_C20VMexitSaveGuestStateEjj");
void save_guest(u32 reason, u32 vector) {
    u32 trap = delivering ? held_trap : CPU32(at.debug_trap), asleep = CPU32(at.activity);
    int kept = reason == EXIT_INIT || reason == EXIT_MTF || reason == EXIT_TPR || reason == EXIT_EOI ||
               reason == EXIT_APIC_WRITE || real_inhibited(INHIBIT_DEBUG);
    if (running && asleep == WAIT_FOR_SIPI) /* mend: NMIs are as blocked as before L2 waited (Y4) */
        CPU32(at.mask) = (CPU32(at.mask) & ~(EVENT_NMI | EVENT_SMI)) | (sleep_mask & (EVENT_NMI | EVENT_SMI));
    real_save_guest(reason, vector);
    if (!running) return;
    if (asleep == WAIT_FOR_SIPI) vmwrite(GUEST_ACTIVITY, WAIT_FOR_SIPI);
    /* Mend: an enabled breakpoint is saved without a condition too (Y6). */
    if (delivering ? held_trap != 0 : kept) {
        vmwrite(GUEST_PENDING_DEBUG, trap & (BREAKPOINT_ENABLED | SINGLE_STEP | CONDITIONS));
    }
    held_trap = 0;
}

/* Mend: a full log exits when a flag has to be set, and every accessed flag of the image is set (X1). */
void log_page(u64, u64, unsigned) __asm__("_ZN8BX_CPU_C29vmx_page_modification_loggingEmmj");
void log_page(u64 linear, u64 physical, unsigned sets_dirty) {
    if (!running || sets_dirty) real_log_page(linear, physical, sets_dirty);
}
