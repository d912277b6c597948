"""Codebooks of an untrained codec: what is left over shrinks, and the written folder starts a run."""

from pathlib import Path

import pytest
import torch

import mmtok
from mmtok.keep import Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.harmonic import HarmonicDecoder, HarmonicEncoder
from mmtok.quantizers.base import Quantizer
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.split import Product
from mmtok.quantizers.uniform import Uniform
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail
from mmtok.training.codebooks import fit_codebooks, main
from mmtok.types import Batch

SMALL = {"bands": 6, "width": 16, "hidden": 16, "layers": 1}


def codec(chain: Quantizer) -> WaveCodec:
    torch.manual_seed(0)
    encoder, decoder = HarmonicEncoder(**SMALL), HarmonicDecoder(slow=1, **SMALL)
    return WaveCodec(encoder, Product([Uniform(16), Uniform(16), chain]), decoder, 16000, UniformTail(Prefix(1)))


def speech(seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 1, 16000, generator=g).cumsum(-1) * 0.02).sin() * 0.3


def test_every_depth_takes_its_part():
    tokenizer = codec(Residual([VQ(24, 32, ema_decay=0.99), VQ(24, 32, ema_decay=0.99)]))
    left = fit_codebooks(tokenizer, [Batch.of(speech(i)) for i in range(3)])
    assert left[0] > 1.5 * left[1] > 1.5 * left[2] > 0
    codes = tokenizer.encode(speech(9)).codes
    assert all(len(codes[:, 2 + depth].unique()) > 8 for depth in range(2))
    # the running means begin at the codes: a training step must not pull them away
    book = tokenizer.quantizer.members[2].at(0)
    before = book.codebook.clone()
    tokenizer.train()(Batch.of(speech(10)))
    assert (book.codebook - before).abs().max() < 0.1 * before.abs().max()


@pytest.mark.parametrize(
    "quantizer", [VQ(24, 32), Residual([VQ(24, 32)], depth=2)], ids=["no depths", "one codebook for all depths"]
)
def test_other_quantizers_are_refused(quantizer):
    with pytest.raises(ValueError, match="codebooks: the recipe's quantizer"):
        fit_codebooks(codec(quantizer), [Batch.of(speech(0))])


def test_a_recipe_gives_a_folder_to_start_from(tmp_path, capsys):
    book = "{class_path: mmtok.quantizers.vq.VQ, init_args: {dim: 24, codebook_size: 16, ema_decay: 0.9}}"
    sizes = "{bands: 6, width: 16, hidden: 16, layers: 1}"
    chain = f"{{class_path: mmtok.quantizers.residual.Residual, init_args: {{quantizers: [{book}, {book}]}}}}"
    pitch = "{class_path: mmtok.quantizers.uniform.Uniform, init_args: {levels: 16}}"
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"""base: {Path(mmtok.__file__).parents[1] / "configs/audio/speech_tiny.yaml"}
model:
  tokenizer:
    init_args:
      encoder: {{init_args: {sizes}}}
      quantizer: {{init_args: {{quantizers: [{pitch}, {pitch}, {chain}]}}}}
      decoder: {{init_args: {sizes}}}
data: {{init_args: {{train: samples:audio, num_workers: 0, batch_size: 4, cache: {tmp_path / "cache"}}}}}
"""
    )
    main([str(recipe), str(tmp_path / "start"), "--batches", "3"])
    printed = [float(word) for word in capsys.readouterr().out.split(":")[1].split()]
    assert len(printed) == 3 and printed[0] > printed[1] > printed[2]
    started = mmtok.load(str(tmp_path / "start"))
    assert len(started.encode(speech(1)).codes[:, 2].unique()) > 2
