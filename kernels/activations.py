"""Snake and ELU in one pass over memory, registered with torch; values as the formulas, to a rounding or two.

Legend: B batch, C channels. Gradients are built where the activations live (`mmtok.nn`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.kernels import dispatch, reference

TYPES = (torch.float32, torch.bfloat16)


def snake(x: Tensor, alpha: Tensor, inverse: Tensor, out: Tensor | None = None) -> Tensor:
    """x + inverse sin^2(alpha x) (arXiv 2006.08195), x float32 or bfloat16 [B, C, ...], alpha and inverse [C].

    The result has the layout of x where that is channels first or last without gaps.
    out  what the result is written to: of the shape and type of x, or x itself
    """
    _check(x, alpha, inverse)
    if out is None:
        return torch.ops.mmtok.snake(x, alpha, inverse)
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(f"snake: out must be {x.dtype} {tuple(x.shape)}, got {out.dtype} {tuple(out.shape)}")
    torch.ops.mmtok.snake_out(x, alpha, inverse, out)
    return out


def snake_backward(grad: Tensor, x: Tensor, alpha: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of alpha and of inverse, float32, from that of `snake`'s result."""
    _check(x, alpha, inverse)
    return torch.ops.mmtok.snake_backward(grad, x, alpha, inverse)


def elu(x: Tensor) -> Tensor:
    """max(x, e^min(x, 0) - 1) (arXiv 1511.07289) of float32 or bfloat16, any shape, in the layout of x."""
    if x.dtype not in TYPES:
        raise ValueError(f"elu: x must be float32 or bfloat16, got {x.dtype}")
    return torch.ops.mmtok.elu(x)


def _check(x: Tensor, alpha: Tensor, inverse: Tensor) -> None:
    if x.dim() < 2 or x.dtype not in TYPES:
        raise ValueError(f"snake: x must be float32 or bfloat16 [B, C, ...], got {x.dtype} {tuple(x.shape)}")
    if alpha.shape != x.shape[1:2] or inverse.shape != alpha.shape:
        raise ValueError(f"snake: alpha and inverse must be [{x.shape[1]}], got {tuple(alpha.shape)}")


LIBRARY = torch.library.Library("mmtok", "FRAGMENT")
LIBRARY.define("snake(Tensor x, Tensor alpha, Tensor inverse) -> Tensor")
LIBRARY.define("snake_out(Tensor x, Tensor alpha, Tensor inverse, Tensor(a!) out) -> ()")
LIBRARY.define("snake_backward(Tensor grad, Tensor x, Tensor alpha, Tensor inverse) -> (Tensor, Tensor, Tensor)")
LIBRARY.define("elu(Tensor x) -> Tensor")

LIBRARY.impl("snake", reference.snake, "CompositeExplicitAutograd")
LIBRARY.impl("snake_out", reference.snake_out, "CompositeExplicitAutograd")
LIBRARY.impl("snake_backward", reference.snake_backward, "CompositeExplicitAutograd")
LIBRARY.impl("elu", reference.elu, "CompositeExplicitAutograd")

LIBRARY.impl("snake", lambda *args: dispatch.cpu().snake(*args), "CPU")
LIBRARY.impl("snake_out", lambda *args: dispatch.cpu().snake_out(*args), "CPU")
LIBRARY.impl("snake_backward", lambda *args: dispatch.cpu().snake_backward(*args), "CPU")
LIBRARY.impl("elu", lambda *args: dispatch.cpu().elu(*args), "CPU")


@torch.library.register_fake("mmtok::snake", lib=LIBRARY)
def _(x: Tensor, alpha: Tensor, inverse: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("mmtok::snake_out", lib=LIBRARY)
def _(x: Tensor, alpha: Tensor, inverse: Tensor, out: Tensor) -> None:
    pass


@torch.library.register_fake("mmtok::snake_backward", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, alpha: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(tuple(x.shape), dtype=torch.float32), alpha.float(), alpha.float()


@torch.library.register_fake("mmtok::elu", lib=LIBRARY)
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
