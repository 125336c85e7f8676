/* Stops: places at which our monitor gets control although L2 runs, and what it does there (stops.py).
 *
 * A page of L2 is taken away from ourselves (PROT_NONE), which takes it from L0 too; when L2, or a delivery in L2,
 * touches it, L0 cannot repair that, and KVM_RUN returns EFAULT with everything in flight. The page is given back,
 * what the stop says is done, and L0 goes on.
 */
/* The place of a stop: here and now, a page of L2, an idle L2, an instruction of L2 that uses a port; the same
 * as the stop before it. What is done there. As in stops.py. */
enum place { NOW, AT_PAGE, ASLEEP, AT_PORT, ALSO };
enum action { NOTHING, MESSAGE, SAVE_RESTORE, CANCEL, DROP_ALL };
struct stop {
    uint64_t operation, place, where, what; /* what: an action, the operand above bit 8 */
};
enum { STOPS_MAX = 64, ASLEEP_MICROSECONDS = 4000 };

/* The stops of L1's next stay in L2, or, entered, of this one; armed: the next is. */
static struct stop stops[STOPS_MAX];
static size_t stops_queued, stops_done;
static int entered, armed, cancelled;
static const char *stop_problem;
static char smm[400];
static size_t smm_size;

static int l2_runs(void) {
    struct kvm_sregs sregs;
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs)) fail("KVM_GET_SREGS");
    return !(sregs.efer & 1 << 10); /* L1 is 64-bit code, L2 is not */
}

static void page_access(const struct stop *stop, int access) {
    if (mprotect(memory + (stop->where & (MEMORY - PAGE)), PAGE, access)) fail("mprotect");
}

static void wake_after(long microseconds) {
    struct itimerval timer = {{0, 0}, {microseconds / 1000000, microseconds % 1000000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* Make the next stop one that L2 comes by. */
static void arm(void) {
    armed = stops_done < stops_queued;
    if (!armed) return;
    if (stops[stops_done].place == AT_PAGE) page_access(&stops[stops_done], PROT_NONE);
    if (stops[stops_done].place == ASLEEP) wake_after(ASLEEP_MICROSECONDS);
}

/* The system-management handler: it uses a port of ours, and returns. */
static void install_smm(void) {
    static const uint8_t handler[] = {0xE6, SMM_PORT, 0x0F, 0xAA};
    memcpy(memory + 0x38000, handler, sizeof handler);
    if (!has_smm) memory_slot(1, MEMORY);
    has_smm = 1;
}

/* The processor is in SMM, and its state is saved where a processor with 64-bit mode saves it. */
static void note_smm(void) {
    uint64_t rip, efer;
    memcpy(&rip, memory + 0x3FF78, sizeof rip);
    memcpy(&efer, memory + 0x3FED0, sizeof efer);
    int in_l2 = !(efer & 1 << 10);
    smm_size += (size_t)snprintf(
        smm + smm_size, sizeof smm - smm_size, " %d:%llx", in_l2, in_l2 ? (unsigned long long)rip : 0);
    if (smm_size > sizeof smm - 32) smm_size = sizeof smm - 32;
}

static void show_smm(uint64_t number) {
    if (smm_size) printf("~%llx%s\n", (unsigned long long)number, smm);
    smm_size = 0;
}

static void message(uint64_t operand) {
    if ((operand & 0x700) == 0x200) install_smm();
    struct kvm_msi interrupt = {.address_lo = 0xFEE00000, .data = (uint32_t)operand};
    if (ioctl(vm, KVM_SIGNAL_MSI, &interrupt) < 0) fail("KVM_SIGNAL_MSI");
}

static void carry(unsigned long request, void *value, const char *name) {
    if (!broken[0] && ioctl(vcpu, request, value) < 0)
        snprintf(broken, sizeof broken, "stops: %s: %s", name, strerror(errno));
}

/* Save the processor and restore it into that of a new machine, the state of L1's hypervisor last but events. */
static void save_restore(void) {
    static const uint32_t numbers[] = {0x3A, 0x277}; /* IA32_FEATURE_CONTROL, IA32_PAT */
    enum { COUNT = sizeof numbers / sizeof *numbers };
    int size = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NESTED_STATE);
    struct kvm_nested_state *nested = calloc(1, size > 0 ? (size_t)size : sizeof *nested);
    struct kvm_msrs *msrs = calloc(1, sizeof *msrs + COUNT * sizeof msrs->entries[0]);
    struct kvm_vcpu_events events;
    struct kvm_mp_state activity;
    struct kvm_regs regs;
    struct kvm_sregs2 sregs;
    struct kvm_debugregs debug;
    static struct kvm_lapic_state apic;
    uint64_t tsc = 0; /* a TSC that is written is rounded to that of the machine: the offset is not */
    struct kvm_device_attr offset = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&tsc,
    };
    if (size <= 0 || !nested || !msrs) fail("KVM_CAP_NESTED_STATE");
    nested->size = (uint32_t)size;
    msrs->nmsrs = COUNT;
    for (int index = 0; index < COUNT; index++) msrs->entries[index].index = numbers[index];
    if (state->exit_reason == KVM_EXIT_IO) { /* the instruction ends with the next call only */
        state->immediate_exit = 1;
        ioctl(vcpu, KVM_RUN, 0);
        state->immediate_exit = 0;
    }
#define GET(what, value) carry(KVM_GET_##what, value, "KVM_GET_" #what)
#define SET(what, value) carry(KVM_SET_##what, value, "KVM_SET_" #what)
    GET(DEVICE_ATTR, &offset);
    GET(VCPU_EVENTS, &events);
    GET(MP_STATE, &activity);
    GET(REGS, &regs);
    GET(SREGS2, &sregs);
    GET(MSRS, msrs);
    GET(LAPIC, &apic);
    GET(DEBUGREGS, &debug);
    GET(NESTED_STATE, nested);
    end_machine();
    new_machine();
    SET(DEVICE_ATTR, &offset);
    SET(SREGS2, &sregs);
    SET(MSRS, msrs);
    SET(NESTED_STATE, nested);
    SET(REGS, &regs);
    SET(LAPIC, &apic);
    SET(VCPU_EVENTS, &events);
    SET(MP_STATE, &activity);
    SET(DEBUGREGS, &debug);
#undef GET
#undef SET
    free(msrs);
    free(nested);
}

static void act(uint64_t what) {
    switch ((enum action)(what & 0xFF)) {
    case NOTHING: break;
    case MESSAGE: message(what >> 8); break;
    case SAVE_RESTORE: save_restore(); break;
    case CANCEL: /* pending, and open during KVM_RUN only: it cancels the entry that is prepared */
        cancelled = 1;
        raise(SIGUSR1);
        break;
    case DROP_ALL:
        memory_slot(0, 0);
        memory_slot(0, MEMORY);
        break;
    }
}

/* L2 has come by the stop that is armed. */
static void reached(void) {
    if (stops[stops_done].place == AT_PAGE) page_access(&stops[stops_done], PROT_READ | PROT_WRITE);
    do act(stops[stops_done++].what);
    while (stops_done < stops_queued && stops[stops_done].place == ALSO);
    arm();
}

/* L1 is back: what it has not come by cannot be made any more. */
static void end_stay(void) {
    if (armed && stops[stops_done].place == AT_PAGE) page_access(&stops[stops_done], PROT_READ | PROT_WRITE);
    if (armed) wake_after(seconds * 1000000L);
    if (stops_done < stops_queued) stop_problem = "misses a stop";
    stops_done = stops_queued = 0;
    armed = entered = 0;
}

/* L1 has a stop, whose address it names, or (0) is about to enter L2. */
static void stop_port(uint64_t address) {
    struct stop stop = {0};
    if (address && address <= MEMORY - sizeof stop) memcpy(&stop, memory + address, sizeof stop);
    if (address && stop.place == NOW) {
        act(stop.what);
        return;
    }
    if (entered) end_stay();
    if (address && stops_queued < STOPS_MAX) stops[stops_queued++] = stop;
    if (!address && stops_queued) {
        entered = 1;
        arm();
    }
}

/* L2 sleeps, or does not yet. */
static int sleeps(void) {
    static long waited;
    struct kvm_mp_state activity;
    if (ioctl(vcpu, KVM_GET_MP_STATE, &activity)) fail("KVM_GET_MP_STATE");
    alarmed = 0;
    waited += ASLEEP_MICROSECONDS;
    if (activity.mp_state == KVM_MP_STATE_RUNNABLE) {
        wake_after(ASLEEP_MICROSECONDS);
        return waited < seconds * 1000000L;
    }
    waited = 0;
    wake_after(seconds * 1000000L);
    reached();
    return 1;
}

/* KVM_RUN has failed: whether a stop explains it, and L0 goes on. */
static int goes_on(int error) {
    int at = armed ? (int)stops[stops_done].place : NOW;
    if (error == EFAULT && at == AT_PAGE) {
        if (l2_runs()) reached();
        else end_stay();
        return 1;
    }
    if (error != EINTR) return 0;
    if (cancelled) {
        sigset_t signals;
        sigemptyset(&signals);
        sigaddset(&signals, SIGUSR1);
        sigwaitinfo(&signals, NULL);
        cancelled = 0;
        return !alarmed;
    }
    return at == ASLEEP && sleeps();
}
