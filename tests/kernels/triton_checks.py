"""Run with TRITON_INTERPRET=1: the Triton operators on CPU tensors against the torch reference."""

import torch

from mmtok.kernels import reference, triton_ops

torch.manual_seed(0)
for n, v, d, k in ((70, 150, 5, 1), (70, 150, 40, 4), (33, 7, 100, 7), (5, 1, 3, 1), (0, 4, 3, 2), (20, 260, 8, 3)):
    x, book = torch.randn(n, d) + 10, torch.randn(v, d) + 10
    for rows, codes in ((x, book), (x.bfloat16(), book), (x.T.contiguous().T, book.bfloat16())):
        got, want = triton_ops.nearest_code(rows, codes, k), reference.nearest_code(rows, codes, k)
        assert torch.equal(got[0], want[0]), (n, v, d, k)
        torch.testing.assert_close(got[1], want[1])
book = torch.randn(40, 6).repeat(3, 1)
copies = torch.arange(40).repeat(3)[:, None] + 40 * torch.arange(3)
assert torch.equal(triton_ops.nearest_code(book, book, 3)[0], copies)
x = book[:9].clone()
x[4] = torch.nan
assert triton_ops.nearest_code(x, book, 2)[0].max() < 120

for n, q, v, d in ((70, 4, 50, 7), (20, 3, 40, 100), (6, 2, 9, 300), (0, 2, 9, 3)):
    x, books, depth = torch.randn(n, d), torch.randn(q, v, d), torch.randint(0, q + 1, (n,))
    for used in (None, depth):
        got, want = triton_ops.residual_encode(x, books, used), reference.residual_encode(x, books, used)
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1])
    out, other = torch.randn(n, d), torch.zeros(n, 2 * d)
    want = out.clone()
    other[:, ::2] = out
    reference.gather_add_(want, got[0], books, -0.5)
    triton_ops.gather_add_(out, got[0], books, -0.5)
    triton_ops.gather_add_(other[:, ::2], got[0], books, -0.5)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(other[:, ::2], want)
    for mask in (None, torch.rand(n) > 0.3):
        got_sums, want_sums = (module.code_sums(x, got[0][:, 0], v, mask) for module in (triton_ops, reference))
        assert torch.equal(got_sums[0], want_sums[0])
        torch.testing.assert_close(got_sums[1], want_sums[1])
print("triton agrees")
