"""The real `mmtok` command: what it does, its exit codes, and one line for every mistake."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mmtok
from mmtok.cli import main

GOLDEN = Path(__file__).parent / "golden" / "image"
FAST_EVAL = ["--metrics", "psnr", "--codecs", "--lengths", "2", "16", "--workers", "0"]


@pytest.fixture
def run(capfd, monkeypatch):
    """Runs `mmtok ARGS` and returns (exit code, stdout, stderr)."""
    # Lightning's log handler keeps the stderr of the first test that used it
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def run(*args):
        capfd.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def mistake(run):
    """Runs `mmtok ARGS`, which must end with code 2 and one line on stderr; returns that line."""

    def mistake(*args):
        code, _, err = run(*args)
        err = err.removeprefix("Seed set to 0\n")  # Lightning's log, where the mistake shows later than parsing
        assert code == 2, err
        assert err.count("\n") == 1 and err.startswith("mmtok") and "Traceback" not in err, err
        return err

    return mistake


def mmtok_process(*args, **options):
    """`mmtok ARGS` in a process of its own, through the installed script's entry point."""
    code = "import sys; from mmtok.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120, **options
    )


# ---- the command itself ------------------------------------------------------------------------------------------


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom mmtok.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "slow = {'torch', 'numpy', 'yaml', 'lightning', 'jsonargparse'} & set(sys.modules)\nassert not slow, slow"
    )
    expected = {"--help": "encode", "encode --help": "--num-tokens", "--version": mmtok.__version__}
    for args, said in expected.items():
        done = subprocess.run([sys.executable, "-c", code, *args.split()], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and said in done.stdout, done.stderr


def test_every_command_is_in_the_help(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("train", "encode", "decode", "shards", "eval", "demo", "list", "import", "fetch"):
        assert f"\n    {command} " in out


def test_wrong_commands_and_options_are_one_line(mistake) -> None:
    assert "command" in mistake()
    assert "invalid choice: 'endcode'" in mistake("endcode")
    assert "--model" in mistake("encode", "x.jpg", "-o", "y")
    assert "--qality" in mistake("shards", "make", "a", "b", "--qality", 3)
    assert "invalid int value: 'many'" in mistake("encode", "x.jpg", "-o", "y", "--model", "m", "--num-tokens", "many")
    assert "mmtok shards make --help" in mistake("shards", "make")


def test_a_closed_pipe_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        code = "import sys; from mmtok.cli import main; sys.exit(main())"
        done = subprocess.run([sys.executable, "-uc", code, "list"], stdout=stdout, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 1 and done.stderr == b""


def test_ctrl_c_is_code_130(run, monkeypatch) -> None:
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("mmtok.listing.print_listing", interrupted)
    assert run("list") == (130, "", "")


def test_a_missing_extra_is_named_and_our_own_missing_modules_are_not_hidden(mistake, monkeypatch) -> None:
    def missing(name):
        def fail():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return fail

    monkeypatch.setattr("mmtok.listing.print_listing", missing("webdataset"))
    assert "No module named 'webdataset': " in (line := mistake("list")) and "pip install 'mmtok[train]'" in line
    monkeypatch.setattr("mmtok.listing.print_listing", missing("mmtok.lost"))
    with pytest.raises(ModuleNotFoundError):
        main(["list"])


def test_the_traceback_is_there_for_who_asks(monkeypatch) -> None:
    monkeypatch.setenv("MMTOK_DEBUG", "1")
    with pytest.raises(ValueError, match="no tokenizer named"):
        main(["encode", "x.jpg", "-o", "y", "--model", "nothing"])


# ---- encode and decode -------------------------------------------------------------------------------------------


def test_a_photograph_there_and_back_in_processes(small_model, photos, tmp_path) -> None:
    done = mmtok_process(
        "encode", photos / "a.png", "-o", "a.mmt", "--model", small_model, "--num-tokens", 5, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    size = (tmp_path / "a.mmt").stat().st_size
    assert done.stdout == f"{photos / 'a.png'} -> a.mmt  64x64  {size} bytes  {8 * size / 4096:.4f} bpp\n"
    done = mmtok_process("decode", "a.mmt", "-o", "again.png", "--model", small_model, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.mmt -> again.png\n", "")


def test_a_mistake_in_a_process(tmp_path) -> None:
    done = mmtok_process("decode", "no.mmt", "-o", "x.png", "--model", "nothing", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("mmtok: error: no tokenizer named 'nothing'")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_existing_outputs_stay(mistake, run, small_model, photos, tmp_path) -> None:
    out = tmp_path / "x.mmt"
    out.write_text("precious")
    args = ("encode", photos / "a.png", "-o", out, "--model", small_model)
    assert mistake(*args) == f"mmtok: error: {out} exists: give another --out, or --overwrite\n"
    assert out.read_text() == "precious"
    assert run(*args, "--overwrite")[0] == 0 and out.read_bytes()[:3] == b"MMT"
    image = tmp_path / "x.png"
    assert run("decode", out, "-o", image, "--model", small_model)[0] == 0
    assert "x.png exists" in mistake("decode", out, "-o", image, "--model", small_model)


def test_folders_with_one_bad_file_end_with_code_1(run, small_model, photos, tmp_path) -> None:
    (photos / "text.jpg").write_text("no image")
    code, out, err = run("encode", photos, "-o", tmp_path / "codes", "--model", small_model)
    assert code == 1
    assert err == f"mmtok encode: skipped {photos / 'text.jpg'}: unsupported: not an image of a known format\n"
    assert out.splitlines()[-1].startswith("3 images, ")
    codes = tmp_path / "codes" / "a.mmt"
    data = bytearray(codes.read_bytes())
    data[-1] ^= 1
    codes.write_bytes(data)
    code, out, err = run("decode", tmp_path / "codes", "-o", tmp_path / "back", "--model", small_model)
    assert code == 1 and err == f"mmtok decode: skipped {codes}: damaged: the checksum does not match\n"
    assert len(out.splitlines()) == 2
    # the outputs are there now
    code, _, err = run("encode", photos, "-o", tmp_path / "codes", "--model", small_model, "--overwrite")
    assert code == 1 and codes.read_bytes() != data


def test_mistakes_about_files_name_the_file(mistake, small_model, photos, tmp_path) -> None:
    def encode(*args, model=small_model):
        return mistake("encode", *args, "--model", model)

    a, new = photos / "a.png", tmp_path / "new"
    assert "no.jpg does not exist" in encode(photos / "no.jpg", "-o", new)
    (tmp_path / "empty").mkdir()
    assert "empty: no file ends in .jpg" in encode(tmp_path / "empty", "-o", new)
    assert "name a file ending in .mmt" in encode(a, "-o", tmp_path / "a.tokens")
    assert f"{a}: num_tokens: this model sends 1 to 16, got 0" in encode(a, "-o", new, "--num-tokens", 0)
    assert "got 17" in encode(a, "-o", new, "--num-tokens", 17)
    assert "num_quantizers" in encode(a, "-o", new, "--num-quantizers", 2)
    assert "no tokenizer named 'nothing'" in encode(a, "-o", new, model="nothing")
    assert "config.yaml is missing" in encode(a, "-o", new, model=photos)
    assert "no tokenizer named" in encode(a, "-o", new, model=a)
    assert "--device nothing" in encode(a, "-o", new, "--device", "nothing")
    if not torch.cuda.is_available():
        assert "--device cuda" in encode(a, "-o", new, "--device", "cuda")
    assert not new.exists()


@pytest.mark.parametrize("kind", ["below a file", "name too long", "loop", "read-only", "full disk"])
def test_every_kind_of_oserror_is_one_line(mistake, small_model, photos, tmp_path, monkeypatch, kind) -> None:
    a, out = photos / "a.png", tmp_path / "x.mmt"
    if kind == "below a file":
        out = a / "sub" / "x.mmt"
    elif kind == "name too long":
        out = tmp_path / ("x" * 300 + ".mmt")
    elif kind == "loop":
        (tmp_path / "loop").symlink_to("loop")
        out = tmp_path / "loop" / "x.mmt"
    else:
        denied = PermissionError(13, "Permission denied", str(out))
        error = denied if kind == "read-only" else OSError(28, "No space left on device")

        def refuse(path, tokens):
            raise error

        monkeypatch.setattr("mmtok.files.images.save_tokens", refuse)
    mistake("encode", a, "-o", out, "--model", small_model)


def test_a_damaged_model_is_named(mistake, small_model, photos, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    (model / "model.safetensors").write_bytes(b"no weights")
    encode = ("encode", photos, "-o", tmp_path / "x", "--model", model)
    assert f"{model / 'model.safetensors'}: damaged" in mistake(*encode)
    config = yaml.safe_load((model / "config.yaml").read_text())
    config["tokenizer"]["init_args"]["encoder"]["init_args"]["widht"] = 3
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    assert "widht" in mistake(*encode)


# ---- list, import ------------------------------------------------------------------------------------------------


def test_list_names_the_recipes(run) -> None:
    code, out, err = run("list")
    assert code == 0 and err == "" and "image/vqgan_f16_1024" in out and "demo/image" in out


@pytest.fixture
def taming(tmp_path):
    """A published taming checkpoint: weights with a key of its training, and model.yaml."""
    folder = tmp_path / "taming"
    folder.mkdir()
    facts = json.loads((GOLDEN / "taming_vqgan" / "config.json").read_text())
    state = load_file(GOLDEN / "taming_vqgan" / "weights.safetensors")
    save_file(state | {"loss.logvar": torch.zeros(1)}, folder / "model.safetensors")
    params = {"embed_dim": facts["embed_dim"], "n_embed": facts["codebook_size"], "ddconfig": facts["ddconfig"]}
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    return folder


def test_import_writes_a_folder_that_loads_and_names_what_it_drops(run, mistake, taming, tmp_path) -> None:
    out = tmp_path / "ours"
    code, said, _ = run("import", "taming", taming / "model.safetensors", "--out", out)
    lines = said.splitlines()
    assert code == 0 and lines[1].startswith("dropped loss.logvar: ") and len(lines[1]) > 30
    tokenizer = mmtok.load(out)
    assert lines[-1] == f"wrote {out}, tokenizer id {tokenizer.tokenizer_id}"
    io = load_file(GOLDEN / "taming_vqgan" / "io.safetensors")
    assert torch.equal(tokenizer.encode(io["x"]).codes[:, 0], io["indices"])
    before = (out / "model.safetensors").read_bytes()
    assert f"{out} exists" in mistake("import", "taming", taming, "--out", out)
    assert (out / "model.safetensors").read_bytes() == before


def test_import_of_one_d_piece_keeps_its_tail_drop(run, tmp_path, monkeypatch) -> None:
    from mmtok.importers import titok

    facts = json.loads((GOLDEN / "one_d_piece" / "config.json").read_text())
    for name in ("encoder", "decoder"):  # the small golden models use the published names for other sizes
        size = facts["published_config"]["model"]["vq_model"][f"vit_{name[:3]}_model_size"]
        monkeypatch.setitem(titok.SIZES, size, tuple(facts[name][part] for part in ("width", "layers", "heads")))
    monkeypatch.setattr(titok, "PIXEL_DECODER", facts["pixel_decoder"])
    monkeypatch.setattr(titok, "PROXY_CODES", facts["proxy_codebook_size"])
    shutil.copy(GOLDEN / "one_d_piece" / "weights.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(facts["published_config"]))
    code, _, err = run("import", "titok", tmp_path, "--out", tmp_path / "ours")
    assert code == 0, err
    tokenizer = mmtok.load(tmp_path / "ours")
    assert tokenizer.encode(torch.zeros(1, 3, *tokenizer.size), num_tokens=3).num_sent.tolist() == [3]


def test_mistakes_of_import_name_the_file(mistake, taming, tmp_path) -> None:
    out = tmp_path / "ours"
    families = mistake("import", "dalle", taming, "--out", out).partition("choose one of ")[2]
    assert {"llamagen", "maskgit_vqgan", "taming", "titok"} <= set(families.strip().split(", "))
    assert "does not exist" in mistake("import", "taming", tmp_path / "none.ckpt", "--out", out)
    assert "holds none of" in mistake("import", "taming", tmp_path, "--out", out)
    assert "config.json" in mistake("import", "titok", taming, "--out", out)
    (taming / "model.safetensors").write_bytes(b"damaged")
    assert "damaged" in mistake("import", "taming", taming, "--out", out)
    assert not out.exists()


# ---- shards, eval ------------------------------------------------------------------------------------------------


def test_shards_from_a_folder_are_made_checked_and_measured(run, mistake, small_model, photos, tmp_path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "eval"
    code, said, err = run("shards", "make", photos, shards, "--workers", 1)
    assert code == 0, err
    assert said.startswith(f"{shards}: 1 shards, 3 samples, ")
    assert (shards / "index.json").is_file()
    code, said, _ = run("shards", "check", shards, "--workers", 1)
    assert code == 0 and "short side >=" in said
    before = {path: path.read_bytes() for path in shards.iterdir()}
    assert str(shards) in mistake("shards", "make", photos, shards)
    assert before == {path: path.read_bytes() for path in shards.iterdir()}

    code, said, err = run("eval", "--model", small_model, "--data", shards, "--out", out, *FAST_EVAL)
    assert code == 0, err
    rows = json.loads((out / "metrics.json").read_text())["lengths"]
    assert [row["length"] for row in rows] == [2, 16] and (out / "report" / "index.html").is_file()


def test_images_left_out_of_shards_are_named_with_code_1(run, photos, tmp_path) -> None:
    (photos / "text.jpg").write_text("no image")
    code, said, _ = run("shards", "make", photos, tmp_path / "shards", "--workers", 1)
    assert code == 1 and "left out: text" in said
    tar = next((tmp_path / "shards").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    start = data.index(b"\x89PNG")
    data[start : start + 40] = bytes(40)
    tar.write_bytes(data)
    code, said, _ = run("shards", "check", tmp_path / "shards", "--workers", 1)
    assert code == 1 and "bad: " in said


def test_sample_photographs_become_shards(run, tmp_path, monkeypatch) -> None:
    from mmtok.data import samples

    few = tuple(group for group in samples._PHOTOS if group.package == "scikit-image")
    monkeypatch.setattr(samples, "_PHOTOS", few)
    code, said, err = run("shards", "make", "samples:image", tmp_path / "s", "--short-side", 64, "--workers", 1)
    assert code == 0, err
    assert [line.split(":")[0] for line in said.splitlines()] == [f"{tmp_path}/s/train", f"{tmp_path}/s/heldout"]


def test_mistakes_about_shards_name_the_file(mistake, photos, tmp_path) -> None:
    new = tmp_path / "new"
    assert "none" in mistake("shards", "make", tmp_path / "none", new)
    assert "samples:cats" in mistake("shards", "make", "samples:cats", new)
    assert "quality" in mistake("shards", "make", photos, new, "--quality", 0)
    assert "short_side" in mistake("shards", "make", photos, new, "--short-side", 0)
    assert "samples_per_shard" in mistake("shards", "make", photos, new, "--samples-per-shard", 0)
    assert "shard_bytes" in mistake("shards", "make", photos, new, "--shard-bytes", -1)
    assert "workers" in mistake("shards", "make", photos, new, "--workers", -1)
    assert "none" in mistake("shards", "check", tmp_path / "none")
    assert str(photos) in mistake("shards", "check", photos)
    assert "a.png" in mistake("shards", "check", photos / "a.png")
    assert not new.exists()


def test_mistakes_of_eval_are_one_line(mistake, small_model, photos, tmp_path) -> None:
    def evaluate(*args, model=small_model, data=photos):
        return mistake("eval", "--model", model, "--data", data, *args)

    assert "no tokenizer named 'nothing'" in evaluate(model="nothing")
    assert str(photos) in evaluate()
    assert "none.tar" in evaluate(data=tmp_path / "none.tar")
    assert "--datta" in evaluate("--datta", "x")
    assert "--model" in mistake("eval", "--data", "x")
    assert "invalid int value: 'few'" in evaluate("--limit", "few")


# ---- train -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(shards, tmp_path):
    """(config as a dictionary, function that writes it and returns the path)."""
    from training_toys import config, write_config

    node = config(shards)
    node |= {"runs": str(tmp_path / "runs"), "name": "x"}
    return node, lambda: write_config(tmp_path / "recipe.yaml", node)


def test_train_names_the_key_of_a_typo(mistake, recipe, tmp_path) -> None:
    node, write = recipe
    assert "max_stepz" in mistake("train", "-c", write(), "--trainer.max_stepz=2")
    assert "clip_norms" in mistake("train", "-c", write(), "--model.clip_norms=2")
    assert "codebok" in mistake("fit", "-c", write(), "--model.tokenizer.init_args.quantizer.init_args.codebok=2")
    node["model"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["codebook_sise"] = 5
    assert "codebook_sise" in mistake("train", "-c", write())
    del node["model"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["codebook_sise"]
    node["modle"] = {"clip_norm": 1.0}
    assert "modle" in mistake("train", "-c", write())
    assert not (tmp_path / "runs").exists()


def test_train_names_a_missing_or_unusable_file(mistake, recipe, tmp_path) -> None:
    _, write = recipe
    assert "none.yaml does not exist" in mistake("train", "-c", tmp_path / "none.yaml")
    assert "none/such does not exist" in mistake("train", "-c", "none/such")
    assert "clip_norms" in mistake("train", "-c", "demo/image", "--model.clip_norms=2")  # found by its listed name
    assert str(tmp_path) in mistake("train", "-c", tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [1")
    assert "bad.yaml: not valid YAML" in mistake("train", "-c", tmp_path / "bad.yaml")
    assert "none.ckpt does not exist" in mistake("train", "-c", write(), "--ckpt_path", tmp_path / "none.ckpt")
    assert "--ckpt_path last" in mistake("validate", "-c", write(), "--ckpt_path", "last")
    assert "nowhere" in mistake("train", "-c", write(), "--data.init_args.train", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "Not a directory" in mistake("train", "-c", write(), "--runs", tmp_path / "file")


def test_an_override_reaches_what_is_interpolated_from_it(run, recipe, tmp_path) -> None:
    node, write = recipe
    titok = node["model"]["tokenizer"]["init_args"]
    titok["decoder"]["init_args"]["dim"] = "${model.tokenizer.init_args.encoder.init_args.dim}"
    code, _, err = run(
        "train", "-c", write(), "--model.tokenizer.init_args.encoder.init_args.dim=6", "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
    )
    assert code == 0, err
    tokenizer = mmtok.load(tmp_path / "runs" / "x" / "tokenizer")
    assert tokenizer.quantizer.dim == tokenizer.encoder.dim == tokenizer.decoder.dim == 6
