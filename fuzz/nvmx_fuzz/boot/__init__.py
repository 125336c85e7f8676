"""Scenarios as one bootable image: L1 and L2 that need nobody beside them, and the machines that run it."""
