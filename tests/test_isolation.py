"""The core install alone: what it can import, what it can do, and what it says about the rest.

A subprocess sees only the distributions that `pip install mmtok` brings along; every other installed package is hidden.
"""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

HIDE = '''
import sys
from importlib.machinery import PathFinder
hidden = set(sys.argv[1].split(","))
class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Core if finder is PathFinder else finder for finder in sys.meta_path]
'''
SHOULD_BE_HIDDEN = {
    "lightning", "wandb", "webdataset", "omegaconf", "torchvision", "torchaudio", "PIL", "matplotlib", "rich", "tqdm",
    "pyarrow", "vector_quantize_pytorch", "torch_fidelity", "scipy", "skimage", "docstring_parser", "typeshed_client",
}


def core_modules() -> set[str]:
    """Top-level modules of mmtok's requirements without extras, and of theirs."""
    modules = set()
    for name in core_distributions():
        distribution = metadata.distribution(name)
        declared = distribution.read_text("top_level.txt")
        files = distribution.files or []
        modules |= set(declared.split()) if declared else {file.parts[0].split(".")[0] for file in files}
    return modules


def installed_modules() -> set[str]:
    """Top-level modules beside the installed torch."""
    names = (path.name for path in Path(torch.__file__).parents[1].iterdir())
    return {name.split(".")[0] for name in names if not name.endswith((".dist-info", ".pth", ".egg-info"))}


def core_distributions() -> set[str]:
    """Names of mmtok's requirements without extras, and of theirs."""
    found, todo = set(), ["mmtok"]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        found.add(name)
        todo += [re.match(r"[\w.-]+", line)[0] for line in requires if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def core():
    """Runs code where everything beyond the core install is hidden; returns what it prints as JSON."""
    names = {name for name in installed_modules() - core_modules() if not name.startswith("_")}
    assert names >= SHOULD_BE_HIDDEN
    assert not names & {"torch", "numpy", "safetensors", "yaml", "jsonargparse", "constriction"}

    def run(code: str, *args: str):
        done = subprocess.run(
            [sys.executable, "-c", HIDE + code, ",".join(sorted(names)), *args], capture_output=True, text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_everything_that_uses_a_tokenizer_imports_and_works(core, small_model, tmp_path) -> None:
    said = core(
        '''
import importlib, json, pkgutil, torch
import mmtok, mmtok.hub, mmtok.models, mmtok.quantizers, mmtok.nn, mmtok.importers, mmtok.files, mmtok.listing
done = []
for package in (mmtok.models, mmtok.quantizers, mmtok.nn, mmtok.importers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        done.append(module.name)
tokenizer = mmtok.load(sys.argv[2])
x = torch.rand(1, 3, 50, 70) * 2 - 1
tokens = tokenizer.encode(x, num_tokens=5)
mmtok.save_tokens(sys.argv[3], tokens)
again = mmtok.load_tokens(sys.argv[3], tokenizer)
same = torch.equal(tokenizer.decode(again), tokenizer.decode(tokens))
print(json.dumps({"modules": done, "shape": list(tokenizer.decode(again).shape), "same": same}))
''',
        str(small_model), str(tmp_path / "x.mmt"),
    )
    assert said["same"] and said["shape"] == [1, 3, 50, 70]
    assert {"mmtok.models.image.titok", "mmtok.quantizers.vq", "mmtok.importers.taming"} <= set(said["modules"])


def test_published_weights_import_and_are_saved(core, tmp_path) -> None:
    golden = Path(__file__).parent / "golden" / "image" / "llamagen_vq" / "weights.safetensors"
    said = core(
        '''
import json
import mmtok
from mmtok import hub, importers
folder = hub.save(importers.load("llamagen", sys.argv[2]), sys.argv[3])
print(json.dumps({"id": mmtok.load(folder).tokenizer_id}))
''',
        str(golden), str(tmp_path / "ours"),
    )
    assert len(said["id"]) == 8


def test_commands_that_need_more_say_what_to_install(core, small_model, photos, tmp_path) -> None:
    train, out = "pip install 'mmtok[train]'", str(tmp_path / "out")
    commands = [
        (["encode", str(photos), "-o", out, "--model", str(small_model)], "need Pillow: pip install pillow"),
        (["shards", "make", str(photos), out], train),
        (["train", "-c", "x.yaml"], train),
        (["eval", "--model", str(small_model), "--data", "x"], train),
    ]
    said = core(
        '''
import contextlib, io, json
from mmtok.cli import main
said = []
for command in json.loads(sys.argv[2]):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        code = main(command)
    said.append([code, stderr.getvalue()])
print(json.dumps(said))
''',
        json.dumps([command for command, _ in commands]),
    )
    for (_, mend), (code, err) in zip(commands, said, strict=True):
        assert code == 2 and err.count("\n") == 1 and err.startswith("mmtok: error: ") and mend in err
    assert not (tmp_path / "out").exists()
