/* The helper in parts (see `_helper.c`): system-management mode. */

/* -- system-management mode ------------------------------------------------------------------------------- */

/* Events of VMX: what is pending of them waits for RSM. */
#define OF_VMX (EVENT_MTF | EVENT_TIMER | WINDOW | NMI_WINDOW | VIRTUAL_INTERRUPT | 0xE000u)

/* Mends: Bochs forgets shadow, HLT, debug traps and blocking of NMIs, and may exit out of SMM (B8). */
void enter_smm(void) __asm__("_ZN8BX_CPU_C28enter_system_management_modeEv");
void enter_smm(void) {
    if (!running) {
        real_smm();
        return;
    }
    close_shadow();
    smm = guest() ? FROM_L2 : FROM_L1;
    u64 values[2] = {guest(), guest() ? CPU64(at.rip) : 0};
    if (!draining) note(LOG_SMM, 2, values);
    before_smm.pending = CPU32(at.pending) & OF_VMX;
    before_smm.mask = CPU32(at.mask);
    before_smm.trap = CPU32(at.debug_trap);
    before_smm.inhibited = real_inhibited(INHIBIT_INTERRUPTS) ? CPU32(at.inhibit_mask) : 0;
    before_smm.activity = CPU32(at.activity);
    CPU32(at.debug_trap) = 0;
    CPU32(at.activity) = ACTIVE;
    real_smm();
    CPU32(at.pending) &= ~OF_VMX;
    CPU32(at.mask) = ~0u;
}

int restore_state(const u32 *) __asm__("_ZN8BX_CPU_C19smram_restore_stateEPKj");
int restore_state(const u32 *saved) {
    int restored = real_restore(saved);
    if (!smm) return restored;
    smm = OUTSIDE;
    CPU32(at.pending) |= before_smm.pending;
    CPU32(at.mask) = before_smm.mask;
    CPU32(at.debug_trap) = before_smm.trap;
    CPU32(at.inhibit_mask) = 0;
    if (before_smm.inhibited) real_inhibit(before_smm.inhibited);
    CPU32(at.activity) = before_smm.activity;
    CPU32(at.async) |= 1;
    arrived = guest();
    return restored;
}

/* The system-management handler is one RSM; what arrives before it stands in the schedule. */
static void rest_in_smm(void) {
    spend();
    for (; position < schedule_length; position++) {
        const struct item *item = &schedule[position];
        if (is_arrival(item->op)) make(item->op, item->a);
        else if (item->op == POKE || item->op == POKE_BYTE) poke(item);
        else if (item->op == FLUSH) real_flush();
        else if (item->op == ARM) arm(item);
        else if (item->op == EXIT && smm == FROM_L1) exit_is_due = 1;
        else break;
    }
    if (draining) return;
    if (position < schedule_length && schedule[position].op == RESUME) {
        position++;
        note(LOG_RSM, 0, NULL);
    } else stop(position < schedule_length && schedule[position].op == STOP ? FINISHED : L2_RESTS);
}
