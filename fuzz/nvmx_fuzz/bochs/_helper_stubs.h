/* The helper in parts (see `_helper.c`): functions of the package that abort or do not fit. */

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
