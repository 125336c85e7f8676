from collections.abc import Callable

def bind(buffer: bytearray, /) -> None: ...

_trace_branch: Callable[[int], None]
