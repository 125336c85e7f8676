"""The model: a logical processor, two guests, KVM's nested event logic, and the rules they must keep.

Pure Python without third-party imports, input/output, clock or randomness: a scenario goes in, a journal
comes out, and the same scenario gives the same journal everywhere. ``docs/ARCHITECTURE.md`` has the
reading order.
"""
