/* A loader for kvm-unit-tests over /dev/kvm: multiboot files, a serial port and their exit port, no firmware.
 *
 *     unit_tests SECONDS FILE...
 *
 * Each FILE runs in a virtual machine of its own, with its own name, without folder and ending, as the test to run.
 * Its serial port goes to standard output, between two lines of this program:
 *
 *     %= NAME
 *     %. REASON    empty when the test used its exit port; or that it hangs (SECONDS), triple-faults, makes KVM give up
 *     %! REASON    nothing can run here
 */
#include <elf.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "_kvm.h"

enum {
    MEMORY = 0x4000000,
    /* Below 1 MiB, where no test is linked; their page 0 takes the start of other processors. */
    INFORMATION = 0x9000,
    MODULE = 0x9100,
    ARGUMENTS = 0x9200,
    ENVIRONMENT = 0xA000,
    SERIAL = 0x3F8,
    LINE_CONTROL = SERIAL + 3,
    LINE_STATUS = SERIAL + 5,
    DIVISOR_LATCH = 0x80,
    READY = 0x60,
    EXIT_PORT = 0xF4,
};
static const char environment[] = "NR_CPUS=1\nMEMSIZE=64\nBOOTLOADER=1\n";

/* What a multiboot loader says; the flags tell of memory, arguments and modules. */
struct information {
    uint32_t flags, lower_kib, upper_kib, device, arguments, module_count, modules;
};
struct module {
    uint32_t start, end, arguments, reserved;
};

static void on_alarm(int number) { (void)number; }

/* Load the segments of a 32-bit ELF file; where it begins. */
static uint32_t load(const char *path, uint8_t *memory) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    Elf32_Ehdr head;
    if (file < 0 || fstat(file, &status) || pread(file, &head, sizeof head, 0) != sizeof head) fail(path);
    errno = ENOEXEC;
    if (memcmp(head.e_ident, ELFMAG, SELFMAG) || head.e_ident[EI_CLASS] != ELFCLASS32) fail(path);
    for (int index = 0; index < head.e_phnum; index++) {
        Elf32_Phdr part;
        if (pread(file, &part, sizeof part, head.e_phoff + index * sizeof part) != sizeof part) fail(path);
        if (part.p_type != PT_LOAD) continue;
        if (part.p_paddr > MEMORY || part.p_memsz > MEMORY - part.p_paddr || part.p_filesz > part.p_memsz) fail(path);
        if (pread(file, memory + part.p_paddr, part.p_filesz, part.p_offset) != (ssize_t)part.p_filesz) fail(path);
    }
    close(file);
    return head.e_entry;
}

static void inform(uint8_t *memory, const char *name) {
    memcpy(memory + ENVIRONMENT, environment, sizeof environment - 1);
    struct module module = {.start = ENVIRONMENT, .end = ENVIRONMENT + sizeof environment - 1};
    memcpy(memory + MODULE, &module, sizeof module);
    snprintf((char *)memory + ARGUMENTS, ENVIRONMENT - ARGUMENTS, "%s.flat %s", name, name);
    struct information information = {
        .flags = 1 | 4 | 8, .lower_kib = 639, .upper_kib = (MEMORY >> 10) - 1024,
        .arguments = ARGUMENTS, .module_count = 1, .modules = MODULE,
    };
    memcpy(memory + INFORMATION, &information, sizeof information);
}

/* The test has used a port; whether it is done. */
static int port(struct kvm_run *state) {
    static int latched;
    uint8_t *value = (uint8_t *)state + state->io.data_offset;
    if (state->io.direction == KVM_EXIT_IO_IN) {
        memset(value, state->io.port == LINE_STATUS ? READY : 0, state->io.size * state->io.count);
        return 0;
    }
    if (state->io.port == LINE_CONTROL) latched = *value & DIVISOR_LATCH;
    if (state->io.port == SERIAL && !latched) fwrite(value, 1, state->io.count, stdout);
    return state->io.port == EXIT_PORT;
}

/* Run one virtual machine to its end; why it did not end by itself, or "". */
static const char *run(int vcpu, struct kvm_run *state) {
    for (;;) {
        if (ioctl(vcpu, KVM_RUN, 0) < 0) return why_not_run();
        switch (state->exit_reason) {
        case KVM_EXIT_IO:
            if (port(state)) return "";
            break;
        case KVM_EXIT_MMIO:
            if (!state->mmio.is_write) memset(state->mmio.data, 0xFF, sizeof state->mmio.data);
            break;
        default: return why_stopped(state);
        }
    }
}

static void test(const char *path, int seconds) {
    const char *base = strrchr(path, '/');
    char name[256];
    snprintf(name, sizeof name, "%s", base ? base + 1 : path);
    char *dot = strrchr(name, '.');
    if (dot) *dot = 0;
    int vm = create_vm();
    uint8_t *memory = map(NULL, MEMORY, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    struct kvm_userspace_memory_region region = {
        .memory_size = MEMORY,
        .userspace_addr = (uintptr_t)memory,
    };
    uint32_t entry = load(path, memory);
    inform(memory, name);
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) fail("KVM_SET_USER_MEMORY_REGION");
    int vcpu = create_vcpu(vm);
    struct kvm_run *state = map(NULL, run_size, MAP_SHARED, vcpu);
    start_state(vcpu, entry, INFORMATION);
    printf("\n%%= %s\n", name);
    fflush(stdout);
    struct itimerval timer = {{0}, {seconds, 0}}, off = {{0}, {0}};
    setitimer(ITIMER_REAL, &timer, NULL);
    const char *reason = run(vcpu, state);
    setitimer(ITIMER_REAL, &off, NULL);
    printf("\n%%. %s\n", reason);
    fflush(stdout);
    munmap(state, run_size);
    close(vcpu);
    close(vm);
    munmap(memory, MEMORY);
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    open_kvm();
    struct sigaction action = {.sa_handler = on_alarm}; /* no SA_RESTART: it ends KVM_RUN */
    sigaction(SIGALRM, &action, NULL);
    for (int index = 2; index < count; index++) test(arguments[index], atoi(arguments[1]));
    printf("%%. all\n");
    return 0;
}
