/* The helper in parts (see `_helper.c`): arrivals, and what happens at a boundary of L2. */

/* -- arrivals -------------------------------------------------------------------------------------------- */

static void make(u64 op, u64 value) {
    switch (op) {
    case INTR: real_trigger((void *)CPU64(at.lapic), (u8)value, 0, 0); break;
    case NMI: real_nmi(); break;
    case INIT: /* mend: Bochs drops an INIT that comes while L1 runs (A2) */
        CPU32(at.pending) |= EVENT_INIT;
        if (!(CPU32(at.mask) & EVENT_INIT)) CPU32(at.async) |= 1;
        break;
    case SIPI: real_sipi((unsigned)value); break;
    case TIMER:
        if (entering) entry_ticks += (u32)value;
        else if (timer_on) {
            timer_value = timer_value > value ? timer_value - (u32)value : 0;
            if (!timer_value && smm) before_smm.pending |= EVENT_TIMER;
            else if (!timer_value) {
                CPU32(at.pending) |= EVENT_TIMER;
                if (!(CPU32(at.mask) & EVENT_TIMER)) CPU32(at.async) |= 1;
            }
        }
        break;
    case SMI:
        CPU32(at.pending) |= EVENT_SMI;
        if (!(CPU32(at.mask) & EVENT_SMI)) CPU32(at.async) |= 1;
        break;
    }
}

static int is_arrival(u64 op) { return (op >= INTR && op <= TIMER) || op == SMI; }

static void arm(const struct item *item) {
    if (armed_count == ARMED_MAX) return;
    armed[armed_count][0] = item->a;
    armed[armed_count++][1] = item->b;
}

static void fire_armed(void) {
    unsigned count = armed_count;
    armed_count = 0;
    for (unsigned i = 0; i < count; i++) make(armed[i][0], armed[i][1]);
}

static void spend(void) {
    if (!budget--) {
        stop(BUDGET);
        longjmp(out, 1);
    }
}

/* Memory changes behind the CPU; code that it has decoded from there is dropped. */
static void poke(const struct item *item) {
    if (item->a + 4 > memory_size) return;
    if (item->op == POKE) *(u32 *)(memory + item->a) = (u32)item->b;
    else memory[item->a] = (u8)item->b;
    real_smc(item->a & ~0xFFFull, ~0u);
}

/* The run has ended in SMM; L2 was resumed only to read its state. */
static void leave_behind_smm(void) {
    note(LOG_SEEN, 0, NULL);
    real_vmexit(18, 0);
}

/* L2 rests at a boundary: 1 after an arrival (to be evaluated), 0 when one instruction is to run. */
static int rest(void) {
    spend();
    for (;;) {
        if (position >= schedule_length) leave(L2_RESTS);
        const struct item *item = &schedule[position];
        if (is_arrival(item->op)) {
            position++;
            make(item->op, item->a);
            return 1;
        }
        switch (item->op) {
        case RUN:
            if (item->a != CPU64(at.rip)) leave(WRONG_RIP);
            position++;
            return 0;
        case POKE:
        case POKE_BYTE:
            position++;
            poke(item);
            break;
        case FLUSH:
            position++;
            real_flush();
            break;
        case ARM:
            position++;
            arm(item);
            break;
        case STOP: leave(FINISHED); break;
        default: leave(L2_RESTS);
        }
    }
}

/* Evaluate the boundary once more after an arrival; what the CPU has prepared for the next instruction (the
 * single-step trap, the opened MTF exit) belongs behind that instruction and is prepared again. */
int async_event(void);
static void evaluate(int behind_delivery) {
    if (!behind_delivery) {
        if (!real_inhibited(INHIBIT_DEBUG)) CPU32(at.debug_trap) &= ~SINGLE_STEP;
        if (CPU32(at.pending) & EVENT_MTF) CPU32(at.mask) |= EVENT_MTF;
    }
    CPU32(at.async) |= 1;
    async_event();
}

/* Mend: the manual lets a shadow hold an interrupt or NMI that exits, or not (B3, B4); the model's does not. The
 * timer is never held (B7). While such an exit is open, what the shadow does hold is out of sight. */
static void open_shadow(void) {
    if (!real_inhibited(INHIBIT_INTERRUPTS)) return;
    u32 open = CPU32(at.pending) & ~CPU32(at.mask), pins = vmread(PIN_BASED);
    u32 exits = open & EVENT_TIMER;
    if (pins & NMIS_EXIT) exits |= open & EVENT_NMI;
    if (pins & INTERRUPTS_EXIT) exits |= open & EVENT_LAPIC;
    if (!exits) return;
    hidden = CPU32(at.pending) & (EVENT_NMI | EVENT_LAPIC | WINDOW | NMI_WINDOW | VIRTUAL_INTERRUPT) & ~exits;
    opened = CPU32(at.inhibit_mask);
    CPU32(at.pending) &= ~hidden;
    CPU32(at.inhibit_mask) = opened & INHIBIT_DEBUG;
}

static void close_shadow(void) {
    if (!opened) return;
    CPU32(at.pending) |= hidden;
    CPU32(at.inhibit_mask) = opened;
    CPU32(at.async) |= 1;
    opened = hidden = 0;
}

/* Mend: Bochs looks at the virtual TPR at the end of VMLAUNCH, which a fault of the injection cuts short, and in
 * shutdown and wait-for-SIPI, where the exit has to wait (O8). */
static void finish_entry(void) {
    if (!unfinished || CPU32(at.activity) > HALTED) return;
    unfinished = 0;
    if (vmread(CPU_BASED) & TPR_SHADOW) real_tpr();
}

void tpr_virtualization(void) __asm__("_ZN8BX_CPU_C22VMX_TPR_VirtualizationEv");
void tpr_virtualization(void) {
    if (running && guest() && CPU32(at.activity) > HALTED) unfinished = 1;
    else real_tpr();
}

/* Evaluate the boundary to its end, make the arrivals that are due; 0 when L2 has been left. */
static int rests(void) {
    int tries = 0;
    if (evaluate_interrupts) {
        evaluate_interrupts = 0;
        real_mask_change();
        if (CPU32(at.pending) & ~CPU32(at.mask) & EVENT_LAPIC) arrived = 1;
    }
    finish_entry();
    /* Mend: Bochs takes one event a boundary, then executes; here the boundary is evaluated to its end. */
    if (CPU32(at.pending) & ~CPU32(at.mask) & RE_EVALUATED) arrived = 1;
    while (guest()) {
        while (arrived || delivered) {
            int behind = delivered;
            arrived = delivered = 0;
            finish_entry();
            if (guest() && CPU32(at.pending) & ~CPU32(at.mask)) evaluate(behind);
            if (!guest()) return 0;
            if (CPU32(at.pending) & ~CPU32(at.mask) & RE_EVALUATED && tries++ < TRIES) arrived = 1;
        }
        if (!guest()) return 0;
        if (!rest()) return 1;
        arrived = 1;
        tries = 0;
    }
    return 0;
}

void *fetch(void) __asm__("_ZN8BX_CPU_C14getICacheEntryEv");
void *fetch(void) {
    if (running && guest() && draining) leave_behind_smm();
    if (running && guest() && !draining && rests()) {
        run_active = 1;
        delivering = 0;
        while (position < schedule_length && schedule[position].op == IN_EMULATION) {
            const struct item *item = &schedule[position++];
            make(item->a, item->b);
        }
    }
    return real_fetch();
}

int wait_for_event(void) __asm__("_ZN8BX_CPU_C18handleWaitForEventEv");
int wait_for_event(void) {
    if (!running || !guest() || draining) return real_wait();
    for (;;) {
        if (evaluate_interrupts) {
            evaluate_interrupts = 0;
            real_mask_change();
        }
        u32 open = CPU32(at.pending) & ~CPU32(at.mask);
        u32 activity = CPU32(at.activity);
        if (activity != WAIT_FOR_SIPI) {
            /* Mend: what wakes or leaves HLT, by the table of activity states; Bochs does not look at windows,
             * virtual interrupts, debug traps, nor at interrupts that exit while IF = 0. */
            u32 wakes = activity == HALTED ? open & ~WINDOW : open & SHUTDOWN_WAKES;
            if (activity == HALTED && CPU32(at.pending) & WINDOW && CPU32(at.eflags) & 0x200) wakes |= WINDOW;
            if (activity == HALTED && CPU32(at.debug_trap) & 0xF000) wakes |= 1;
            if (wakes || activity == ACTIVE) {
                CPU32(at.inhibit_mask) = 0;
                return 0;
            }
        }
        if (!rest()) leave(L2_RESTS); /* the schedule runs an instruction, but this L2 sleeps */
    }
}

/* Mend: an exit out of a sleeping state saves that state (Y4); the CPU is active only behind the boundary. */
int async_event(void) __asm__("_ZN8BX_CPU_C16handleAsyncEventEv");
int async_event(void) {
    if (!running || !guest()) return real_async();
    if (draining) leave_behind_smm();
    finish_entry();
    if (!guest()) return real_async();
    u32 asleep = CPU32(at.activity);
    u32 closed = CPU32(at.mask) & EVENT_MTF; /* one look at the boundary opens it, several are one look */
    int before = delivered;
    for (int tries = 0; tries < TRIES; tries++) {
        delivered = 0;
        CPU32(at.mask) |= closed;
        open_shadow();
        int sleeps = real_async();
        close_shadow();
        if (sleeps || !guest()) return sleeps;
        if (asleep == ACTIVE || delivered) break;
        CPU32(at.activity) = asleep; /* mend: what neither exits nor is delivered does not wake (K3) */
    }
    delivered |= before;
    CPU32(at.activity) = ACTIVE;
    return 0;
}
