"""TA-TiTok: same codes, same images from codes and text features, captions counted in bits."""

import pytest
import torch
from golden_sets import check_keys, close, folders, label, load_golden, published_range

from mmtok.bitstream import pack, unpack
from mmtok.types import Batch


@pytest.fixture(params=folders("tatitok_vq"), ids=label)
def golden(request):
    return load_golden(request.param)


@torch.no_grad()
def test_codes_losses_and_images(golden):
    facts, tokenizer, io, converted = golden
    check_keys(tokenizer, converted)
    batch = len(io["x"])
    z = tokenizer.latents(io["x"])
    close(z.flatten(2), io["z"].flatten(2))
    quantized = tokenizer.quantizer(z)
    close(quantized.z.flatten(2), io["z_q"].flatten(2))
    close(0.25 * quantized.losses["commit"].view(1), io["commitment_loss"], atol=1e-9)
    close(quantized.losses["codebook"].view(1), io["codebook_loss"], atol=1e-9)
    tokens = tokenizer.encode(io["x"])
    assert torch.equal(tokens.codes, io["indices"].view(batch, 1, -1))
    for text, name in ((io["text"], "recon"), (torch.zeros_like(io["text"]), "recon_zero_text")):
        close(published_range(facts, tokenizer.decode(tokens, text=text)), io[name].clamp(0, 1), atol=1e-4)
        data = Batch(io["x"], ("",) * batch, tokens.size, text=("",) * batch, features={"text": text})
        close(published_range(facts, tokenizer(data).x), io[name], atol=1e-4)


def test_captions_are_counted_and_features_alone_are_refused(golden):
    _, tokenizer, io, _ = golden
    x = io["x"][:2]
    size = tokenizer.encode(x).size
    plain = tokenizer.encode(Batch(x, ("a", "b"), size)).bits
    captioned = tokenizer.encode(Batch(x, ("a", "b"), size, text=("", "caf\u00e9")))
    assert (captioned.bits - plain).tolist() == [0, 8 * 5]
    assert unpack(pack(captioned[1]), tokenizer).side["caption"].values == ("caf\u00e9".encode(),)
    with pytest.raises(ValueError, match="their bits count"):
        tokenizer.encode(Batch(x, ("a", "b"), size, features={"text": io["text"][:2]}))
    with pytest.raises(ValueError, match="tokenizer.text"):
        tokenizer.decode(tokenizer.encode(io["x"]))
    with pytest.raises(ValueError, match="text features are"):
        tokenizer.decode(tokenizer.encode(io["x"]), text=io["text"][:, :2])
