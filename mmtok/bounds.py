"""How much a saved config may make its classes allocate: about what its weights take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmtok.tokenizer import Tokenizer

# beside the weights: masks and tables that no file holds. The recipes need under 10 calls a tensor
SPARE_BYTES, SPARE_CALLS, CALLS = 1 << 30, 10_000, 100


def on_meta(make: Callable[[], Tokenizer], tensors: int, file_bytes: int) -> Tokenizer:
    """The tokenizer on meta tensors, which take no memory; ValueError when it is far larger than its file.

    tensors, file_bytes  of the file of its weights
    """
    limit = 4 * file_bytes + SPARE_BYTES  # half precision in the file, double precision while it is built
    bounded = _Bounded(limit, CALLS * tensors + SPARE_CALLS)
    try:
        with torch.device("meta"), bounded:
            tokenizer = make()
    except (RuntimeError, OverflowError, MemoryError) as error:  # sizes beyond 64 bits
        raise ValueError(f"tokenizer config: {' '.join(str(error).split())[:400]}") from None
    bounded.take(sum(buffer.nbytes for buffer in tokenizer.buffers()))
    return tokenizer


class _Bounded(TorchFunctionMode):
    """Counts calls of torch functions, and looks at the size of what they return."""

    def __init__(self, limit: int, calls: int) -> None:
        super().__init__()
        self.limit, self.calls = limit, calls

    def take(self, nbytes: int) -> None:
        if nbytes > self.limit:
            raise ValueError(f"tokenizer config: asks for {nbytes} bytes, its weights allow {self.limit}")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("tokenizer config: asks for many more layers than its weights have")
        result = func(*args, **(kwargs or {}))
        if type(result) is Tensor:
            self.take(result.numel() * result.element_size())
        return result
