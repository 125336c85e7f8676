"""A fuzzing process of a campaign: libFuzzer, the instrumented model, and nothing else.

`launcher.py` starts it as `python -m nvmx_fuzz.worker ORDER`. What must not be instrumented or lost
is done by the process that started it: shrinking, explaining, writing findings. This one may end at
any moment, by libFuzzer's C exit(), a timeout or a signal, and nothing is lost: libFuzzer writes
corpus files as it finds them.
"""

import ctypes
import errno
import os
import signal
import sys
import traceback
from typing import Final

import atheris

from nvmx_fuzz import CODE_UNDER_TEST
from nvmx_fuzz.core_choice import choose
from nvmx_fuzz.feedback import ExtraCounters, instrument, setup
from nvmx_fuzz.progress import OUT_OF_MEMORY, Message, Order, send

TIMEOUT_SECONDS: Final = 25

_PR_SET_PDEATHSIG: Final = 1


def libfuzzer_arguments(order: Order) -> list[str]:
    """The arguments for libFuzzer; the folder receives what is new. The seeds have to be there."""
    return [
        "nvmx-fuzz",
        f"-seed={order.seed}",
        f"-timeout={TIMEOUT_SECONDS}",
        f"-artifact_prefix={order.artifacts}{os.sep}",
        "-handle_int=0",  # when to stop is decided by the other process
        "-handle_term=0",
        f"-reload={order.reload}",
        *seed_arguments(order.seeds),
        order.corpus,
    ]


def seed_arguments(folder: str) -> list[str]:
    """The files of *folder* as arguments for libFuzzer: by name, and in the order of their names.

    From a folder it would take them as the file system lists them, on another disk in another order, which
    makes it another search. It reads a list with commas: our names have none, but the path may.
    """
    names = sorted(os.listdir(folder))
    if not names:
        return []  # to libFuzzer an empty list is a mistake
    place = os.open(folder, os.O_RDONLY)
    inputs = os.memfd_create("nvmx-fuzz-seeds")
    with open(inputs, "wb", closefd=False) as stream:
        stream.write(os.fsencode(",".join(f"/proc/self/fd/{place}/{name}" for name in names)))
    return [f"-seed_inputs=@/proc/self/fd/{inputs}"]


def die_with(parent: int) -> None:
    """Have the kernel end this process when *parent* is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main(argument: str) -> int:
    """Fuzz as the order in *argument* says, once standard input brings a line."""
    try:
        return fuzz(Order.from_json(argument))
    except Exception as error:  # noqa: BLE001 - whatever it is, the end is here
        # Past libFuzzer, which waits for ever at the end of a process in which it got no thread.
        traceback.print_exc()
        is_short = isinstance(error, MemoryError) or os.strerror(errno.EAGAIN) in str(error)
        os._exit(OUT_OF_MEMORY if is_short else 1)


def fuzz(order: Order) -> int:
    """Load the model; when asked to, say so and fuzz."""
    die_with(order.parent)
    choose(order.core)
    with instrument(CODE_UNDER_TEST, order.feedback) as probes:
        from nvmx_fuzz import executions, mutate, nested_events, state_feedback  # noqa: PLC0415

    states = ExtraCounters(state_feedback.COUNTERS)
    runner = executions.Executions(
        order, state_feedback.feedback_beside(probes.mode, states.buffer)
    )

    def stop(_signal: int, _frame: object) -> None:
        runner.stopping = True

    signal.signal(signal.SIGTERM, stop)
    mutator = mutate.Mutator()
    if not sys.stdin.readline():
        return 0  # whoever would have asked has gone
    setup(
        nested_events.with_defaults(libfuzzer_arguments(order)),
        runner.test_one_input,
        probes=probes,
        counters=[states],
        custom_mutator=mutator.mutate,
        custom_crossover=mutator.crossover,
    )
    send(order.messages, Message("ready", text=probes.mode, count=probes.count))
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
