"""Traces of a real KVM: read, followed vCPU by vCPU, and held against the rules.

``source`` opens a file, ``reader`` cuts it into lines and finds the events, ``formats`` reads one event in
whatever spelling, ``words`` judges what one event says by itself, ``vcpu`` and ``late`` judge what follows
what, ``check`` puts them together, ``report`` tells a person. ``seed`` makes a scenario of a stretch.
"""
