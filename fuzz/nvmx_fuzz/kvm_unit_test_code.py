"""What a C test for kvm-unit-tests is made of: its functions, L2's instructions, and names of the tree.

The names are those of ``x86/vmx.h`` and ``lib/x86`` there.
"""

from typing import Final, NamedTuple


class ControlBit(NamedTuple):
    """A VM-execution, exit or entry control: the field, its bit, and the word that says it is offered."""

    field: str
    bit: str
    offered: str


def _bits(field: str, offered: str, **bits: str) -> dict[str, ControlBit]:
    return {name.replace("_", "-"): ControlBit(field, bit, offered) for name, bit in bits.items()}


CONTROL_BITS: Final[dict[str, ControlBit]] = {
    **_bits(
        "PIN_CONTROLS", "ctrl_pin_rev.clr",
        external_interrupt_exiting="PIN_EXTINT", nmi_exiting="PIN_NMI", virtual_nmis="PIN_VIRT_NMI",
        preemption_timer="PIN_PREEMPT",
    ),
    **_bits(
        "CPU_EXEC_CTRL0", "ctrl_cpu_rev[0].clr",
        hlt_exiting="CPU_HLT", unconditional_io_exiting="CPU_IO", rdtsc_exiting="CPU_RDTSC",
        pause_exiting="CPU_PAUSE", interrupt_window_exiting="CPU_INTR_WINDOW",
        nmi_window_exiting="CPU_NMI_WINDOW", monitor_trap_flag="CPU_MTF", tpr_shadow="CPU_TPR_SHADOW",
    ),
    **_bits(
        "CPU_EXEC_CTRL1", "ctrl_cpu_rev[1].clr",
        virtual_interrupt_delivery="CPU_VINTD", virtualize_apic_accesses="CPU_VIRT_APIC_ACCESSES",
        wbinvd_exiting="CPU_WBINVD",
    ),
    **_bits(
        "EXI_CONTROLS", "ctrl_exit_rev.clr",
        acknowledge_interrupt_on_exit="EXI_INTA", save_preemption_timer="EXI_SAVE_PREEMPT",
    ),
}  # fmt: skip
"""By the names of the scenario's controls and of its configuration."""

SECONDARY: Final = "CPU_EXEC_CTRL1"

WITH_CONTROL: Final[dict[str, tuple[str, ...]]] = {
    "tpr-shadow": (
        "virtual_apic = alloc_page();",
        "vmcs_write(APIC_VIRT_ADDR, (u64)virtual_apic);",
        "vmcs_write(TPR_THRESHOLD, 0);",
    ),
    "virtualize-apic-accesses": ("vmcs_write(APIC_ACCS_ADDR, (u64)alloc_page());",),
    "virtual-interrupt-delivery": (
        *(f"vmcs_write({0x201C + 2 * number:#x} /* EOI exits */, 0);" for number in range(4)),
        "vmcs_write(GUEST_INT_STATUS, 0);",
    ),
}
"""What has to be set up before a control is turned on."""

FIELDS: Final[dict[str, str]] = {
    "TPR_THRESHOLD": "TPR_THRESHOLD",
    "ENTRY_INTR_INFO": "ENT_INTR_INFO",
    "ENTRY_ERROR_CODE": "ENT_INTR_ERROR",
    "ENTRY_INSTRUCTION_LEN": "ENT_INST_LEN",
    "GUEST_RFLAGS": "GUEST_RFLAGS",
    "GUEST_INTERRUPTIBILITY": "GUEST_INTR_STATE",
    "GUEST_ACTIVITY": "GUEST_ACTV_STATE",
    "GUEST_PENDING_DBG": "GUEST_PENDING_DEBUG",
    "GUEST_PREEMPTION_TIMER": "PREEMPT_TIMER_VALUE",
    "EXCEPTION_BITMAP": "EXC_BITMAP",
}
"""The fields that a step may write, with the tree's name for each."""

ACTIVITIES: Final = ("", "act_hlt", "act_shutdown", "act_wfsipi")
"""The bit of IA32_VMX_MISC that offers each activity state."""

ASSEMBLY: Final[dict[str, str]] = {
    "nop": '"nop" : :',
    "cpuid": '"cpuid" : : "a" (0) : "ebx", "ecx", "edx"',
    "hlt": '"hlt" : :',
    "int3": '"int3" : :',
    "int1": '".byte 0xf1" : :',
    "ud2": '"ud2" : :',
    "sti": '"sti" : :',
    "cli": '"cli" : :',
    "pause": '"pause" : :',
    "rdtsc": '"rdtsc" : : : "eax", "edx"',
    "vmcall": '"vmcall" : :',
    "out": '"out %%al, $0x80" : : "a" (0)',
    "wbinvd": '"wbinvd" : :',
}
IRET: Final = """\
"mov %%ss, %%ecx; mov %%rsp, %%rax; push %%rcx; push %%rax;"
\t\t\t\t     "pushq ${rflags:#x}; mov %%cs, %%ecx; push %%rcx;"
\t\t\t\t     "lea 1f(%%rip), %%rax; push %%rax; iretq; 1:" : : : "rax", "rcx", "memory\""""
"""IRET to the place behind it, with these flags: it ends the blocking of NMIs like one that returns."""

EXCEPTIONS_WITH_HANDLER: Final = frozenset((*range(9), *range(10, 15), *range(16, 20), 21))
"""Those that the tree's IDT has an entry of its own for; ``handle_irq`` makes one for the others."""

HEAD: Final = """\
#include "vmx.c"
#include "alloc_page.h"
#include "apic.h"
#include "desc.h"
#include "isr.h"

static volatile bool in_l2;
static volatile unsigned int l2_next;
static volatile unsigned int l2_events;
"""

VARIABLES: Final[dict[str, str]] = {
    "entry": "static struct vmentry_result entry;\n",
    "virtual_apic": "static u8 *virtual_apic;\n",
    "untouched": "/* What nobody has touched. */\nstatic u8 untouched[UNTOUCHED][1 << 21];\n",
}

HELPERS: Final[dict[str, str]] = {
    "require": """\
static void require(bool offered, const char *what)
{
	if (!offered)
		test_skip(what);
}
""",
    "l2_exception": """\
/* L2 takes an event: its program goes on in the handler. */
static void l2_exception(struct ex_regs *regs)
{
	if (!in_l2)
		report_abort("exception %lu while L1 runs", regs->vector);
	l2_events++;
	l2_program();
}
""",
    "interrupt": """\
static void interrupt(isr_regs_t *regs)
{
	if (in_l2) {
		l2_events++;
		l2_program();
	}
	eoi();
}
""",
    "self_interrupt": """\
static void self_interrupt(unsigned int vector)
{
	apic_icr_write(APIC_DEST_SELF | APIC_DEST_PHYSICAL | APIC_DM_FIXED | vector, 0);
}
""",
    "fresh_stack": """\
/* The next delivery is the first to touch its stack: a hypervisor below may have to map it then. */
static void fresh_stack(void)
{
	static unsigned int used;

	vmcs_write(GUEST_RSP, (u64)untouched[used++] + (1 << 20));
}
""",
    "virtual_interrupt": """\
static void virtual_interrupt(u8 vector)
{
	u64 status = vmcs_read(GUEST_INT_STATUS);

	virtual_apic[0x200 + vector / 32 * 16 + vector % 32 / 8] |= 1 << vector % 8;
	if (vector > (status & 0xff))
		vmcs_write(GUEST_INT_STATUS, (status & 0xff00) | vector);
}
""",
    "enter_l2": """\
static void enter_l2(void)
{
	in_l2 = true;
	__enter_guest(0, &entry);
	in_l2 = false;
}
""",
    "expect_exit": """\
/* The event words count where their valid bit is set. */
static void expect_exit(u32 reason, u32 interruption, u32 vectoring)
{
	u32 seen = vmcs_read(EXI_INTR_INFO);
	u32 seen_vectoring = vmcs_read(IDT_VECT_INFO) & ~(1u << 12);

	TEST_ASSERT_EQ(entry.vm_fail, false);
	TEST_ASSERT_EQ((u32)vmcs_read(EXI_REASON), reason);
	TEST_ASSERT_EQ(seen & (1u << 31) ? seen : 0, interruption);
	TEST_ASSERT_EQ(seen_vectoring & (1u << 31) ? seen_vectoring : 0, vectoring);
	TEST_ASSERT_EQ((u32)vmcs_read(ENT_INTR_INFO) >> 31, 0u);
}
""",
    "expect_failed_entry": """\
static void expect_failed_entry(u32 reason, u64 qualification)
{
	TEST_ASSERT_EQ(entry.vm_fail, false);
	TEST_ASSERT_EQ((u32)vmcs_read(EXI_REASON), reason);
	TEST_ASSERT_EQ(vmcs_read(EXI_QUALIFICATION), qualification);
}
""",
    "expect_vmfail": """\
static void expect_vmfail(u32 number)
{
	TEST_ASSERT_EQ(entry.vm_fail, true);
	TEST_ASSERT_EQ((u32)vmcs_read(VMX_INST_ERROR), number);
}
""",
    "expect_state": """\
static void expect_state(u32 activity, u32 interruptibility)
{
	TEST_ASSERT_EQ((u32)vmcs_read(GUEST_ACTV_STATE), activity);
	TEST_ASSERT_EQ((u32)vmcs_read(GUEST_INTR_STATE), interruptibility);
}
""",
    "expect_events": """\
/* So many events were taken in L2: none is lost, none comes twice. */
static void expect_events(unsigned int number)
{
	TEST_ASSERT_EQ(l2_events, number);
}
""",
    "expect_at_handler": """\
/* The event was delivered, and its handler has not begun. */
static void expect_at_handler(u8 vector)
{
	TEST_ASSERT_EQ(vmcs_read(GUEST_RIP), (u64)get_idt_addr(&boot_idt[vector]));
}
""",
    "behind_instruction": """\
static void behind_instruction(void)
{
	vmcs_write(GUEST_RIP, vmcs_read(GUEST_RIP) + vmcs_read(EXI_INST_LEN));
}
""",
    "take_interrupts": """\
static void take_interrupts(void)
{
	asm volatile("sti; nop; nop; cli");
}
""",
}
"""The functions of the host, in the order of the file; a file holds those that it calls."""
