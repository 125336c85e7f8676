/* What our programs over /dev/kvm have in common: opening it, an empty machine, the state that a multiboot loader
 * leaves, and why a machine does not go on. "%! REASON" says that nothing can run here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int kvm;
static size_t run_size;
static struct kvm_cpuid2 *cpuid;

static void fail(const char *what) {
    printf("%%! %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(2);
}

static void *map(void *where, size_t size, int flags, int file) {
    void *memory = mmap(where, size, PROT_READ | PROT_WRITE, flags, file, 0);
    if (memory == MAP_FAILED) fail("mmap");
    return memory;
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

/* A machine without memory and processor. */
static int create_vm(void) {
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0) fail("KVM_CREATE_VM");
    uint64_t identity = 0xFFFBC000;
    ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity);
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xFFFBD000)) fail("KVM_SET_TSS_ADDR");
    if (ioctl(vm, KVM_CREATE_IRQCHIP, 0)) fail("KVM_CREATE_IRQCHIP");
    return vm;
}

static int create_vcpu(int vm) {
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    if (vcpu < 0) fail("KVM_CREATE_VCPU");
    if (ioctl(vcpu, KVM_SET_CPUID2, cpuid)) fail("KVM_SET_CPUID2");
    return vcpu;
}

/* As a multiboot loader leaves the processor: 32-bit protected mode, flat segments, no paging. */
static void start_state(int vcpu, uint32_t entry, uint32_t information) {
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = entry, .rflags = 2, .rax = 0x2BADB002, .rbx = information};
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

/* Why KVM_RUN failed. */
static const char *why_not_run(void) {
    static char reason[80];
    if (errno == EINTR) return "hangs";
    snprintf(reason, sizeof reason, "stops: KVM_RUN: %s", strerror(errno));
    return reason;
}

/* Why a machine does not go on after an exit to us that nobody handles. */
static const char *why_stopped(const struct kvm_run *state) {
    static char reason[80];
    switch (state->exit_reason) {
    case KVM_EXIT_INTR: return "hangs";
    case KVM_EXIT_SHUTDOWN: return "triple-faults";
    case KVM_EXIT_INTERNAL_ERROR:
        snprintf(reason, sizeof reason, "stops: KVM internal error %u", state->internal.suberror);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(reason, sizeof reason, "stops: hardware entry fails, %#llx",
                 (unsigned long long)state->fail_entry.hardware_entry_failure_reason);
        break;
    default:
        snprintf(reason, sizeof reason, "stops: exit %u of KVM", state->exit_reason);
    }
    return reason;
}
