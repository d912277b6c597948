"""Published checkpoints by name: downloaded, imported once, loaded; consent, hand-put files, damage, the Hub."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mmtok
from mmtok import hub, published
from mmtok.catalogue import home
from mmtok.cli import main

sys.path.insert(0, str(Path(__file__).parent))
import https_server  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
ENTRY = {
    "modality": "image", "summary": "tiny", "licence": "MIT", "code_licence": "MIT", "importer": "llamagen",
    "files": {"vq.pt": "https://localhost:9/vq.pt"},
}


@pytest.fixture
def place(monkeypatch, tmp_path):
    """MMTOK_HOME in an empty folder, no network, and a catalogue with the entry `tiny`; returns what sets the entry."""
    monkeypatch.setenv("MMTOK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv(published.CONSENT, raising=False)

    def put(**changes):
        monkeypatch.setattr(hub, "catalogue", lambda: {"tiny": ENTRY | changes})

    put()
    return put


def weights(system="llamagen_vq", kind="image"):
    return {key: value.float() for key, value in load_file(GOLDEN / kind / system / "weights.safetensors").items()}


def by_hand(content=None, name="vq.pt", entry="tiny"):
    target = home() / "downloads" / entry / name
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights() if content is None else content}, target)
    return target


def test_a_file_put_by_hand_is_imported_once(place):
    with pytest.raises(OSError, match="HF_HUB_OFFLINE.*https://localhost:9/vq.pt .*put it at") as told:
        mmtok.load("tiny")
    target = by_hand()
    assert str(told.value).endswith(str(target))
    tokenizer = mmtok.load("tiny")
    io = load_file(GOLDEN / "image/llamagen_vq/io.safetensors")
    assert torch.equal(tokenizer.encode(io["x"]).codes[:, 0], io["indices"])
    folder = home() / "tokenizers" / "tiny"
    record = yaml.safe_load((folder / "source.yaml").read_text())
    assert record["licence"] == "MIT" and record["mapped"]["quantizer.codebook"] == "quantize.embedding.weight"
    assert record["added"] == ["quantizer.usage"]
    target.unlink()  # what was imported needs no download any more
    assert mmtok.load("tiny").tokenizer_id == tokenizer.tokenizer_id


def test_every_file_that_is_wanted_is_named_at_once(place):
    place(files={"vq.pt": "hf:o/n/sub/vq.pt", "config.json": "https://localhost:9/config.json"})
    wanted = "HF_HUB_OFFLINE.*huggingface.co/o/n/resolve/main/sub/vq.pt .*put it at .*vq.pt, and beside it config.json"
    with pytest.raises(OSError, match=wanted + " from https://localhost:9/config.json"):
        mmtok.load("tiny")
    by_hand()
    with pytest.raises(OSError, match="cannot download config.json") as told:
        mmtok.load("tiny")
    assert "vq.pt" not in str(told.value)


def test_a_changed_entry_is_imported_anew(place):
    by_hand()
    mmtok.load("tiny")
    place(files={"other.pt": "https://localhost:9/other.pt"})
    with pytest.raises(OSError, match="other.pt"):
        mmtok.load("tiny")


def test_weights_that_are_not_for_commercial_use_ask_for_consent(place, monkeypatch, capsys):
    place(non_commercial=True, licence="CC-BY-NC-4.0")
    by_hand()
    with pytest.raises(ValueError, match="CC-BY-NC-4.0.*accept_licence=True.*MMTOK_ACCEPT_LICENCE=tiny"):
        mmtok.load("tiny")
    monkeypatch.setenv(published.CONSENT, "another")
    with pytest.raises(ValueError, match="not for commercial use"):
        mmtok.load("tiny")
    assert main(["fetch", "tiny"]) == 2 and "accept-licence" in capsys.readouterr().err
    mmtok.load("tiny", accept_licence=True)
    mmtok.load("tiny")  # asked once, when it is fetched
    monkeypatch.setenv(published.CONSENT, "another,tiny")
    place(non_commercial=True, licence="CC-BY-NC-4.0", sha256={})
    assert main(["fetch", "tiny", "--accept-licence"]) == 0


def test_damaged_and_foreign_files_name_system_key_and_mend(place):
    target = by_hand(weights("taming_vqgan"))
    with pytest.raises(ValueError, match=r"tiny \(.*vq.pt\): importer llamagen: .*conv_blocks.*another system.*taming"):
        mmtok.load("tiny")
    state = weights()
    state.pop("quant_conv.bias")
    by_hand(state)
    with pytest.raises(ValueError, match=r"importer llamagen: .*missing \['quant_conv.bias'\]"):
        mmtok.load("tiny")
    by_hand(weights() | {"extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="importer llamagen: 1 unknown keys.*extra.weight"):
        mmtok.load("tiny")
    state.pop("quantize.embedding.weight")
    by_hand(state)
    with pytest.raises(ValueError, match="importer llamagen: neither.*quantize.embedding.weight"):
        mmtok.load("tiny")
    target.write_bytes(target.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        mmtok.load("tiny")
    place(sha256={"vq.pt": "00000000"})
    with pytest.raises(ValueError, match="expected 00000000"):
        mmtok.load("tiny")
    assert not list((home() / "tokenizers").glob("*/*"))


def test_settings_of_the_catalogue_stand_for_a_missing_config(place):
    golden = json.loads((GOLDEN / "image/ibq/config.json").read_text())
    settings = {"model": {"init_args": {"ddconfig": golden["ddconfig"]}}}
    place(importer="ibq", published=settings, files={"x.ckpt": "page:https://example.org/page"})
    with pytest.raises(OSError, match="web page only. Fetch https://example.org/page .*x.ckpt"):
        mmtok.load("tiny")
    by_hand(weights("ibq"), "x.ckpt")
    assert mmtok.load("tiny").quantizer.codebook_sizes == ((golden["codebook_size"],),)


def test_import_reports_every_key(tmp_path, capsys):
    torch.save({"state_dict": weights("taming_vqgan") | {"loss.logvar": torch.zeros(1)}}, tmp_path / "last.ckpt")
    golden = json.loads((GOLDEN / "image/taming_vqgan/config.json").read_text())
    params = {"embed_dim": golden["embed_dim"], "n_embed": golden["codebook_size"], "ddconfig": golden["ddconfig"]}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    assert main(["import", "taming", str(tmp_path), "--out", str(tmp_path / "ours"), "--keys"]) == 0
    out = capsys.readouterr().out
    assert "quantize.embedding.weight -> quantizer.codebook" in out
    assert "dropped loss.logvar: discriminator" in out and "set here: quantizer.usage" in out and "missing: none" in out
    record = yaml.safe_load((tmp_path / "ours" / "import.yaml").read_text())
    assert len(record["mapped"]) == len(weights("taming_vqgan")) and list(record["dropped"]) == ["loss.logvar"]
    assert main(["import", "llamagen", str(tmp_path), "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


def test_files_that_are_not_ours_point_to_import(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"1")
    with pytest.raises(ValueError, match="mmtok import SYSTEM .*x.pt"):
        mmtok.load(tmp_path / "x.pt")


HUB = """
import json, sys
import mmtok
from mmtok import hub
entry = json.loads(sys.argv[1])
hub.catalogue = lambda: {"tiny": entry, "left": entry | {"files": {"a": "hf:o/two/a"}},
                         "right": entry | {"files": {"b": "hf:o/two/b"}}}
said = []
for name in ("hf:o/ours", "tiny", "hf:o/published", "hf:o/two", "hf:o/none", "hf:wrong"):
    try:
        said.append(mmtok.load(name).tokenizer_id)
    except (ValueError, OSError) as error:
        said.append(str(error))
print(json.dumps(said))
"""


def test_repositories_of_the_hub(tmp_path, small_model):
    """A folder of ours, a published checkpoint by either name, and what cannot be loaded; then the same offline."""
    server, site = https_server.start()
    for name in ("config.yaml", "model.safetensors"):
        site.files[f"/o/ours/resolve/main/{name}"] = (Path(small_model) / name).read_bytes()
    save_file(weights(), tmp_path / "vq.safetensors")
    site.files["/o/published/resolve/main/vq.safetensors"] = (tmp_path / "vq.safetensors").read_bytes()
    entry = ENTRY | {"files": {"vq.safetensors": "hf:o/published/vq.safetensors"}}
    environment = {
        **os.environ, "HF_ENDPOINT": site.url, "HF_HOME": str(tmp_path / "hf"), "MMTOK_HOME": str(tmp_path / "home"),
        "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip

    def run(**more):
        done = subprocess.run(
            [sys.executable, "-c", HUB, json.dumps(entry)], capture_output=True, text=True, env=environment | more,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    ours, tiny, published_name, two, none, wrong = run()
    assert len(ours) == len(tiny) == 8 and tiny == published_name
    assert "several tokenizers" in two and "left, right" in two
    assert "neither a tokenizer saved by mmtok" in none and "mmtok import" in none
    assert "owner/name" in wrong
    server.shutdown()
    server.server_close()
    offline = run(HF_HUB_OFFLINE="1")
    assert offline[:3] == [ours, tiny, tiny]
    assert "HF_HUB_OFFLINE" in offline[4] and "put it at" in offline[4]
    start = time.monotonic()
    unreachable = run(MMTOK_HOME=str(tmp_path / "fresh"), HF_HOME=str(tmp_path / "fresh"))
    assert time.monotonic() - start < 40
    assert "cannot be reached" in unreachable[0] and "put it at" in unreachable[0]
