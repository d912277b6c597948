"""The operators inside torch: compile, autocast, meta tensors, threads, memory."""

import os
import signal
import threading
import time

import pytest
import torch
from exact import PATHS

from mmtok.kernels import code_sums, forced, gather_add, native, nearest_code, residual_encode


def _arguments():
    torch.manual_seed(0)
    x, books = torch.randn(90, 7), torch.randn(3, 33, 7)
    codes = torch.randint(0, 33, (90, 3))
    return x, books, codes


def test_operators_keep_torchs_rules():
    x, books, codes = _arguments()
    ops = torch.ops.mmtok
    torch.library.opcheck(ops.nearest_code, (x, books[0], 4))
    torch.library.opcheck(ops.residual_encode, (x, books, codes[:, 0] % 4))
    torch.library.opcheck(ops.code_sums, (x, codes[:, 0], 33, codes[:, 1] > 3))
    torch.library.opcheck(ops.gather_add_, (torch.zeros(90, 7), codes, books, -1.0))


def test_compiles_without_a_graph_break():
    x, books, codes = _arguments()

    def everything(x, books):
        chosen, distance = nearest_code(x * 2, books[0])
        depths, total = residual_encode(x, books)
        counts, sums = code_sums(x, chosen, 33)
        left = gather_add(depths, books, x.clone(), alpha=-1)
        return chosen, distance + 1, depths, total, counts, sums, left

    wanted = everything(x, books)
    compiled = torch.compile(everything, fullgraph=True, dynamic=True, backend="aot_eager")
    for got, want in zip(compiled(x, books), wanted, strict=True):
        torch.testing.assert_close(got, want)
    assert compiled(x[:31], books)[0].shape == (31,)


def test_autocast_changes_nothing():
    x, books, _ = _arguments()
    with torch.autocast("cpu", torch.bfloat16):
        inside = nearest_code(x, books[0]), residual_encode(x, books), code_sums(x, torch.zeros(90).long(), 2)
    outside = nearest_code(x, books[0]), residual_encode(x, books), code_sums(x, torch.zeros(90).long(), 2)
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_inputs_that_need_gradients_are_taken():
    x, books, _ = _arguments()
    x.requires_grad_()
    codes, distance = nearest_code(x, books[0].requires_grad_())
    assert not codes.requires_grad and not distance.requires_grad


@pytest.mark.parametrize("path", PATHS)
def test_many_threads_at_once(path):
    torch.manual_seed(0)
    x, books = torch.randn(3000, 8), torch.randn(2, 2000, 8)
    with forced(path):
        codes, depths = nearest_code(x, books[0])[0], residual_encode(x, books)[0]
        right = []

        def work():
            for _ in range(3):
                right.append(torch.equal(nearest_code(x, books[0])[0], codes))
                right.append(torch.equal(residual_encode(x, books)[0], depths))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(right) == 36 and all(right)


@pytest.mark.parametrize("threads", [1, 2, 16, 200])
@pytest.mark.parametrize(("n", "v", "d"), [(3, 300_000, 8), (60_000, 40, 8), (900, 2000, 256), (40, 100, 9000)])
def test_scratch_memory_is_bounded(threads, n, v, d):
    x, book = torch.randn(n, d), torch.randn(v, d)
    torch.set_num_threads(threads)
    for path in native.paths():
        with forced(path):
            nearest_code(x[:8], book)
            native.scratch_peak()
            nearest_code(x, book)
            nearest_code(x[:100], book, 20)
            residual_encode(x, book[None])
        assert 0 < native.scratch_peak() <= 8 << 20


@pytest.mark.parametrize("path", native.paths())
def test_own_threads_serve_where_torchs_are_not_found(path):
    torch.manual_seed(0)
    x, book = torch.randn(4000, 8), torch.randn(3000, 8)
    with forced(path):
        wanted = nearest_code(x, book)[0]
        native._library.mmtok_use_openmp(None)
        try:
            assert torch.equal(nearest_code(x, book)[0], wanted)
        finally:
            native._library.mmtok_use_openmp(native._openmp_entry())


def test_a_forked_child_can_search():
    torch.manual_seed(0)
    x, book = torch.randn(4000, 8), torch.randn(3000, 8)
    wanted = nearest_code(x, book)[0]
    child = os.fork()
    if not child:  # torch itself must not use threads here; the search brings its own
        os._exit(0 if torch.equal(nearest_code(x, book)[0], wanted) else 1)
    deadline = time.monotonic() + 20
    while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    if not done[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done == (child, 0)
