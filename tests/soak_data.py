"""Parts of the soak about data: the order of samples, corpora, token files, hostile bytes."""

import gc
import random
import re
import tarfile
import time
from pathlib import Path

import torch
from conftest import SMALL_MODEL

from mmtok import load
from mmtok.bitstream import pack, unpack
from mmtok.cli import main as mmtok
from mmtok.corpus import Job as Corpus
from mmtok.corpus import tokenize
from mmtok.data import ShardData
from mmtok.data.check import scan_shard
from mmtok.data.index import parse_index
from mmtok.folder import read_config
from mmtok.hub import build
from mmtok.hub import save as save_tokenizer

SETTINGS = [  # ranks, workers, start method; interpreters are slow to start, so those that start many have fewer
    *((world, workers, "fork" if workers else None) for world in (1, 2, 4) for workers in (0, 1, 3)),
    (1, 1, "spawn"), (2, 3, "forkserver"),
]  # fmt: skip
PIECES = (b"9" * 25, b"[[[[", b'{"', b"-1", b"null", b"1e999", b"\\ud800", b"\0")


class DataSoak:
    """`root`, `shards`, `kills`, `seconds`, `rng` and `start` are those of the Soak."""

    root: Path
    shards: Path
    kills: int
    seconds: float
    rng: random.Random

    def model(self) -> Path:
        """A small saved tokenizer."""
        folder = self.root / "model"
        if not folder.is_dir():
            torch.manual_seed(0)
            save_tokenizer(build(SMALL_MODEL), folder)
        return folder

    def order(self) -> dict:
        """Two epochs (26 samples, batches of 4) for every world, number of workers and start method: each key twice,
        and always the same line."""
        wrong, reference = [], None
        for world, workers, method in SETTINGS:
            found = []
            for rank in range(world):
                module = ShardData(str(self.shards), batch_size=4 // world, image_size=16, num_workers=workers,
                                   start_method=method, batches_per_epoch=13)  # fmt: skip
                loader = module.train_loader(rank, world)
                found.append([batch.keys for batch in loader])
                loader.close()
            line = [key for step in zip(*found, strict=True) for part in step for key in part]
            reference = reference or line
            once = all(len(set(line[at : at + 26])) == 26 for at in (0, 26))
            if len(line) != 52 or not once or line != reference:
                wrong.append([world, workers, method])
        return {"settings": len(SETTINGS), "wrong": wrong, "ok": not wrong}

    def corpus(self) -> dict:
        """`mmtok tokenize` killed at random moments, then started again: the bytes of an undisturbed run."""
        options = ["--model", str(self.model()), "--batch-size", "1", "--workers", "0"]
        out = self.root / "tokens"
        tokenize(str(self.shards), Corpus(str(out), str(self.model()), batch_size=1), 0, progress=False)
        wanted = {path.name: path.read_bytes() for path in out.glob("*.bin")}
        kills, rounds, differ, recovered = 0, 0, 0, []
        while kills < max(3, self.kills // 3):
            hurt = self.root / f"hurt{rounds}"
            command = ["tokenize", str(self.shards), str(hurt), *options]
            for wait in (self.rng.uniform(0.0, 0.5) for _ in range(3)):
                process = self.start(mmtok, command)
                # from the moment it writes, or nothing but imports would be killed
                while process.is_alive() and not any(hurt.glob(".*.part")) and not any(hurt.glob("s-*.json")):
                    time.sleep(0.001)
                time.sleep(wait / 5)
                if process.is_alive():
                    process.kill()
                    kills += 1
                process.join()
            begun = time.monotonic()
            assert mmtok(command) == 0
            recovered.append(time.monotonic() - begun)
            rounds += 1
            differ += {path.name: path.read_bytes() for path in hurt.glob("*.bin")} != wanted
            differ += any(hurt.glob(".*.part"))
        return {"injected": kills, "corpora": rounds, "corpora_that_differ": differ,
                "seconds_to_recover_worst": round(max(recovered), 2), "ok": not differ}  # fmt: skip

    def round_trips(self) -> dict:
        """Random codes and lengths through a token file, under tables and without: equal, or the count says so."""
        model, differ, times = load(self.model()), 0, 1000
        table = torch.randint(1, 1 << 16, (1, 64), dtype=torch.int32)
        for i in range(times):
            model.tables = (table,) if i % 2 else None
            height, width = (self.rng.randrange(1, 400) for _ in range(2))
            tokens = model.encode(torch.zeros(1, 3, height, width), num_tokens=self.rng.randint(1, 16))
            codes = torch.randint(0, 64, tokens.grids[0].shape) * tokens.keep[0].expand_as(tokens.grids[0])
            tokens.grids[0].copy_(codes)
            again = unpack(pack(tokens), model)
            equal = torch.equal(again.grids[0], codes) and torch.equal(again.keep[0], tokens.keep[0])
            differ += not (equal and torch.equal(again.size, tokens.size))
        model.tables = None
        return {"tried": times, "differ": differ, "ok": not differ}

    def crowd(self) -> dict:
        """A tar of 100,000 empty members: the check ends, in bounded memory."""
        path, members = self.root / "crowd.tar", 100_000
        with open(path, "wb") as file:
            for n in range(members):
                file.write(tarfile.TarInfo(f"k{n:06d}.txt").tobuf(tarfile.USTAR_FORMAT))
            file.write(bytes(1024))
        memory, begun = _Memory(), time.monotonic()
        shard, bad, problems = scan_shard(path)
        seconds, more = time.monotonic() - begun, memory.grown
        return {"members": members, "samples": len(shard), "without_media": len(bad), "seconds": round(seconds, 1),
                "memory_mb": more,
                "ok": len(shard) == len(bad) == members and not problems and more < 200}  # fmt: skip

    def fuzz(self) -> dict:
        """Mutated token files, indexes, configs and tars until the time is over: errors of one line, nothing else."""
        model = load(self.model())
        token = pack(model.encode(torch.rand(1, 3, 64, 64) * 2 - 1))
        index, config = (self.shards / "index.json").read_bytes(), (self.model() / "config.yaml").read_bytes()
        tar = sorted(self.shards.glob("*.tar"))[0].read_bytes()[: 40 * 512]
        file = self.root / "fuzzed"
        counts, other, slowest = {"tried": 0, "refused": 0, "accepted": 0}, [], 0.0

        def written(reader):
            def read(data: bytes) -> None:
                file.write_bytes(data)
                reader(file)

            return read

        def scan(path: Path) -> None:
            shard, bad, problems = scan_shard(path)
            if bad or problems:
                raise ValueError("reported")

        targets = [(token, lambda d: unpack(d, model).validate()), (index, lambda d: parse_index(d, "index.json")),
                   (config, written(read_config)), (tar, written(scan))]  # fmt: skip
        memory, end = _Memory(), time.monotonic() + self.seconds / 2
        while time.monotonic() < end:
            whole, reader = self.rng.choice(targets)
            data = self._mutate(bytearray(whole))
            counts["tried"] += 1
            begun = time.perf_counter()
            try:
                reader(data)
                counts["accepted"] += 1
            except ValueError:
                counts["refused"] += 1
            except BaseException as error:
                other.append(f"{type(error).__name__}: {error}"[:200])
            slowest = max(slowest, time.perf_counter() - begun)
        more = memory.grown
        return counts | {"other_errors": other[:20], "slowest_seconds": round(slowest, 2), "memory_mb": more,
                         "ok": not other and slowest < 10 and more < 200}  # fmt: skip

    def _mutate(self, data: bytearray) -> bytes:
        for _ in range(self.rng.randint(1, 6)):
            at, kind = self.rng.randrange(len(data)), self.rng.randrange(4)
            if kind == 0:
                data[at] = self.rng.randrange(256)
            elif kind == 1:
                del data[at : at + self.rng.randint(1, 20)]
            elif kind == 2:
                data[at:at] = bytes(self.rng.randrange(256) for _ in range(self.rng.randint(1, 8)))
            else:
                data[at:at] = self.rng.choice(PIECES)
            if not data:
                return b""
        return bytes(data)


class _Memory:
    """`grown`: the most MB this process held since, above what it held at first."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.before = _status("VmRSS")

    @property
    def grown(self) -> float:
        return round(_status("VmHWM") - self.before, 1)


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s*(\d+) kB$", text, re.M).group(1)) / 1024
