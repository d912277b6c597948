"""Builds the C++ kernels where a compiler is at hand; everything else is declared in pyproject.toml.

The library needs neither torch nor Python headers: it is a plain C interface that `mmtok.kernels.native` loads with
ctypes. One build therefore serves every Python version.
"""

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

CSRC = "kernels/csrc"


class BuildKernels(build_ext):
    """Goes on without the kernels when they do not compile, and says so once."""

    def build_extension(self, extension: Extension) -> None:
        try:
            super().build_extension(extension)
        except (CCompilerError, BaseError, OSError) as error:
            print(error)
            print("NOTICE: mmtok is installed without its C++ kernels: they did not compile, for the reason above. "
                  "Codebook searches will use the slower torch path; with a C++17 compiler at hand, install again.")


setup(
    ext_modules=[
        Extension(
            "mmtok.kernels._native",
            sources=[f"{CSRC}/{name}.cpp" for name in ("library", "avx512bf16", "avx512", "avx2", "portable")],
            depends=[f"{CSRC}/{name}" for name in ("kernels.h", "panels.inc", "search.inc", "halves.inc",
                                                   "activations.inc", "attention.inc", "scatter.inc")],
            extra_compile_args=["-O3", "-std=gnu++17", "-ffp-contract=fast", "-fno-math-errno", "-pthread",
                                "-fvisibility=default", "-Wno-psabi"],
            extra_link_args=["-pthread"],
            language="c++",
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
