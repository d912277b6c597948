"""The C++ library behind the CPU operators, called through ctypes, which releases Python's lock during a call.

Legend: N vectors, D dimensions, V codes, Q depths.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = ("avx512bf16", "avx512", "avx2", "portable")  # the numbers csrc/library.cpp gives the paths
VERSION = 4  # of the C interface, as csrc/library.cpp states it
DTYPES = {torch.float32: 0, torch.bfloat16: 1}

_library: Any = None  # the loaded ctypes.CDLL
problem: str | None = None  # why the library can't be used
_selected = NAMES.index("portable")


def _load() -> None:
    global _library, problem
    suffix = ".pyd" if sys.platform == "win32" else ".so"
    files = sorted(Path(__file__).parent.glob(f"_native*{suffix}"))
    if not files:
        problem = "the C++ kernels were not built (a C++ compiler must be there when mmtok is installed)"
        return
    try:
        _library = ctypes.CDLL(str(files[0]))
    except OSError as error:
        problem = f"the C++ kernels do not load ({error})"
        return
    pointer, number, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    rows = [pointer, number, number, number, integer]
    older = f"{files[0].name} was built from other sources: install mmtok again (pip install -e .)"
    for name, result, arguments in (
        ("version", integer, []),
        ("path", ctypes.c_char_p, [integer]),
        ("nearest", integer,
         [integer, integer, *rows, *[pointer] * 2, number, number, integer, number, *[pointer] * 2]),
        ("residual", integer,
         [integer, integer, *rows, *[pointer] * 2, number, number, number, integer, *[pointer] * 3]),
        ("sums", integer, [integer, integer, *rows, number, pointer, pointer, number, pointer, pointer]),
        ("gather", integer,
         [integer, integer, pointer, number, pointer, pointer, number, number, number, integer, ctypes.c_float]),
        ("activation", None, [integer, integer, pointer, pointer, number, integer, number, number, pointer, pointer]),
        ("snake_backward", None, [integer, integer, *[pointer] * 3, number, number, number, *[pointer] * 3]),
        ("attention", integer,
         [integer, integer, *[pointer] * 5, *[number] * 5, ctypes.c_float, integer]),
        ("centres", None, [pointer, number, number, number, integer, pointer]),
        ("use_openmp", None, [pointer]),
        ("multiply_add_peak", ctypes.c_double, [integer, integer, number]),
        ("scratch_peak", number, []),
    ):
        try:
            function = getattr(_library, f"mmtok_{name}")
        except AttributeError:
            problem = older
            return
        function.restype, function.argtypes = result, arguments
    if _library.mmtok_version() != VERSION:
        problem = older
        return
    _library.mmtok_use_openmp(_openmp_entry())


def _openmp_entry() -> int | None:
    """Address of GOMP_parallel in the OpenMP library torch has loaded (GNU's, Intel's and LLVM's offer it)."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    files = sorted(set(re.findall(r"/\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*", maps)))
    # several libraries have several sets of threads: only torch's own is of use
    files = [file for file in files if "/torch" in file] or files
    if len(files) != 1:
        return None
    try:
        return ctypes.cast(ctypes.CDLL(files[0]).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


@functools.cache
def paths() -> tuple[str, ...]:
    """The code paths this processor runs, widest first."""
    if _library is None:
        return ()
    return tuple(name for number, name in enumerate(NAMES) if _library.mmtok_path(number))


def select(path: str) -> None:
    """Makes later calls take this path."""
    global _selected
    _selected = NAMES.index(path)


def nearest_code(x: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    x, codebook = _plain(x), _plain(codebook).contiguous()
    codes = torch.empty(x.shape[0], k, dtype=torch.int64)
    distance = torch.empty(x.shape[0], k)
    centre = _centres(codebook[None])
    _check(_library.mmtok_nearest(
        _selected, torch.get_num_threads(), *_rows(x), codebook.data_ptr(), centre.data_ptr(), *codebook.shape,
        DTYPES[codebook.dtype], k, codes.data_ptr(), distance.data_ptr(),
    ))
    return codes, distance


def residual_encode(x: Tensor, codebooks: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor]:
    x, codebooks = _plain(x), _plain(codebooks).contiguous()
    codes = torch.empty(x.shape[0], codebooks.shape[0], dtype=torch.int64)
    total = torch.zeros(x.shape, dtype=torch.float32)
    if not codebooks.shape[0]:
        return codes, total
    centres = _centres(codebooks)
    depth = None if depth is None else depth.to(torch.int64).contiguous()
    _check(_library.mmtok_residual(
        _selected, torch.get_num_threads(), *_rows(x), codebooks.data_ptr(), centres.data_ptr(), *codebooks.shape,
        DTYPES[codebooks.dtype], _pointer(depth), codes.data_ptr(), total.data_ptr(),
    ))
    return codes, total


def gather_add_(out: Tensor, codes: Tensor, codebooks: Tensor, alpha: float) -> None:
    target = out.contiguous()
    codes, codebooks = codes.contiguous(), _plain(codebooks).contiguous()
    _check(_library.mmtok_gather(
        _selected, torch.get_num_threads(), target.data_ptr(), target.shape[0], codes.data_ptr(), codebooks.data_ptr(),
        *codebooks.shape, DTYPES[codebooks.dtype], alpha,
    ))
    if target is not out:
        out.copy_(target)


def code_sums(x: Tensor, codes: Tensor, size: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    x, codes = _plain(x), codes.contiguous()
    mask = None if mask is None else mask.contiguous()
    counts, sums = torch.empty(size), torch.empty(size, x.shape[1])
    _check(_library.mmtok_sums(
        _selected, torch.get_num_threads(), *_rows(x), x.shape[1], codes.data_ptr(), _pointer(mask), size,
        counts.data_ptr(), sums.data_ptr(),
    ))
    return counts, sums


def snake(x: Tensor, alpha: Tensor, inverse: Tensor) -> Tensor:
    x, _ = _laid_out(x)
    y = torch.empty_like(x)
    snake_out(x, alpha, inverse, y)
    return y


def snake_out(x: Tensor, alpha: Tensor, inverse: Tensor, out: Tensor) -> None:
    x, inner = _laid_out(x)
    y = out if out.stride() == x.stride() else torch.empty_like(x)
    alpha, inverse = alpha.float().contiguous(), inverse.float().contiguous()
    _library.mmtok_activation(
        _selected, torch.get_num_threads(), x.data_ptr(), y.data_ptr(), x.numel(), DTYPES[x.dtype], x.shape[1], inner,
        alpha.data_ptr(), inverse.data_ptr(),
    )
    if y is not out:
        out.copy_(y)


def snake_backward(grad: Tensor, x: Tensor, alpha: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad, x = grad.float().contiguous(), x.float().contiguous()
    alpha, inverse = alpha.float().contiguous(), inverse.float().contiguous()
    dx, sums = torch.empty_like(x), torch.empty(*x.shape[:2], 2, dtype=torch.float64)
    _library.mmtok_snake_backward(
        _selected, torch.get_num_threads(), grad.data_ptr(), x.data_ptr(), dx.data_ptr(), x.shape[0] * x.shape[1],
        x.shape[1], math.prod(x.shape[2:]), alpha.data_ptr(), inverse.data_ptr(), sums.data_ptr(),
    )
    first, second = sums.sum(0).unbind(1)
    return dx, (first * inverse).float(), second.float()


def elu(x: Tensor) -> Tensor:
    x, _ = _laid_out(x)
    y = torch.empty_like(x)
    _library.mmtok_activation(
        _selected, torch.get_num_threads(), x.data_ptr(), y.data_ptr(), x.numel(), DTYPES[x.dtype], 1, 1, None, None
    )
    return y


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, queries, dim = q.shape
    out = q.new_empty(batch, queries, heads, dim)
    strides = (ctypes.c_int64 * 9)(*(s for x in (q, k, v) for s in x.stride()[:3]))
    _check(_library.mmtok_attention(
        _selected, torch.get_num_threads(), q.data_ptr(), k.data_ptr(), v.data_ptr(), strides, out.data_ptr(), batch,
        heads, queries, k.shape[2], dim, scale, DTYPES[q.dtype],
    ))
    return out.transpose(1, 2)


def _laid_out(x: Tensor) -> tuple[Tensor, int]:
    """x [B, C, ...] with channels first or last in memory, and how many values in a row share a channel."""
    if x.dim() == 3 and x.shape[1] > 1 and x.stride(1) == 1:
        return x.transpose(1, 2).contiguous().transpose(1, 2), 1
    x = x.contiguous()
    return x, max(1, math.prod(x.shape[2:]))


def multiply_add_peak(path: str, threads: int, rounds: int) -> float:
    """Floating-point operations a second that independent multiply-adds reach."""
    return _library.mmtok_multiply_add_peak(NAMES.index(path), threads, rounds)


def scratch_peak() -> int:
    """The most bytes of scratch memory held at once since the last call."""
    return _library.mmtok_scratch_peak()


def _plain(x: Tensor) -> Tensor:
    return x if x.dtype in DTYPES else x.float()


def _centres(codebooks: Tensor) -> Tensor:
    """Means float32 [Q, D] of codebooks [Q, V, D]; the same shift for rows and codes, so rounding it is harmless."""
    centres = torch.empty(codebooks.shape[0], codebooks.shape[2])
    _library.mmtok_centres(codebooks.data_ptr(), *codebooks.shape, DTYPES[codebooks.dtype], centres.data_ptr())
    return centres


def _rows(x: Tensor) -> tuple[int, int, int, int, int]:
    return x.data_ptr(), x.shape[0], x.stride(0), x.stride(1), DTYPES[x.dtype]


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _check(status: int) -> None:
    if status == 1:
        raise MemoryError("mmtok.kernels: no scratch memory")
    if status == 2:
        raise IndexError("mmtok.kernels: a code lies outside its codebook")


_load()
