"""One media shard into one token shard: the function that every driver calls.

Legend: B batch, C channels, L codes of one item.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmtok.bitstream import pack
from mmtok.corpus.job import Job, begin, partial, record, write
from mmtok.data.audio_module import AudioData
from mmtok.data.index import file_sha256
from mmtok.data.module import ShardData
from mmtok.data.shard_module import ShardModule
from mmtok.hub import load
from mmtok.tokenizer import Tokenizer
from mmtok.types import PAD, Batch, Tokens


def tokenize_shard(job: Job, name: str, url: str) -> dict[str, Any]:
    """Writes `<name>.bin` or `.tar`, its usage and then its record, unless they are there. Returns the record.

    Whatever kills it leaves nothing that counts; whoever runs it again writes the same bytes. ValueError for shards and
    options that cannot work, and when more than `job.max_bad_fraction` of the samples are bad.
    """
    done = record(job, name)
    if done is not None:
        return done
    tokenizer = tokenizer_of(job)
    begin(job, tokenizer.tokenizer_id)
    started = time.perf_counter()
    loader = media(job, tokenizer, url).eval_loader("SHARDS", [url], rank=0, world=1)
    books = [size for sizes in tokenizer.quantizer.codebook_sizes for size in sizes]
    counts = np.zeros(sum(books), dtype=np.int64)
    keys, lengths, sizes, rates, texts, keeps = [], [], [], [], [], []
    bits, units, codes = 0.0, 0, 0
    file = job.folder / f"{name}.{'bin' if job.format == 'packed' else 'tar'}"
    temporary, members = partial(file), []
    try:
        with open(temporary, "wb") as stream:
            tar = tarfile.open(fileobj=stream, mode="w") if job.format == "mmt" else None  # noqa: SIM115
            for batch in loader:
                for key, text, tokens in encode(job, tokenizer, batch):
                    ids = flat_ids(tokens)
                    counts += np.bincount(ids[ids < len(counts)], minlength=len(counts))
                    if tar is None:
                        stream.write(ids.astype(dtype_of(len(counts))).tobytes())
                    else:
                        members.append(_add(tar, f"{key}.mmt", pack(tokens)))
                    keys.append(key)
                    lengths.append(len(ids))
                    sizes.append(tokens.size[0].tolist())
                    rates.append(None if tokens.rate is None else float(tokens.rate[0]))
                    texts.append(text)
                    keeps.append(tokens.coding.symbols(tokens.keep, tokens.shapes)[0].tolist())
                    bits += float(tokens.bits[0])
                    units += math.prod(sizes[-1])
                    codes += int(tokens.num_sent[0])
            if tar is not None:
                tar.close()
            stream.flush()
            os.fsync(stream.fileno())
        row = {
            "name": name, "file": file.name, "bytes": temporary.stat().st_size, "sha256": file_sha256(temporary),
            "samples": len(keys), "bad": dict(loader.bad), "codes": codes, "bits": bits, "media_units": units,
            "seconds": time.perf_counter() - started, "tokenizer_id": tokenizer.tokenizer_id,
            "codebook_sizes": [list(sizes) for sizes in tokenizer.quantizer.codebook_sizes],
            "keys": keys, "lengths": lengths, "sizes": sizes, "rates": rates, "keeps": keeps,
            **({"texts": texts} if job.text else {}), **({"members": members} if job.format == "mmt" else {}),
        }  # fmt: skip
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    usage = io.BytesIO()
    np.save(usage, counts)
    write(job.folder / f"{name}.usage.npy", usage.getvalue())
    write(job.folder / f"{name}.json", json.dumps(row).encode())
    return row


def tokenizer_of(job: Job) -> Tokenizer:
    """The job's tokenizer, loaded once a process."""
    device = job.device
    if device == "cuda":
        local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
        device = f"cuda:{int(local) % max(1, torch.cuda.device_count())}"
    tokenizer = _loaded(job.model, device)
    if not tokenizer.quantizer.codebook_sizes:
        raise ValueError(f"{job.model}: a continuous bottleneck has no codes to store")
    if job.format == "packed" and tokenizer.side_shapes(tuple(tokenizer.size)):
        raise ValueError(f"{job.model} sends side information, which ids do not hold: add --format mmt")
    return tokenizer


@functools.lru_cache(maxsize=1)
def _loaded(model: str, device: str) -> Tokenizer:
    return load(model, device)


def media(job: Job, tokenizer: Tokenizer, url: str) -> ShardModule:
    """What reads and cuts the samples of a shard, by the tokenizer's modality."""
    spec = tokenizer.spec
    common: dict[str, Any] = {
        "batch_size": job.batch_size, "num_workers": job.loader_workers, "text": job.text,
        "max_bad_fraction": job.max_bad_fraction, "start_method": "forkserver" if job.loader_workers else None,
    }  # fmt: skip
    if spec.modality == "image":
        return ShardData(url, image_size=job.size or min(spec.size), **common)
    if spec.modality == "audio" and spec.rate:
        return AudioData(url, int(spec.rate), eval_seconds=job.seconds, **common)
    if spec.modality == "video":
        from mmtok.data.video_module import VideoData  # needs PyAV, which images and audio do without

        frames, *sides = spec.size
        return VideoData(url, frames=frames, image_size=job.size or min(sides), fps=spec.rate, **common)
    raise ValueError(f"{job.model}: there is no reader for {spec.modality} at {spec.rate} Hz; use encode(job, ...)")


def encode(job: Job, tokenizer: Tokenizer, batch: Batch) -> Iterator[tuple[str, str, Tokens]]:
    """(key, caption, tokens of batch 1 on the CPU) of every item of a batch, whatever the modality.

    Items of one length are encoded together, padded ones each at its own length.
    """
    device = next(tokenizer.parameters()).device
    even = batch.lengths is None or bool((batch.lengths == batch.x.shape[-1]).all())
    parts = [batch] if even else [_item(batch, i) for i in range(len(batch.keys))]
    for part in parts:
        moved = part.to(device, non_blocking=True)
        tokens = tokenizer.encode(moved, num_tokens=job.num_tokens, num_quantizers=job.num_quantizers).to("cpu")
        for i, key in enumerate(part.keys):
            yield key, part.text[i] if part.text else "", tokens[i].validate()


def flat_ids(tokens: Tokens) -> NDArray[np.int64]:
    """int64 [L]: `Tokens.flat` with offsets; what is not sent is the id behind the last one, cut off at the end."""
    ids = tokens.flat(offset=True)[0].numpy()
    vocabulary = sum(sum(sizes) for sizes in tokens.codebook_sizes)
    sent = np.flatnonzero(ids != PAD)
    ids = ids[: int(sent[-1]) + 1 if len(sent) else 0]
    return np.where(ids == PAD, vocabulary, ids)


def dtype_of(vocabulary: int) -> np.dtype:
    """Little-endian type that holds all ids and the one for "not sent"."""
    return np.dtype("<u2" if vocabulary < 1 << 16 else "<u4")


def _item(batch: Batch, i: int) -> Batch:
    assert batch.lengths is not None
    length = int(batch.lengths[i])
    return replace(
        batch, x=batch.x[i : i + 1, ..., :length], keys=batch.keys[i : i + 1], size=batch.size[i : i + 1],
        rate=None if batch.rate is None else batch.rate[i : i + 1], lengths=None,
        text=None if batch.text is None else batch.text[i : i + 1],
        features={name: value[i : i + 1] for name, value in batch.features.items()},
    )  # fmt: skip


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> list[int]:
    """Offset and size of the new member."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return [tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data)]
