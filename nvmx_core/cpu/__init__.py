"""The logical processor: VM-entry checks, event delivery, instruction boundaries, VM exits."""
