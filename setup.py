"""Build of the one native part: an optional, faster branch callback for atheris.

Everything else is declared in ``pyproject.toml``. Without a compiler the build only prints a
warning, and ``nvmx_fuzz.feedback`` falls back to atheris's own callback.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "nvmx_fuzz._branch",
            sources=["fuzz/nvmx_fuzz/_branch.c"],
            extra_compile_args=["-O2"],
            optional=True,
        )
    ]
)
