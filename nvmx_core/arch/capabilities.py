"""What a processor offers to the hypervisor on it: the IA32_VMX_* facts that event handling depends on.

Source: SDM, appendix "VMX Capability Reporting Facility".
"""

from typing import NamedTuple


class Capabilities(NamedTuple):
    """The capability bits that the VM-entry checks read.

    ``error_code_optional``: IA32_VMX_BASIC[56]; ``zero_length_injection``: IA32_VMX_MISC[30];
    ``hlt``/``shutdown``/``wait_for_sipi``: IA32_VMX_MISC[8:6]; ``monitor_trap_flag``: the 1-setting of
    that control; ``ept``: EPT and unrestricted guest, which a host that has them must use here;
    ``sti_blocks_nmi``: a choice that the manual leaves open (G7, B6).
    """

    error_code_optional: bool
    zero_length_injection: bool
    hlt: bool
    shutdown: bool
    wait_for_sipi: bool
    monitor_trap_flag: bool
    ept: bool
    sti_blocks_nmi: bool
