"""What the benchmark times: our operators and the public libraries on the same arrays.

Legend: N vectors, D dimensions, V codes, Q depths. Every case is a name and a function without arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.kernels import forced, native, nearest_code, residual_encode

Cases = dict[str, Callable[[], object]]


def nearest_cases(x: Tensor, codebook: Tensor, paths: tuple[str, ...]) -> Cases:
    """Codes of x [N, D]: ours on each path, then the peers."""
    import faiss
    from vector_quantize_pytorch import VectorQuantize

    cases: Cases = {f"mmtok {path}": _on(path, lambda: nearest_code(x, codebook)) for path in paths}
    half = codebook.square().sum(1) / 2
    cases["addmm + argmax"] = lambda: torch.addmm(-half, x, codebook.T).argmax(1)
    cases["torch.cdist"] = lambda: torch.cdist(x, codebook).argmin(1)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(codebook.numpy())
    rows = x.numpy()
    cases["FAISS flat"] = lambda: index.search(rows, 1)
    library = VectorQuantize(dim=x.shape[1], codebook_size=codebook.shape[0]).eval()
    library._codebook.embed.copy_(codebook[None])
    cases["vector-quantize-pytorch"] = lambda: library(x[None])
    return cases


def residual_cases(x: Tensor, codebooks: Tensor, paths: tuple[str, ...]) -> Cases:
    """Codes of all depths for x [N, D]."""
    from vector_quantize_pytorch import ResidualVQ

    cases: Cases = {f"mmtok {path}": _on(path, lambda: residual_encode(x, codebooks)) for path in paths}

    def loop() -> Tensor:
        residual = x
        for book in codebooks:
            codes = torch.addmm(-book.square().sum(1) / 2, residual, book.T).argmax(1)
            residual = residual - F.embedding(codes, book)
        return residual

    cases["torch loop"] = loop
    library = ResidualVQ(dim=x.shape[1], num_quantizers=len(codebooks), codebook_size=codebooks.shape[1]).eval()
    for layer, book in zip(library.layers, codebooks, strict=True):
        layer._codebook.embed.copy_(book[None])
    cases["vector-quantize-pytorch"] = lambda: library(x[None])
    return cases


def training_cases(x: Tensor, size: int) -> Cases:
    """One training step of an EMA quantizer: forward, backward to its input, codebook update."""
    from vector_quantize_pytorch import VectorQuantize

    from mmtok.quantizers.vq import VQ

    ours = VQ(x.shape[1], size, ema_decay=0.99).train()
    library = VectorQuantize(dim=x.shape[1], codebook_size=size, decay=0.99).train()
    channels_first = x.T[None].contiguous().requires_grad_()
    channels_last = x[None].clone().requires_grad_()

    def step() -> None:
        with torch.enable_grad():
            out = ours(channels_first)
            (out.z.sum() + out.losses["commit"]).backward()

    def library_step() -> None:
        with torch.enable_grad():
            quantized, _, loss = library(channels_last)
            (quantized.sum() + loss.sum()).backward()

    return {"mmtok VQ": step, "vector-quantize-pytorch": library_step}


def disagreement(x: Tensor, codebook: Tensor) -> tuple[float, float]:
    """(share of rows whose code differs from float64, share excused: the gap of the two best is within rounding)."""
    codes = nearest_code(x, codebook)[0]
    wrong = excused = 0
    book = codebook.double()
    for part, found in zip(x.split(512), codes.split(512), strict=True):
        exact = (part.double().square().sum(1, keepdim=True) - 2 * part.double() @ book.T + book.square().sum(1))
        best = exact.argmin(1)
        differ = best != found
        gap = exact.gather(1, found[:, None]) - exact.gather(1, best[:, None])
        scale = part.double().square().sum(1) + book[best].square().sum(1)
        wrong += int(differ.sum())
        excused += int((differ & (gap[:, 0] < 4e-6 * scale)).sum())
    return wrong / len(x), excused / len(x)


def cuda_cases(x: Tensor, codebook: Tensor) -> Cases:
    """Every candidate tile of the Triton search, and torch's own ways, on CUDA tensors."""
    from mmtok.kernels.triton_search import CANDIDATES, default_tile, search

    centre = codebook.mean(0)
    half = codebook.square().sum(1) / 2

    def timed(run: Callable[[], object]) -> Callable[[], object]:
        def whole() -> None:
            run()
            torch.cuda.synchronize()

        return whole

    cases: Cases = {"mmtok triton (default)": timed(lambda: search(x, codebook, centre, None))}
    for tile in CANDIDATES:
        if tile != default_tile(x.shape[1]):
            cases[f"mmtok {tile}"] = timed(lambda tile=tile: search(x, codebook, centre, None, tile))  # type: ignore[misc]
    cases["addmm + argmax"] = timed(lambda: torch.addmm(-half, x, codebook.T).argmax(1))
    cases["torch.cdist"] = timed(lambda: torch.cdist(x, codebook).argmin(1))
    return cases


def available_paths() -> tuple[str, ...]:
    """Paths to time on this machine, the one in use first."""
    return (*native.paths(), "torch")


def _on(path: str, run: Callable[[], object]) -> Callable[[], object]:
    def inside() -> object:
        with forced(path):
            return run()

    return inside
