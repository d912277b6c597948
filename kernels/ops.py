"""The public operators, registered with torch so that `torch.compile` and autocast know them.

Legend: N vectors, D dimensions, V codes, Q depths, k nearest. No operator carries gradients: codes are integers, and
what training needs (straight-through, codebook loss) is built on the gathered codes outside.
Which implementation runs is decided in `dispatch.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.kernels import dispatch, reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def nearest_code(x: Tensor, codebook: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The code (or the k codes) of `codebook` [V, D] nearest to each row of `x` [N, D], any float type, any strides.

    Returns codes int64 [N] and squared Euclidean distances float32 [N]; both [N, k], nearest first, when k > 1.
    The lowest index wins a tie. Other than ties within float32 rounding (a gap below 4e-6 * (|x|^2 + |c|^2)) codes
    equal those found in float64. A row with NaN gets some code within range. Scratch memory is at most 8 MiB.
    """
    _check_rows("x", x, codebook)
    if codebook.dim() != 2 or codebook.shape[0] == 0:
        raise ValueError(f"nearest_code: codebook must be [V, D] with V > 0, got {tuple(codebook.shape)}")
    if not 1 <= k <= codebook.shape[0]:
        raise ValueError(f"nearest_code: k must lie in 1..{codebook.shape[0]} (the codebook's size), got {k}")
    codes, distance = torch.ops.mmtok.nearest_code(x.detach(), codebook.detach(), k)
    return (codes[:, 0], distance[:, 0]) if k == 1 else (codes, distance)


def residual_encode(x: Tensor, codebooks: Tensor, depth: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Residual quantization: depth q codes what depths before it left over.

    x [N, D]; codebooks [Q, V, D]; depth int64 [N], how many depths each row uses (None: all Q).
    Returns codes int64 [N, Q], 0 where a depth is not used, and the sum of the codes used, float32 [N, D].
    """
    _check_rows("x", x, codebooks)
    if codebooks.dim() != 3 or codebooks.shape[1] == 0:
        raise ValueError(f"residual_encode: codebooks must be [Q, V, D] with V > 0, got {tuple(codebooks.shape)}")
    if depth is not None and depth.shape != x.shape[:1]:
        raise ValueError(f"residual_encode: depth must be [N] = [{x.shape[0]}], got {tuple(depth.shape)}")
    return torch.ops.mmtok.residual_encode(x.detach(), codebooks.detach(), depth)


def gather_add(codes: Tensor, codebooks: Tensor, out: Tensor | None = None, alpha: float = 1.0) -> Tensor:
    """out + alpha * codes' vectors, in place; a new float32 [N, D] when `out` is None.

    codes int64 [N] with codebooks [V, D], or [N, Q] with [Q, V, D] (then the sum over Q). `alpha=-1` is the residual
    update. A code outside its codebook raises IndexError before anything is written.
    """
    if codes.dim() == 1:
        codes, codebooks = codes[:, None], codebooks[None]
    if codes.dim() != 2 or codebooks.dim() != 3 or codes.shape[1] != codebooks.shape[0]:
        raise ValueError(f"gather_add: codes {tuple(codes.shape)} do not fit codebooks {tuple(codebooks.shape)}")
    if out is None:
        out = torch.zeros(codes.shape[0], codebooks.shape[2], device=codebooks.device)
    elif out.shape != (codes.shape[0], codebooks.shape[2]) or out.dtype != torch.float32:
        raise ValueError(f"gather_add: out must be float32 [N, D], got {out.dtype} {tuple(out.shape)}")
    torch.ops.mmtok.gather_add_(out, codes, codebooks.detach(), alpha)
    return out


def code_sums(x: Tensor, codes: Tensor, size: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What an EMA codebook needs: counts float32 [V] of the codes chosen and sums float32 [V, D] of their rows.

    x [N, D]; codes int64 [N] in 0..size-1; mask bool [N] leaves rows out. Rows are added in order: the same result
    whatever the number of threads.
    """
    if x.dim() != 2 or codes.shape != x.shape[:1] or (mask is not None and mask.shape != codes.shape):
        raise ValueError(f"code_sums: x {tuple(x.shape)} and codes {tuple(codes.shape)} (and mask) must share N")
    return torch.ops.mmtok.code_sums(x.detach(), codes, size, mask)


def _check_rows(name: str, x: Tensor, codebook: Tensor) -> None:
    if x.dim() != 2 or x.shape[1] != codebook.shape[-1]:
        raise ValueError(f"{name} must be [N, D] with the codebook's D, got {tuple(x.shape)}, {tuple(codebook.shape)}")
    if x.dtype not in FLOATS or codebook.dtype not in FLOATS:
        raise ValueError(f"{name} and codebook must be floating point, got {x.dtype} and {codebook.dtype}")


LIBRARY = torch.library.Library("mmtok", "DEF")
LIBRARY.define("nearest_code(Tensor x, Tensor codebook, int k) -> (Tensor, Tensor)")
LIBRARY.define("residual_encode(Tensor x, Tensor codebooks, Tensor? depth) -> (Tensor, Tensor)")
LIBRARY.define("gather_add_(Tensor(a!) out, Tensor codes, Tensor codebooks, float alpha) -> ()")
LIBRARY.define("code_sums(Tensor x, Tensor codes, int size, Tensor? mask) -> (Tensor, Tensor)")

# any device torch knows; CPU and CUDA override it
LIBRARY.impl("nearest_code", reference.nearest_code, "CompositeExplicitAutograd")
LIBRARY.impl("residual_encode", reference.residual_encode, "CompositeExplicitAutograd")
LIBRARY.impl("gather_add_", reference.gather_add_, "CompositeExplicitAutograd")
LIBRARY.impl("code_sums", reference.code_sums, "CompositeExplicitAutograd")

LIBRARY.impl("nearest_code", lambda *args: dispatch.cpu().nearest_code(*args), "CPU")
LIBRARY.impl("residual_encode", lambda *args: dispatch.cpu().residual_encode(*args), "CPU")
LIBRARY.impl("gather_add_", lambda *args: dispatch.cpu().gather_add_(*args), "CPU")
LIBRARY.impl("code_sums", lambda *args: dispatch.cpu().code_sums(*args), "CPU")

LIBRARY.impl("nearest_code", lambda *args: dispatch.cuda().nearest_code(*args), "CUDA")
LIBRARY.impl("residual_encode", lambda *args: dispatch.cuda().residual_encode(*args), "CUDA")
LIBRARY.impl("gather_add_", lambda *args: dispatch.cuda().gather_add_(*args), "CUDA")
LIBRARY.impl("code_sums", lambda *args: dispatch.cuda().code_sums(*args), "CUDA")


@torch.library.register_fake("mmtok::nearest_code", lib=LIBRARY)
def _(x: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], k)
    return x.new_empty(shape, dtype=torch.int64), x.new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("mmtok::residual_encode", lib=LIBRARY)
def _(x: Tensor, codebooks: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor]:
    codes = x.new_empty((x.shape[0], codebooks.shape[0]), dtype=torch.int64)
    return codes, x.new_empty(tuple(x.shape), dtype=torch.float32)


@torch.library.register_fake("mmtok::gather_add_", lib=LIBRARY)
def _(out: Tensor, codes: Tensor, codebooks: Tensor, alpha: float) -> None:
    return None


@torch.library.register_fake("mmtok::code_sums", lib=LIBRARY)
def _(x: Tensor, codes: Tensor, size: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(size, dtype=torch.float32), x.new_empty((size, x.shape[1]), dtype=torch.float32)


# under autocast every floating-point input counts as float32: codes must not depend on the autocast state
for _name in ("nearest_code", "residual_encode", "code_sums"):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"mmtok::{_name}", _device, torch.float32, lib=LIBRARY)
