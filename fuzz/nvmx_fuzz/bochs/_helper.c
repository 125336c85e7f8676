/* The helper of the machine `bochs`: what has to stand between the Bochs CPU and a scenario.
 *
 * It is loaded RTLD_GLOBAL before the Python package `bochscpu`, whose calls between C++ functions go through
 * the PLT: a function defined here replaces that of the package. It does three things:
 *
 *   1. gives the CPU memory (one flat buffer), a VMX-preemption timer that counts only when told to, and
 *      functions in place of those that the package aborts in;
 *   2. walks a schedule: at every boundary at which L2 rests it makes the next arrival, lets one instruction run,
 *      or stops because the CPU is not where the schedule expects it;
 *   3. writes what L1 and L2 saw into one log, in order.
 *
 * Offsets into Bochs' CPU object belong to one version of the package and come from Python (`nvmx_layout`).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* -- what Python hands over ------------------------------------------------------------------------------ */

struct layout {
    u64 rip, prev_rip, rsp, eflags, icount, inhibit_mask, debug_trap, cr2, dr6, lapic, in_guest, activity, pending, mask,
        async, cpl, rvi, apic_isr, apic_tmr, apic_irr;
};

struct places {
    u64 launch, resume, launch_shadow, resume_shadow, mark, exited, failed, record, record2, end; /* RIPs of L1 */
    u64 code, code_end;                              /* L2's code */
    u64 mailbox, mailbox2, stop_flag, descriptor;    /* physical addresses */
};

struct item {
    u64 op, a, b;
};

enum { RUN = 1, INTR, NMI, INIT, SIPI, TIMER, POKE, FLUSH, ARM, EXIT, VMFAIL, MARKED, STOP, IN_EMULATION, POKE_BYTE, ENTERED,
       SMI, RESUME };
enum { LOG_ENTRY = 2, LOG_SMM = 7, LOG_RSM = 8, LOG_DELIVER = 16, LOG_RETIRE = 17, LOG_STOP = 33, LOG_SEEN };
enum { FINISHED = 0, L2_RESTS, WRONG_RIP, UNEXPECTED_EXIT, UNEXPECTED_VMFAIL, L1_ENDS, BUDGET };

#define LOG_WORDS (1u << 16)
#define ARMED_MAX 64
#define ACTIVE 0
#define HALTED 1
#define WAIT_FOR_SIPI 3
#define EVENT_NMI (1u << 0)
#define EVENT_SMI (1u << 1)
#define EVENT_INIT (1u << 2)
#define EVENT_MTF (1u << 4)
#define EVENT_TIMER (1u << 5)
#define WINDOW (1u << 6)
#define NMI_WINDOW (1u << 7)
#define SHUTDOWN_WAKES 0xA7u
#define RE_EVALUATED 0xE03u
#define VIRTUAL_INTERRUPT (1u << 9)
#define EVENT_LAPIC (1u << 11)
#define RF 0x10000u
#define SINGLE_STEP 0x4000u
#define TRIES 8
#define STOP_TRACE 0x80000000u
#define INHIBIT_INTERRUPTS 1u
#define INHIBIT_DEBUG 2u
#define BY_STI 1u
#define BY_MOV_SS 2u
#define TRAPS 0xF000u

/* VMCS fields by encoding, and bits in them. */
#define PIN_BASED 0x4000u
#define CPU_BASED 0x4002u
#define ENTRY_INFO 0x4016u
#define GUEST_BLOCKING 0x4824u
#define GUEST_ACTIVITY 0x4826u
#define GUEST_PENDING_DEBUG 0x6822u
#define VALID 0x80000000u
#define INTERRUPTS_EXIT (1u << 0)
#define NMIS_EXIT (1u << 3)
#define TPR_SHADOW (1u << 21)
#define CONDITIONS 0xFu
#define BREAKPOINT_ENABLED 0x1000u
enum { SOFT_INTERRUPT = 4, SOFT_EXCEPTION = 6, OTHER_EVENT = 7 };
enum { EXIT_INIT = 3, EXIT_MTF = 37, EXIT_TPR = 43, EXIT_EOI = 45, EXIT_APIC_WRITE = 56 };

static struct layout at;
static struct places place;
static u8 *cpu, *memory;
static u64 memory_size;

static const struct item *schedule;
static u64 schedule_length, position;
static u64 log_words[LOG_WORDS];
static u64 log_length;
static u64 armed[ARMED_MAX][2];
static unsigned armed_count;
static jmp_buf out;
static int running, at_start, draining, arrived, delivered, run_active, entering, evaluate_interrupts;
static u64 budget;
static int delivering;
static u32 frame_rf;
static u32 timer_value, timer_on, entry_ticks;
static int unfinished;   /* this entry of L1 has not looked at the virtual TPR yet */
static u32 held_trap;    /* the #DB behind MOV SS that the soft event in delivery keeps */
static u32 injected_trap; /* the same, of the event that the entry is about to inject */
static u32 root_mask;    /* what is masked while L1 waits for a script */
static u32 entry_mask;   /* what was masked when L1 entered */
static u32 sleep_mask;   /* what was masked before wait-for-SIPI masked all */
static u32 hidden, opened; /* see `open_shadow` */
static enum { OUTSIDE, FROM_L1, FROM_L2 } smm;
static struct { u32 pending, mask, trap, inhibited, activity; } before_smm;
static int exit_is_due;  /* an exit of the schedule that L1 reads when it is back from SMM */

#define CPU32(offset) (*(u32 *)(cpu + (offset)))
#define CPU64(offset) (*(u64 *)(cpu + (offset)))

/* -- the functions of the package ------------------------------------------------------------------------ */

static void *(*real_fetch)(void);
static int (*real_wait)(void);
static int (*real_async)(void);
static void (*real_interrupt)(u8, unsigned, int, u16);
static void (*real_cpu_loop)(void);
static void (*real_vmexit)(unsigned, u64);
static void (*real_vmexit_io)(void *, unsigned, unsigned);
static void (*real_external)(void);
static int (*real_posted)(u8);
static void (*real_evaluate_virtual)(void);
static void (*real_nmi)(void);
static u32 (*real_exit_flags)(unsigned, unsigned);
static void (*real_sleep)(unsigned);
static void (*real_service)(void *);
static void (*real_sipi)(unsigned);
static void (*real_trigger)(void *, u8, unsigned, int);
static void (*real_flush)(void);
static void (*real_smc)(u64, u32);
static void (*real_mask_change)(void);
static int (*real_inhibited)(unsigned);
static void (*real_inhibit)(unsigned);
static u32 (*real_load_guest)(u64 *);
static void (*real_inject)(void);
static void (*real_save_guest)(u32, u32);
static void (*real_tpr)(void);
static void (*real_smm)(void);
static int (*real_restore)(const u32 *);
static u32 (*vmread)(unsigned);
static void (*vmwrite)(unsigned, u32);

static int guest(void) { return cpu[at.in_guest]; }

static void note(u64 kind, u64 count, const u64 *values) {
    if (log_length + count + 1 > LOG_WORDS) return;
    log_words[log_length++] = kind | count << 32;
    for (u64 i = 0; i < count; i++) log_words[log_length++] = values[i];
}

/* Write the state of the CPU that no exit field shows; make L1 leave its script. */
static void stop(u64 why) {
    if (draining) return;
    u64 values[14] = {why, guest(), CPU32(at.pending), CPU32(at.mask), position, CPU64(at.rip)};
    if (smm) {
        values[1] = smm + 1;
        values[3] = before_smm.mask;
    }
    u8 *apic = (u8 *)CPU64(at.lapic);
    memcpy(&values[6], apic + at.apic_irr, 32);
    memcpy(&values[10], apic + at.apic_isr, 32);
    note(LOG_STOP, 14, values);
    draining = 1;
    *(u32 *)(memory + place.stop_flag) = 1;
}

static void leave(u64 why) {
    stop(why);
    note(LOG_SEEN, 0, NULL);
    real_vmexit(18, 0); /* as VMCALL: L1 reads the guest state, sees the flag and ends */
}

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

static void copy_mailbox(u64 address) {
    const u64 *box = (const u64 *)(memory + address);
    note(box[0], box[1], box + 2);
}

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

static void l1_recorded(void) {
    u64 kind = *(u64 *)(memory + place.mailbox);
    copy_mailbox(place.mailbox);
    run_active = delivered = arrived = entering = delivering = 0;
    entry_ticks = 0;
    if (draining) return;
    u64 wanted = kind == 0 ? EXIT : VMFAIL;
    if (exit_is_due && kind == 0) exit_is_due = 0;
    else if (position < schedule_length && schedule[position].op == wanted) position++;
    else stop(kind == 0 ? UNEXPECTED_EXIT : UNEXPECTED_VMFAIL);
}

/* L1 stands at a place where the schedule may want arrivals, up to MARKED. */
static void l1_marked(void) {
    while (position < schedule_length && schedule[position].op != MARKED) {
        const struct item *item = &schedule[position];
        if (item->op == ARM) arm(item);
        else if (is_arrival(item->op)) make(item->op, item->a);
        else if (item->op == POKE) poke(item);
        else break;
        position++;
    }
    if (position < schedule_length && schedule[position].op == MARKED) position++;
    else stop(L1_ENDS);
}

static void l1_enters(void) {
    entering = 1;
    entry_mask = CPU32(at.mask);
    timer_value = 0;
    evaluate_interrupts = 1;
    note(LOG_ENTRY, 0, NULL);
    for (u64 page = place.code; page < place.code_end; page += 0x1000) real_smc(page, ~0u);
    for (; position < schedule_length; position++) {
        const struct item *item = &schedule[position];
        if (is_arrival(item->op)) make(item->op, item->a);
        else if (item->op == POKE) poke(item);
        else break;
    }
    if (position < schedule_length && schedule[position].op == ENTERED) position++;
}

static void l1_ends(void) {
    if (at_start) {
        at_start = 0;
        return;
    }
    if (!draining) stop(position < schedule_length && schedule[position].op == STOP ? FINISHED : L1_ENDS);
    longjmp(out, 1);
}

void bx_instr_before_execution(unsigned id, void *instruction) {
    (void)id, (void)instruction;
    if (!running) return;
    if (guest()) {
        CPU32(at.async) |= STOP_TRACE; /* every instruction of L2 comes by `fetch` */
        return;
    }
    u64 rip = CPU64(at.rip);
    if (smm) {
        rest_in_smm();
        return;
    }
    if (rip < place.exited || rip > place.end) return;
    spend();
    if (rip == place.record) l1_recorded();
    else if (rip == place.record2) copy_mailbox(place.mailbox2);
    else if (rip == place.mark) l1_marked();
    else if (rip == place.launch || rip == place.resume || rip == place.launch_shadow ||
             rip == place.resume_shadow)
        l1_enters();
    else if (rip == place.failed) note(LOG_SEEN, 0, NULL);
    else if (rip == place.end) l1_ends();
}

void bx_instr_after_execution(unsigned id, void *instruction) {
    (void)id, (void)instruction;
    if (!running || !guest()) return;
    entering = 0;
    if (run_active && !draining) {
        u64 rip = CPU64(at.rip);
        run_active = 0;
        note(LOG_RETIRE, 1, &rip);
    }
}

/* -- functions of the package that abort or do not fit --------------------------------------------------- */

int get_enable_a20(void *self) __asm__("_ZN14bx_pc_system_c14get_enable_a20Ev");
int get_enable_a20(void *self) { (void)self; return 1; }
void activate_timer_ticks(void *self, unsigned i, u64 ticks, int again)
    __asm__("_ZN14bx_pc_system_c20activate_timer_ticksEjmb");
void activate_timer_ticks(void *self, unsigned i, u64 ticks, int again) { (void)self, (void)i, (void)ticks, (void)again; }
void deactivate_timer(void *self, unsigned i) __asm__("_ZN14bx_pc_system_c16deactivate_timerEj");
void deactivate_timer(void *self, unsigned i) { (void)self, (void)i; }
void invalidate_page(void *self, u64 address) __asm__("_ZN14bx_pc_system_c6invlpgEm");
void invalidate_page(void *self, u64 address) { (void)self, (void)address; }
void set_preemption_timer(void *self, u32 value) __asm__("_ZN15bx_local_apic_c24set_vmx_preemption_timerEj");
void set_preemption_timer(void *self, u32 value) {
    (void)self;
    timer_on = 1;
    timer_value = value > entry_ticks ? value - entry_ticks : 0;
    if (!timer_value) {
        CPU32(at.pending) |= EVENT_TIMER;
        if (!(CPU32(at.mask) & EVENT_TIMER)) CPU32(at.async) |= 1;
    }
}
u32 read_preemption_timer(void *self) __asm__("_ZN15bx_local_apic_c25read_vmx_preemption_timerEv");
u32 read_preemption_timer(void *self) { (void)self; return timer_value; }
void stop_preemption_timer(void *self) __asm__("_ZN15bx_local_apic_c31deactivate_vmx_preemption_timerEv");
void stop_preemption_timer(void *self) { (void)self; timer_on = 0; }
u32 port_in(void *self, u16 port, unsigned size) __asm__("_ZN12bx_devices_c3inpEtj");
u32 port_in(void *self, u16 port, unsigned size) { (void)self, (void)port, (void)size; return ~0u; }
void port_out(void *self, u16 port, u32 value, unsigned size) __asm__("_ZN12bx_devices_c4outpEtjj");
void port_out(void *self, u16 port, u32 value, unsigned size) { (void)self, (void)port, (void)value, (void)size; }

/* The package's own asks a setting that does not exist. L2's task state has no I/O map. */
int allow_io(void *instruction, u16 port, unsigned size) __asm__("_ZN8BX_CPU_C8allow_ioEP15bxInstruction_ctj");
int allow_io(void *instruction, u16 port, unsigned size) {
    if (cpu[at.cpl] > (CPU32(at.eflags) >> 12 & 3)) return 0;
    if (guest()) real_vmexit_io(instruction, port, size);
    return 1;
}

int dbg_fetch_mem(void *c, u64 a, unsigned n, u8 *to) __asm__("_ZN8BX_MEM_C13dbg_fetch_memEP8BX_CPU_CmjPh");
int dbg_fetch_mem(void *c, u64 a, unsigned n, u8 *to) { (void)c, (void)a; memset(to, 0, n); return 1; }

void *host_address(void *c, u64 address, unsigned rw) __asm__("_ZN8BX_MEM_C14getHostMemAddrEP8BX_CPU_Cmj");
void *host_address(void *c, u64 address, unsigned rw) {
    (void)c, (void)rw;
    return address < memory_size ? memory + address : NULL;
}
void read_page(void *c, u64 address, unsigned n, void *to) __asm__("_ZN8BX_MEM_C16readPhysicalPageEP8BX_CPU_CmjPv");
void read_page(void *c, u64 address, unsigned n, void *to) {
    (void)c;
    if (address + n <= memory_size) memcpy(to, memory + address, n);
    else memset(to, 0xFF, n);
}
void write_page(void *c, u64 address, unsigned n, void *from) __asm__("_ZN8BX_MEM_C17writePhysicalPageEP8BX_CPU_CmjPv");
void write_page(void *c, u64 address, unsigned n, void *from) {
    (void)c;
    if (address + n <= memory_size) memcpy(memory + address, from, n);
}

/* The hooks of the package want a session that runs; here nobody listens. */
#define NO_HOOK(name) void bx_instr_##name(void) {}
NO_HOOK(cache_cntrl)
NO_HOOK(clflush)
NO_HOOK(cnear_branch_not_taken)
NO_HOOK(cnear_branch_taken)
NO_HOOK(exception)
NO_HOOK(far_branch)
NO_HOOK(hlt)
NO_HOOK(hwinterrupt)
NO_HOOK(inp)
NO_HOOK(inp2)
NO_HOOK(interrupt)
NO_HOOK(lin_access)
NO_HOOK(mwait)
NO_HOOK(opcode)
NO_HOOK(outp)
NO_HOOK(phy_access)
NO_HOOK(prefetch_hint)
NO_HOOK(repeat_iteration)
NO_HOOK(reset)
NO_HOOK(tlb_cntrl)
NO_HOOK(ucnear_branch)
NO_HOOK(vmexit)
NO_HOOK(wrmsr)

/* glibc before 2.38 lacks these two, which the package was linked against. */
unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }
int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int count = vsscanf(text, format, list);
    va_end(list);
    return count;
}

/* -- called from Python ---------------------------------------------------------------------------------- */

static const struct {
    void **to;
    const char *name;
} wanted[] = {
    {(void **)&real_fetch, "_ZN8BX_CPU_C14getICacheEntryEv"},
    {(void **)&real_wait, "_ZN8BX_CPU_C18handleWaitForEventEv"},
    {(void **)&real_async, "_ZN8BX_CPU_C16handleAsyncEventEv"},
    {(void **)&real_interrupt, "_ZN8BX_CPU_C9interruptEhjbt"},
    {(void **)&real_cpu_loop, "_ZN8BX_CPU_C8cpu_loopEv"},
    {(void **)&real_vmexit, "_ZN8BX_CPU_C6VMexitEjm"},
    {(void **)&real_vmexit_io, "_ZN8BX_CPU_C9VMexit_IOEP15bxInstruction_cjj"},
    {(void **)&real_external, "_ZN8BX_CPU_C18HandleExtInterruptEv"},
    {(void **)&real_posted, "_ZN8BX_CPU_C31VMX_Posted_Interrupt_ProcessingEh"},
    {(void **)&real_evaluate_virtual, "_ZN8BX_CPU_C39VMX_Evaluate_Pending_Virtual_InterruptsEv"},
    {(void **)&real_nmi, "_ZN8BX_CPU_C11deliver_NMIEv"},
    {(void **)&real_exit_flags, "_ZN8BX_CPU_C16VMexitReadEFLAGSEjj"},
    {(void **)&real_sleep, "_ZN8BX_CPU_C17enter_sleep_stateEj"},
    {(void **)&real_service, "_ZN15bx_local_apic_c18service_local_apicEv"},
    {(void **)&real_sipi, "_ZN8BX_CPU_C12deliver_SIPIEj"},
    {(void **)&real_trigger, "_ZN15bx_local_apic_c11trigger_irqEhjb"},
    {(void **)&real_flush, "_ZN8BX_CPU_C9TLB_flushEv"},
    {(void **)&real_smc, "_Z9handleSMCmj"},
    {(void **)&real_mask_change, "_ZN8BX_CPU_C25handleInterruptMaskChangeEv"},
    {(void **)&real_inhibited, "_ZN8BX_CPU_C20interrupts_inhibitedEj"},
    {(void **)&real_inhibit, "_ZN8BX_CPU_C18inhibit_interruptsEj"},
    {(void **)&real_load_guest, "_ZN8BX_CPU_C26VMenterLoadCheckGuestStateEPm"},
    {(void **)&real_inject, "_ZN8BX_CPU_C19VMenterInjectEventsEv"},
    {(void **)&real_save_guest, "_ZN8BX_CPU_C20VMexitSaveGuestStateEjj"},
    {(void **)&real_tpr, "_ZN8BX_CPU_C22VMX_TPR_VirtualizationEv"},
    {(void **)&real_smm, "_ZN8BX_CPU_C28enter_system_management_modeEv"},
    {(void **)&real_restore, "_ZN8BX_CPU_C19smram_restore_stateEPKj"},
    {(void **)&vmread, "_ZN8BX_CPU_C8VMread32Ej"},
    {(void **)&vmwrite, "_ZN8BX_CPU_C9VMwrite32Ejj"},
    {(void **)&cpu, "bx_cpu"},
};

/* Find the functions of the package; the name of one that is missing, or NULL. */
const char *nvmx_bind(const char *path, const struct layout *layout) {
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return "the library itself";
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].to = dlsym(library, wanted[i].name);
        if (!*wanted[i].to) return wanted[i].name;
    }
    at = *layout;
    return NULL;
}

void nvmx_memory(u8 *buffer, u64 size) {
    memory = buffer;
    memory_size = size;
}

void nvmx_places(const struct places *places) { place = *places; }

/* Run L1 until it ends its script; the number of words in the log. */
u64 nvmx_run(const struct item *items, u64 count, u64 limit, int first) {
    schedule = items;
    schedule_length = count;
    position = log_length = 0;
    armed_count = 0;
    delivering = draining = arrived = delivered = run_active = entering = evaluate_interrupts = 0;
    unfinished = exit_is_due = 0;
    smm = OUTSIDE;
    held_trap = injected_trap = hidden = opened = 0;
    timer_on = timer_value = entry_ticks = 0;
    budget = limit;
    at_start = !first;
    running = 1;
    if (!setjmp(out)) real_cpu_loop();
    running = 0;
    return log_length;
}

const u64 *nvmx_log(void) { return log_words; }

/* What a scenario leaves in the CPU outside of memory: events, blocking, the APIC's registers. */
void nvmx_clean(void) {
    u8 *apic = (u8 *)CPU64(at.lapic);
    memset(apic + at.apic_isr, 0, 32);
    memset(apic + at.apic_tmr, 0, 32);
    memset(apic + at.apic_irr, 0, 32);
    CPU32(at.pending) = 0;
    if (!root_mask) root_mask = CPU32(at.mask) & ~(EVENT_NMI | EVENT_SMI);
    CPU32(at.mask) = root_mask;
    CPU32(at.debug_trap) = 0;
    CPU32(at.inhibit_mask) = 0;
    CPU64(at.cr2) = 0;
    CPU32(at.dr6) = 0xFFFF0FF0;
}
