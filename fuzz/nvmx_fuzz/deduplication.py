"""What ClusterFuzz takes two findings for the same by: the names of the functions that raise them.

Not compiled with the model: a compiled function has no code object that could get another name.
"""

import re
from typing import Final, NoReturn

_NO_LETTERS: Final = re.compile(r"\W+", re.ASCII)


def raise_called_after(key: str, finding: Exception) -> NoReturn:
    """Raise *finding* in a function whose name is *key*.

    ClusterFuzz takes findings for the same whose last three functions of the traceback are called the same.
    """

    def raiser() -> NoReturn:
        raise finding

    raiser.__code__ = raiser.__code__.replace(co_name=_NO_LETTERS.sub("_", key))
    raiser()
