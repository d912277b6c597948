"""What a wheel and an editable install hold, and what the metadata promises; built offline from a copy."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
MAPPED = {"kernels": "mmtok/kernels", "configs": "mmtok/configs", "checkpoints": "mmtok/checkpoints"}
# import name -> distribution, where they differ
DISTRIBUTIONS = {
    "PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml",
    "vector_quantize_pytorch": "vector-quantize-pytorch", "torch_fidelity": "torch-fidelity",
}
# asked for by name where it is used, with an error that says what to install
OPTIONAL = {
    "huggingface_hub", "onnx", "onnxruntime", "onnxscript", "pesq", "pystoi", "pycodec2", "distillmos",
    "faster_whisper", "resemblyzer", "ray", "transformers", "torchcodec",
}
PEERS = {"dac", "encodec"}  # codecs that benchmarks/audio.py measures beside ours; it says how they are installed
BY_TORCH = {"filelock", "fsspec"}  # a requirement of torch's own


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what is packaged, so that nothing is built inside the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("mmtok", *MAPPED):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_x.py").write_text("")
    return folder


def build(sources: Path, hook: str, target: Path) -> Path:
    """Unpacks what `setuptools.build_meta.<hook>` builds, on a machine without a compiler, and returns the folder."""
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    target.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=sources, capture_output=True, text=True,
        env={**os.environ, "CC": "/bin/false", "CXX": "/bin/false"},
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target / "site")
    return target / "site"


@pytest.fixture(scope="module")
def site(sources, tmp_path_factory):
    return build(sources, "build_wheel", tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="module")
def declared(site):
    """extra ("" for core) -> {distribution: requirement}, from the wheel's metadata."""
    text = next(site.glob("*.dist-info/METADATA")).read_text()
    found: dict[str, dict[str, Requirement]] = defaultdict(dict)
    for line in re.findall(r"^Requires-Dist: (.*)$", text, re.M):
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        found[extra[1] if extra else ""][normal(requirement.name)] = requirement
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def shipped(folder: Path) -> set[str]:
    """Files of a folder that an install needs: not what was built, and not weights that training goes on from."""
    others = {"__pycache__", ".ipynb_checkpoints", "resume"}
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".so" and not others & set(path.parts)
    }


def test_a_wheel_holds_everything_below_mmtok_and_nothing_else(site) -> None:
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"mmtok"}
    expected = {f"mmtok/{name}" for name in shipped(ROOT / "mmtok")}
    for source, target in MAPPED.items():
        expected |= {f"{target}/{name}" for name in shipped(ROOT / source)}
    assert {name for name in shipped(site) if name.startswith("mmtok/")} == expected
    assert {"mmtok/report/page.html", "mmtok/configs/demo/image.yaml", "mmtok/checkpoints/catalogue.yaml"} <= expected


def test_every_tokenizer_of_the_catalogue_is_in_the_wheel(site) -> None:
    entries = yaml.safe_load((site / "mmtok/checkpoints/catalogue.yaml").read_text()) or {}
    for name, entry in entries.items():
        if "folder" not in entry:  # published elsewhere: tests/test_catalogue.py
            continue
        folder = site / "mmtok/checkpoints" / entry["folder"]
        assert (folder / "config.yaml").is_file() and (folder / "model.safetensors").is_file(), name
        assert (folder / "README.md").is_file(), f"{name}: no model card"
        assert {"modality", "summary", "licence"} <= set(entry), name


def test_the_wheel_works_outside_the_checkout(site, tmp_path) -> None:
    code = (
        "import importlib.util, mmtok.configs, mmtok.checkpoints, mmtok.listing, mmtok.report\n"
        "assert mmtok.__file__.startswith(sys.argv[1]), mmtok.__file__\n"
        "assert mmtok.configs.__file__.startswith(sys.argv[1])\n"
        "assert not [n for n in ('configs', 'kernels', 'checkpoints') if importlib.util.find_spec(n)]\n"
        "assert 'demo/image' in mmtok.listing.recipes()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", str(site)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr


def test_an_editable_install_maps_the_same_names(sources, tmp_path) -> None:
    site = build(sources, "build_editable", tmp_path / "out")
    code = (
        "import importlib.util, site, sys\n"
        "site.addsitedir(sys.argv[1])\n"
        "import mmtok.cli\n"
        "for folder in ('kernels', 'configs', 'checkpoints'):\n"
        "    found = importlib.util.find_spec(f'mmtok.{folder}').origin\n"
        "    assert found == f'{sys.argv[2]}/{folder}/__init__.py', found\n"
        "assert mmtok.__file__ == f'{sys.argv[2]}/mmtok/__init__.py', mmtok.__file__\n"
        "assert not [n for n in ('configs', 'kernels', 'checkpoints') if importlib.util.find_spec(n)]\n"
    )
    done = subprocess.run(  # -S: without the packages of this environment, another mmtok among them
        [sys.executable, "-S", "-c", code, str(site), str(sources)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_metadata_names_the_command_the_licence_and_the_versions(site) -> None:
    info = next(site.glob("*.dist-info"))
    assert "mmtok = mmtok.cli:main" in (info / "entry_points.txt").read_text()
    text = (info / "METADATA").read_text()
    import mmtok

    assert f"\nVersion: {mmtok.__version__}\n" in text
    assert "\nRequires-Python: >=3.10\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    assert list(info.rglob("LICENSE"))


def test_malicious_and_vulnerable_lightning_is_excluded(declared) -> None:
    lightning = declared["train"]["lightning"].specifier
    assert "2.6.6" in lightning
    for version in ("2.6.2", "2.6.3", "2.6.5", "2.7.0"):
        assert version not in lightning
    assert {"!=2.6.2", "!=2.6.3"} <= {str(part) for part in lightning}


def test_versions_that_are_installed_are_admitted(declared) -> None:
    for requirements in declared.values():
        for name, requirement in requirements.items():
            installed = Version(metadata.version(name))
            assert requirement.specifier.contains(installed, prereleases=True), f"{name} {installed}: {requirement}"


def third_party(folder: Path) -> set[str]:
    """Distributions imported by the Python files of a folder, wherever the import stands."""
    ours = {"mmtok", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    if folder.name != "mmtok":  # scripts find the files beside them
        ours |= {path.stem for path in folder.glob("*.py")}
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    found -= set(sys.stdlib_module_names) | ours | OPTIONAL | BY_TORCH
    return {normal(DISTRIBUTIONS.get(name, name)) for name in found}


def test_every_import_is_declared(declared) -> None:
    train = set(declared[""]) | set(declared["train"])
    assert third_party(ROOT / "mmtok") <= train
    assert set(declared[""]) == {"torch", "numpy", "safetensors", "pyyaml", "jsonargparse", "constriction"}
    for folder in ("tests", "benchmarks", "eval"):
        peers = PEERS if folder == "benchmarks" else set()
        assert third_party(ROOT / folder) <= train | set(declared["dev"]) | peers


def test_the_demo_extra_brings_the_sample_photographs_and_clips(declared) -> None:
    from mmtok.data.samples import _PHOTOS
    from mmtok.data.video_samples import find_videos

    carriers = {normal(group.package) for group in _PHOTOS if group.module}
    carriers |= {normal(video.package) for video in find_videos("samples:video") if video.camera is None}
    assert set(declared["demo"]) <= carriers
