"""The machine ``bochs``: L1 and L2 of a scenario as machine code on the Bochs CPU.

It needs the extra ``nvmx-fuzz[bochs]`` and the C helper ``_helper.c``; the rest of the project does without.
"""
