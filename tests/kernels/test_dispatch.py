"""Which implementation runs, what is said about it, and what happens without a compiler or without the library."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from exact import PATHS

from mmtok.kernels import describe, dispatch, forced, native, nearest_code, status

ROOT = Path(__file__).parents[2]


def test_the_library_is_built_and_used():
    assert native.problem is None, native.problem
    assert status().cpu == native.paths()[0] and native.paths()[-1] == "portable"
    assert describe().startswith(f"cpu:  {status().cpu} (")


def test_every_path_gives_the_same_codes():
    torch.manual_seed(0)
    x, book = torch.randn(400, 10), torch.randn(700, 10)
    results = []
    for path in PATHS:
        with forced(path):
            assert status().cpu == path
            results.append(nearest_code(x, book)[0])
    assert all(torch.equal(results[0], other) for other in results)


def test_environment_variable_chooses(monkeypatch):
    for path in ("torch", "portable"):
        monkeypatch.setenv("MMTOK_KERNELS", path)
        assert status().cpu == path and status().cpu_reason == "asked for"
    monkeypatch.setenv("MMTOK_KERNELS", "sse")
    with pytest.raises(ValueError, match="choose one of avx512bf16, avx512, avx2, portable, torch"):
        status()
    with pytest.raises(ValueError, match="MMTOK_KERNELS=fast"), forced("fast"):
        pass


def test_without_the_library_torch_serves_and_one_warning_says_so(monkeypatch):
    monkeypatch.setattr(native, "problem", "the C++ kernels were not built")
    monkeypatch.setattr(dispatch, "_told", set())
    assert status().cpu == "torch" and "not built" in status().cpu_reason
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = torch.randn(5, 3)
        assert torch.equal(nearest_code(x, x)[0], torch.arange(5))
        nearest_code(x, x)
    assert [str(w.message) for w in caught] == [
        "mmtok.kernels: the C++ kernels were not built; using the slower torch path"
    ]
    with pytest.raises(ValueError, match="not built"), forced("avx2"):
        nearest_code(x, x)


def test_build_without_a_compiler_goes_on_and_says_so(tmp_path):
    false = "/bin/false"
    folders = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"]
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT, env={**os.environ, "CC": false, "CXX": false}, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("NOTICE: mmtok is installed without its C++ kernels") == 1
    assert not list(tmp_path.rglob("_native*"))


def test_triton_operators_in_the_interpreter():
    pytest.importorskip("triton")  # comes with torch's CUDA builds only
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("triton_checks.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )
    assert done.stdout.strip() == "triton agrees", done.stderr


class Other:
    """A library that lacks every function, or states another version of the interface."""

    def __init__(self, version: int | None) -> None:
        if version is not None:
            self.mmtok_version = lambda: version

    def __getattr__(self, name: str) -> object:
        if "mmtok_version" not in self.__dict__:
            raise AttributeError(name)
        return lambda *args: pytest.fail("a function of a foreign library was called")


@pytest.mark.parametrize("version", [None, native.VERSION - 1, native.VERSION + 1])
def test_a_library_of_other_sources_is_set_aside_with_a_notice(monkeypatch, version) -> None:
    monkeypatch.setattr(native, "problem", None)
    monkeypatch.setattr(native, "_library", native._library)
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: Other(version))
    monkeypatch.setattr(dispatch, "_told", set())
    native._load()
    assert native.problem is not None and "other sources: install mmtok again" in native.problem
    with pytest.warns(UserWarning, match="other sources"):
        assert dispatch.cpu() is dispatch.reference

