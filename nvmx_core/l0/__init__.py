"""KVM's nested VMX event logic: queues, nested entry, nested exit, the nested-event check, routing.

The L0 here is ``fixed``: KVM's structure with all known bugs mended, so that no L1 can tell it from bare
metal. It is one class built in layers; every decision that a historical bug got wrong is a method of its
own, and a bug is a subclass that replaces it.
"""
