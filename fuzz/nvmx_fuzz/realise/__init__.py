"""The realiser: a scenario as real x86-64 code and data, independent of who runs it."""
