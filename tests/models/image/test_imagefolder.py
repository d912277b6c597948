"""ImageFolder: the share of wrong codes anneals; the semantic head is the last branch; mistakes are named."""

import pytest
import torch

from mmtok.keep import GridPrefix
from mmtok.models.image.imagefolder import ImageFolder, LatentGridDecoder, LatentGridEncoder
from mmtok.nn.vit_trunk import ViTTrunk
from mmtok.quantizers.perturbed import PerturbedVQ
from mmtok.quantizers.scales import ScaleResidual
from mmtok.quantizers.split import Product
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import PartialTail
from mmtok.types import Batch


def trunk(patch):
    return ViTTrunk(32, 1, 2, 4, patch)


def model(quantizer, branches=1, dim=4, **more):
    torch.manual_seed(0)
    encoder = LatentGridEncoder(trunk(4), dim, side=3, branches=branches)
    return ImageFolder(encoder, quantizer, LatentGridDecoder(trunk(None), branches * dim, 4), (16, 16), **more)


def test_wrong_codes_are_fewer_late_in_training():
    tok = model(PerturbedVQ(4, 32, share=1.0, neighbours=8), anneal=(0.2, 0.6)).train()
    batch = Batch.of(torch.rand(8, 3, 16, 16) * 2 - 1)
    changed = {}
    for progress in (0.0, 0.2, 0.4, 0.6, 1.0):
        changed[progress] = tok(batch, progress).tokens
        assert tok.quantizer.strength == pytest.approx({0.0: 1, 0.2: 1, 0.4: 0.75, 0.6: 0.5, 1.0: 0.5}[progress])
    tok.eval()
    true = tok.encode(batch).codes
    moved = [int((tokens.codes != true).flatten(1).any(1).sum()) for tokens in changed.values()]
    assert moved[0] == 8 and moved[-1] == 4


def test_the_semantic_head_is_the_mean_of_the_last_branch():
    members = [ScaleResidual(VQ(4, 16, cosine=True), [1, 2, 3]) for _ in range(2)]
    tail = PartialTail(0.5, GridPrefix(), min_length=1)
    tok = model(Product(members), branches=2, tail=tail).train()
    x = torch.rand(6, 3, 16, 16) * 2 - 1
    recon = tok(Batch.of(x))
    assert recon.x.shape == x.shape and recon.heads["semantic"].shape == (6, 4)
    recon.heads["semantic"].sum().backward()
    assert bool(tok.encoder.latents.grad[9:].any())
    tok.eval()
    recon = tok(Batch.of(x))
    z = tok.embed(recon.tokens)
    torch.testing.assert_close(recon.heads["semantic"], z[:, 4:].mean((2, 3)))
    short = tok.encode(x, num_tokens=2)
    assert int(short.num_sent[0]) == 10 and tok.decode(short).shape == x.shape


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="encoder makes 1 x 4 channels, quantizer takes 5"):
        model(VQ(5, 8))
    with pytest.raises(ValueError, match="tokenizer.anneal"):
        model(VQ(4, 8), anneal=(0.2, 0.6))
    with pytest.raises(ValueError, match="decoder.trunk.patch must be null"):
        LatentGridDecoder(trunk(4), 4)
    with pytest.raises(ValueError, match="make them equal"):
        ImageFolder(LatentGridEncoder(trunk(4), 4), VQ(4, 8), LatentGridDecoder(trunk(None), 4, 8))
