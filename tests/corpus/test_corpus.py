"""Token shards: exactly once whoever is killed, the same bytes for any driver, and readable as a Dataset."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mmtok
from mmtok.cli import main
from mmtok.corpus import Job, TokenShards, drivers, tokenize
from mmtok.corpus.job import record
from mmtok.corpus.shard import tokenize_shard
from mmtok.corpus.summary import finish
from mmtok.data.check import check_shards
from mmtok.data.decode import decode_image


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Three shards of 5 images of 64 x 64 pixels with captions, and one sample that is no image."""
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(3):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for i in range(5):
                stream = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "PNG")
                data = b"broken" if (shard, i) == (1, 2) else stream.getvalue()
                for name, content in ((f"s{shard}/i{i}.png", data), (f"s{shard}/i{i}.txt", f"picture {i}".encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    check_shards(folder, progress=False)
    return folder


def job(out: Path, model: Path, **options) -> Job:
    return Job(str(out), str(model), batch_size=2, text=True, max_bad_fraction=0.5, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """All token shards, without times."""
    found = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".bin", ".tar", ".npy")}
    for path in folder.glob("0*.json"):
        row = json.loads(path.read_text())
        row.pop("seconds")
        found[path.name] = json.dumps(row).encode()
    return found


@pytest.fixture(scope="module")
def reference(corpus, small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "out"
    summary = tokenize(str(corpus), job(out, small_model, num_tokens=7), workers=0, progress=False)
    return out, summary


@pytest.fixture(scope="module")
def small_model_loaded(small_model):
    return mmtok.load(small_model)


def images(corpus: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(corpus.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith("png") and data != b"broken":
                    found[member.name.removesuffix(".png")] = decode_image(data)
    return found


def arguments(corpus: Path, out: Path, model: Path, workers: int) -> list[str]:
    return [
        "tokenize", str(corpus), str(out), "--model", str(model), "--text", "--num-tokens", "7", "--batch-size", "2",
        "--max-bad-fraction", "0.5", "--workers", str(workers),
    ]  # fmt: skip


@pytest.mark.parametrize("format", ["packed", "mmt"])
def test_a_dataset_gives_the_codes_of_every_sample_once(corpus, small_model, tmp_path, format):
    out = tmp_path / "out"
    summary = tokenize(str(corpus), job(out, small_model, num_tokens=7, format=format), workers=0, progress=False)
    tokenizer = mmtok.load(small_model)
    data = TokenShards(out, tokenizer)
    wanted = images(corpus)
    assert [item.key for item in (data[i] for i in range(len(data)))] == list(wanted) and len(data) == 14
    for i, (key, x) in enumerate(wanted.items()):
        tokens = tokenizer.encode(x[None], num_tokens=7)
        item, again = data[i], data.tokens(i)
        assert torch.equal(item.ids, tokens.flat()[0][:7]) and item.size == (64, 64)
        assert item.text == f"picture {key[-1]}"
        assert torch.equal(again.codes, tokens.codes) and torch.equal(again.bits, tokens.bits)
        assert torch.equal(again.keep[0], tokens.keep[0]) and again.tokenizer_id == tokens.tokenizer_id
        torch.testing.assert_close(tokenizer.decode(again), tokenizer.decode(tokens))
    assert summary["samples"] == 14 and summary["codes"] == 98 and summary["bad"] == {"unsupported": 1}
    assert summary["bits"] == pytest.approx(14 * float(tokens.bits[0])) and 0 < summary["usage"][0] <= 1
    assert summary["codes_per_worker_second"] > 0 and 1 <= summary["perplexity"][0] <= 64
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=0)
    assert sum(len(item.ids) for item in loader) == 98
    with pytest.raises(IndexError):
        data[14]


def test_killed_workers_lose_nothing_and_repeat_nothing(corpus, small_model, reference, tmp_path, processes):
    """SIGKILL at two moments; the command is simply started again. Exit code 1: a sample was left out."""
    out = tmp_path / "out"
    command = arguments(corpus, out, small_model, workers=0)
    times: dict[str, int] = {}
    for wanted in (1, 2):
        process = processes.start(main, command)
        while process.is_alive() and len(list(out.glob("0*.json"))) < wanted:
            time.sleep(0.002)
        process.kill()
        process.join()
        for path in out.glob("0*.json"):
            assert times.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    assert times
    (out / ".000002.bin.host.1.part").write_bytes(b"half")
    assert main(command) == 1
    for name, when in times.items():
        assert (out / name).stat().st_mtime_ns == when, "a finished shard is not made again"
    assert contents(out) == contents(reference[0])
    assert not list(out.glob(".*.part"))
    # a file that was cut after the fact is noticed and made again
    (out / "000001.bin").write_bytes(b"")
    assert main(command) == 1 and contents(out) == contents(reference[0])


def test_a_worker_that_dies_is_replaced(corpus, small_model, reference, tmp_path, processes, capsys):
    this = job(tmp_path / "out", small_model, num_tokens=7)
    todo = [(path.stem, str(path)) for path in sorted(corpus.glob("*.tar"))]
    before = set(multiprocessing.active_children())
    rows = []
    for row in drivers._processes(this, todo, workers=1):
        rows.append(row["name"])
        for worker in set(multiprocessing.active_children()) - before if len(rows) == 1 else ():
            os.kill(worker.pid, signal.SIGKILL)
    assert rows == [name for name, _ in todo] and "a worker died: " in capsys.readouterr().err
    finish(this, rows, 0.0)
    assert contents(this.folder) == contents(reference[0])


def test_ranks_share_the_shards_and_the_last_one_finishes(corpus, small_model, reference, tmp_path, monkeypatch):
    this = job(tmp_path / "out", small_model, num_tokens=7)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert tokenize(str(corpus), this, workers=0, progress=False) is None
    assert sorted(p.name for p in this.folder.glob("0*.json")) == ["000001.json"]
    with pytest.raises(ValueError, match="tokens.json is missing"):
        TokenShards(this.folder)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    summary = tokenize(str(corpus), this, workers=0, progress=False)
    assert summary["samples"] == 14 and contents(this.folder) == contents(reference[0])
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK=5 is outside"):
        tokenize(str(corpus), this, workers=0)


def test_another_job_in_the_same_folder_is_refused(corpus, small_model, reference, tmp_path):
    out, _ = reference
    with pytest.raises(ValueError, match="was begun with num_tokens=7, now it is 5"):
        tokenize(str(corpus), job(out, small_model, num_tokens=5), workers=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        tokenize(str(corpus), job(tmp_path / "full", small_model), workers=0)
    with pytest.raises(ValueError, match="max_bad_fraction"):
        strict = Job(str(tmp_path / "strict"), str(small_model), batch_size=2, max_bad_fraction=0.0)
        tokenize_shard(strict, "000001", str(corpus / "000001.tar"))
    assert not list((tmp_path / "strict").glob("00*"))


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_a_list_of_token_shards_names_nothing_outside_its_folder(reference, tmp_path):
    """A corpus from a stranger must not make a trainer read the user's own files."""
    out = copied(reference[0], tmp_path / "out")
    for path in list(out.glob("000000.*")):
        path.rename(tmp_path / path.name)
    head = json.loads((out / "tokens.json").read_text())
    for name in ("../000000", str(tmp_path / "000000")):
        head["shards"][0]["name"] = name
        (out / "tokens.json").write_text(json.dumps(head))
        with pytest.raises(ValueError, match=r"tokens.json: .*000000.json' leads to .*, outside .*state a root"):
            TokenShards(out)[0]
    record = json.loads((tmp_path / "000000.json").read_text())
    head["shards"][0]["name"] = "000000"
    (out / "tokens.json").write_text(json.dumps(head))
    (out / "000000.json").write_text(json.dumps(record | {"file": "../000000.bin"}))
    with pytest.raises(ValueError, match=r"000000.json: '../000000.bin' leads to"):
        TokenShards(out)[0]
    (out / "000000.json").write_text(json.dumps(record))
    (out / "000000.bin").symlink_to(tmp_path / "000000.bin")
    with pytest.raises(ValueError, match=r"000000.json: '000000.bin' leads to"):
        TokenShards(out)[0]
    whole = TokenShards(reference[0])[0]
    assert torch.equal(TokenShards(out, root=tmp_path)[0].ids, whole.ids)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_edit_of_a_corpus_is_items_or_one_error(reference, small_model_loaded, tmp_path_factory, data):
    out = copied(reference[0], tmp_path_factory.mktemp("edited") / "out")
    path = out / data.draw(st.sampled_from(["tokens.json", "000000.json", "000000.bin"]))
    if path.suffix == ".bin" or data.draw(st.booleans()):
        whole = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        path.write_bytes(whole)
    else:
        document = json.loads(path.read_text())
        key = data.draw(st.sampled_from(sorted(document)))
        values = st.none() | st.integers() | st.floats() | st.text(max_size=3)
        document[key] = data.draw(values | st.lists(values | st.lists(values, max_size=2), min_size=0, max_size=5))
        path.write_text(json.dumps(document))
    try:
        shards = TokenShards(out, small_model_loaded)
        for i in range(min(5, len(shards))):
            assert shards[i].ids.ndim == 1 and bool((shards[i].ids <= shards.vocabulary).all())
            shards.tokens(i)
    except (ValueError, OSError) as error:
        assert "\n" not in str(error)
    finally:
        shutil.rmtree(out)


def test_a_record_that_names_other_files_does_not_count_as_done(reference, tmp_path):
    out = copied(reference[0], tmp_path / "out")
    row = json.loads((out / "000000.json").read_text())
    this = Job(str(out), "model")
    assert record(this, "000000") == row
    for changed in ({"file": "../out/000000.bin"}, {"name": "../out/000000"}):
        (out / "000000.json").write_text(json.dumps(row | changed))
        assert record(this, "000000") is None


def test_audio_goes_through_the_same_function(tmp_path):
    """Clips of several lengths: each has the codes it has alone."""
    from toys import ResidualDepth

    from mmtok.corpus.shard import encode
    from mmtok.types import Batch

    torch.manual_seed(0)
    tokenizer = ResidualDepth().eval()
    x, lengths = torch.rand(3, 1, 64) * 2 - 1, torch.tensor([64, 40, 16])
    rate = torch.full((3,), 8000.0, dtype=torch.float64)
    batch = Batch(x, ("a", "b", "c"), lengths[:, None], rate, lengths)
    for key, _, tokens in encode(Job(str(tmp_path), "toy", num_quantizers=2), tokenizer, batch):
        i = "abc".index(key)
        single = tokenizer.encode(x[i : i + 1, :, : int(lengths[i])], num_quantizers=2)
        assert torch.equal(tokens.codes, single.codes) and tokens.size.tolist() == [[int(lengths[i])]]
