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
#include "_helper_state.h"

#include "_helper_boundary.h"

#include "_helper_events.h"

#include "_helper_smm.h"

#include "_helper_stubs.h"

/* -- L1 at the places that the helper knows --------------------------------------------------------------- */

static void copy_mailbox(u64 address) {
    const u64 *box = (const u64 *)(memory + address);
    note(box[0], box[1], box + 2);
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

/* What this was compiled from, for whoever looks whether it is up to date. */
const char nvmx_source[] = NVMX_SOURCE;

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
    {(void **)&real_log_page, "_ZN8BX_CPU_C29vmx_page_modification_loggingEmmj"},
    {(void **)&vmread, "_ZN8BX_CPU_C8VMread32Ej"},
    {(void **)&vmwrite, "_ZN8BX_CPU_C9VMwrite32Ejj"},
    {(void **)&cpu, "bx_cpu"},
};

/* Touch all of the CPU object, or its cache of decoded code comes into memory over 200,000 scenarios. */
static void touch(u8 *object) {
    Dl_info info;
    const ElfW(Sym) *symbol = NULL;
    if (!dladdr1(object, &info, (void **)&symbol, RTLD_DL_SYMENT) || !symbol) return;
    for (u64 offset = 0; offset < symbol->st_size; offset += 4096) {
        volatile u8 *byte = object + offset;
        *byte = *byte;
    }
}

/* Find the functions of the package; the name of one that is missing, or NULL. */
const char *nvmx_bind(const char *path, const struct layout *layout) {
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return "the library itself";
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].to = dlsym(library, wanted[i].name);
        if (!*wanted[i].to) return wanted[i].name;
    }
    at = *layout;
    touch(cpu);
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
