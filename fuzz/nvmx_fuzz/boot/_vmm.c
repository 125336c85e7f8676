/* A virtual machine monitor over /dev/kvm, for the bootable image only.
 *
 *     vmm IMAGE [SECONDS]
 *
 * Each scenario of the batch gets a virtual machine of its own, so that L0 has mapped none of its pages: every
 * first touch of one, in the middle of a delivery too, is an exit that L0 repairs. The image announces each line at
 * a port; this program writes it to standard output. What does not end by itself is noted, and the next one goes on:
 *
 *     %NUMBER REASON    a scenario that hangs (SECONDS, 2), triple-faults or makes KVM give up, or one whose
 *                       line stands there and that did not come by a stop
 *     %! REASON         nothing can run here
 *     ~NUMBER L:RIP ... where SMIs came: 1 in L2, and there; 0 in L1
 *
 * A scenario may ask for stops, at which this program gets control although L2 runs (_vmm_stops.h).
 *
 * Exit status: 0 the batch is done, 2 nothing can run.
 */
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <termios.h>
#include <unistd.h>

#include "_kvm.h"

/* As in places.py. */
enum {
    IMAGE = 0x400000,
    ENTRY = 0x40,
    PARAMETERS = 0x1000,
    FIRST = 1,
    END,
    RINGS,
    OUTPUT = 0x3000000,
    MEMORY = 0x4000000,
    DOORBELL = 0x5E0,
    STOP_PORT = 0x5E8,
    SMM_PORT = 0xF4,
    LINE = 0x100000,
    PAGE = 0x1000,
};
static const uint64_t MAGIC = 0x31585A46584D564E;

enum outcome { DONE, REFUSED };

static int image_file;
static size_t image_size;

/* The machine that runs; why it cannot go on, or "". */
static int vm, vcpu, seconds = 2;
static struct kvm_run *state;
static uint8_t *memory;
static char broken[80];
static int has_smm;
static volatile sig_atomic_t alarmed;

static void on_alarm(int number) {
    (void)number;
    alarmed = 1;
}

/* The memory, also as what a processor in SMM sees (space 1). */
static void memory_slot(uint32_t space, uint64_t size) {
    struct kvm_userspace_memory_region region = {
        .slot = space << 16,
        .memory_size = size,
        .userspace_addr = (uintptr_t)memory,
    };
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) fail("KVM_SET_USER_MEMORY_REGION");
}

static void guest_memory(uint64_t number, uint64_t end, int greets) {
    memory = map(NULL, MEMORY, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    map(memory + IMAGE, image_size, MAP_PRIVATE | MAP_FIXED, image_file);
    uint64_t *parameters = (uint64_t *)(memory + IMAGE + PARAMETERS);
    parameters[FIRST] = number;
    parameters[END] = end;
    parameters[RINGS] = greets ? 1 : 2;
}

static void enable(int capability) {
    struct kvm_enable_cap wanted = {.cap = (uint32_t)capability, .args = {1}};
    ioctl(vm, KVM_ENABLE_CAP, &wanted); /* a kernel without it has nothing to save there */
}

/* A machine with one processor over the memory, of which L0 has mapped nothing. */
static void new_machine(void) {
    vm = create_vm();
    enable(KVM_CAP_EXCEPTION_PAYLOAD);
    enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT);
    memory_slot(0, MEMORY);
    if (has_smm) memory_slot(1, MEMORY);
    vcpu = create_vcpu(vm);
    state = map(NULL, run_size, MAP_SHARED, vcpu);
    struct {
        uint32_t length;
        uint8_t blocked[8];
    } open = {.length = 8}; /* struct kvm_signal_mask: none is blocked */
    if (ioctl(vcpu, KVM_SET_SIGNAL_MASK, &open)) fail("KVM_SET_SIGNAL_MASK");
}

static void end_machine(void) {
    munmap(state, run_size);
    close(vcpu);
    close(vm);
}

#include "_vmm_stops.h"

/* The image has used a port: 1 when its machine is done, 2 when it refuses to run. */
static int port(int greets) {
    uint8_t *value = (uint8_t *)state + state->io.data_offset;
    if (state->io.direction == KVM_EXIT_IO_IN) memset(value, 0xFF, state->io.size * state->io.count);
    if (state->io.port == SMM_PORT) note_smm();
    if (armed && stops[stops_done].place == AT_PORT && state->io.port == stops[stops_done].where) {
        reached();
        return 0;
    }
    if (state->io.direction == KVM_EXIT_IO_IN) return 0;
    uint32_t length = 0;
    memcpy(&length, value, state->io.size < sizeof length ? state->io.size : sizeof length);
    if (state->io.port == STOP_PORT) {
        stop_port(length);
        return 0;
    }
    if (state->io.port != DOORBELL) return 0;
    char kind = (char)memory[OUTPUT];
    end_stay();
    if (kind == '$') return 1;
    if (length <= LINE && (kind != '@' || greets)) fwrite(memory + OUTPUT, 1, length, stdout);
    return kind == '!' ? 2 : 0;
}

/* Run one virtual machine to its end; why it did not end by itself, or NULL. */
static const char *run(int greets, enum outcome *outcome) {
    broken[0] = 0;
    for (;;) {
        if (broken[0]) return broken;
        if (ioctl(vcpu, KVM_RUN, 0) < 0) {
            if (goes_on(errno)) continue;
            return why_not_run();
        }
        if (state->exit_reason != KVM_EXIT_IO) return why_stopped(state);
        int ended = port(greets);
        if (ended == 2) *outcome = REFUSED;
        if (ended) return NULL;
    }
}

static enum outcome scenario(uint64_t number, uint64_t end, int greets) {
    guest_memory(number, end, greets);
    has_smm = 0;
    new_machine();
    start_state(vcpu, IMAGE + ENTRY, 0);
    entered = stops_queued = stops_done = 0;
    armed = cancelled = 0;
    stop_problem = NULL;
    alarmed = 0;
    wake_after(seconds * 1000000L);
    enum outcome outcome = DONE;
    const char *reason = run(greets, &outcome);
    wake_after(0);
    if (!reason) reason = stop_problem;
    show_smm(number);
    if (reason) printf("%%%llx %s\n", (unsigned long long)number, reason);
    fflush(stdout);
    end_machine();
    munmap(memory, MEMORY);
    return outcome;
}

int main(int count, char **arguments) {
    if (count < 2) return 2;
    if (count > 2) seconds = atoi(arguments[2]);
    struct stat status;
    image_file = open(arguments[1], O_RDONLY | O_CLOEXEC);
    if (image_file < 0 || fstat(image_file, &status)) fail(arguments[1]);
    image_size = (size_t)status.st_size;
    uint64_t parameters[3];
    if (pread(image_file, parameters, sizeof parameters, PARAMETERS) != sizeof parameters || parameters[0] != MAGIC) {
        errno = EINVAL;
        fail(arguments[1]);
    }
    open_kvm();
    struct sigaction action = {.sa_handler = on_alarm}; /* no SA_RESTART: it ends KVM_RUN */
    sigaction(SIGALRM, &action, NULL);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    uint64_t number = parameters[FIRST], end = parameters[END];
    /* A batch of nothing greets. */
    enum outcome outcome = number < end ? DONE : scenario(number, number, 1);
    for (int greets = 1; number < end && outcome == DONE; number++, greets = 0)
        outcome = scenario(number, number + 1, greets);
    printf("$ *210c8933\n");
    fflush(stdout);
    tcdrain(STDOUT_FILENO); /* the machine is turned off behind this */
    return 0;
}
