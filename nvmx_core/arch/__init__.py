"""What the manual says, as tables: VMCS fields, controls, events, exit reasons, instructions, rules."""
