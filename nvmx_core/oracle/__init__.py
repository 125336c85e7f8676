"""The properties that every L0 must keep, one file each, and the judge that asks them all."""
