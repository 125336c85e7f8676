/* The helper in parts (see `_helper.c`): what it knows, the functions of the package, the log. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
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
static void (*real_log_page)(u64, u64, unsigned);
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
