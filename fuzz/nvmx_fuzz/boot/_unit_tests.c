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
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

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

static int kvm;
static size_t run_size;
static struct kvm_cpuid2 *cpuid;

static void fail(const char *what) {
    printf("%%! %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(2);
}

static void on_alarm(int number) { (void)number; }

static void *map(size_t size, int flags, int file) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, file, 0);
    if (memory == MAP_FAILED) fail("mmap");
    return memory;
}

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

/* As a multiboot loader leaves the processor: 32-bit protected mode, flat segments, no paging. */
static void start_state(int vcpu, uint32_t entry) {
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = entry, .rflags = 2, .rax = 0x2BADB002, .rbx = INFORMATION};
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs)) fail("KVM_GET_SREGS");
    struct kvm_segment code = {
        .limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1,
    };
    struct kvm_segment data = code;
    data.type = 3;
    data.selector = 16;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
    sregs.cr0 |= 1;
    if (ioctl(vcpu, KVM_SET_SREGS, &sregs)) fail("KVM_SET_SREGS");
    if (ioctl(vcpu, KVM_SET_REGS, &regs)) fail("KVM_SET_REGS");
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
    static char reason[80];
    for (;;) {
        if (ioctl(vcpu, KVM_RUN, 0) < 0) {
            if (errno == EINTR) return "hangs";
            snprintf(reason, sizeof reason, "stops: KVM_RUN: %s", strerror(errno));
            return reason;
        }
        switch (state->exit_reason) {
        case KVM_EXIT_IO:
            if (port(state)) return "";
            break;
        case KVM_EXIT_MMIO:
            if (!state->mmio.is_write) memset(state->mmio.data, 0xFF, sizeof state->mmio.data);
            break;
        case KVM_EXIT_INTR: return "hangs";
        case KVM_EXIT_SHUTDOWN: return "triple-faults";
        case KVM_EXIT_INTERNAL_ERROR:
            snprintf(reason, sizeof reason, "stops: KVM internal error %u", state->internal.suberror);
            return reason;
        default:
            snprintf(reason, sizeof reason, "stops: exit %u of KVM", state->exit_reason);
            return reason;
        }
    }
}

static void test(const char *path, int seconds) {
    const char *base = strrchr(path, '/');
    char name[256];
    snprintf(name, sizeof name, "%s", base ? base + 1 : path);
    char *dot = strrchr(name, '.');
    if (dot) *dot = 0;
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0) fail("KVM_CREATE_VM");
    uint64_t identity = 0xFFFBC000;
    ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity);
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xFFFBD000)) fail("KVM_SET_TSS_ADDR");
    if (ioctl(vm, KVM_CREATE_IRQCHIP, 0)) fail("KVM_CREATE_IRQCHIP");
    uint8_t *memory = map(MEMORY, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    struct kvm_userspace_memory_region region = {
        .memory_size = MEMORY,
        .userspace_addr = (uintptr_t)memory,
    };
    uint32_t entry = load(path, memory);
    inform(memory, name);
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) fail("KVM_SET_USER_MEMORY_REGION");
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    if (vcpu < 0) fail("KVM_CREATE_VCPU");
    if (ioctl(vcpu, KVM_SET_CPUID2, cpuid)) fail("KVM_SET_CPUID2");
    struct kvm_run *state = map(run_size, MAP_SHARED, vcpu);
    start_state(vcpu, entry);
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

static void open_kvm(void) {
    enum { ENTRIES = 256 };
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) fail("/dev/kvm");
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    cpuid = calloc(1, sizeof *cpuid + ENTRIES * sizeof cpuid->entries[0]);
    if (size < 0 || !cpuid) fail("KVM_GET_VCPU_MMAP_SIZE");
    run_size = (size_t)size;
    cpuid->nent = ENTRIES;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)) fail("KVM_GET_SUPPORTED_CPUID");
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
