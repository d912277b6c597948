"""ImageFolder: the share of wrong codes anneals; the semantic head is the last branch; mistakes are named."""

import pytest
import torch

from mmtok.keep import GridPrefix
from mmtok.metrics.pfid import neighbours
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


def test_a_decoder_that_saw_wrong_codes_lives_with_them():
    """Targets that change faster than codes lie apart: without perturbation the decoder follows every code."""
    near = neighbours(latent_table(), 8)
    wrong = {}
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        quantizer = PerturbedVQ(3, 64, share=share, neighbours=8).train()
        quantizer.codebook.data.copy_(latent_table())
        z = torch.nn.functional.normalize(torch.randn(8, 3, 32), dim=1)
        x = (6 * z).sin()
        decoder = torch.nn.Sequential(*(torch.nn.Conv1d(a, b, 1) for a, b in ((3, 64), (64, 64))))
        decoder.insert(1, torch.nn.ReLU())
        decoder.extend([torch.nn.ReLU(), torch.nn.Conv1d(64, 3, 1)])
        optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
        for _ in range(300):
            loss = (decoder(quantizer(z).z) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        codes = quantizer.eval()(z).grids[0][:, 0]
        torch.manual_seed(1)
        moved = near[codes].gather(-1, torch.randint(8, (*codes.shape, 1)))[..., 0]
        with torch.no_grad():
            wrong[share] = float((decoder(quantizer.decode((moved[:, None],))) - x).square().mean())
    assert wrong[1.0] < 0.8 * wrong[0.0]


def latent_table():
    return torch.nn.functional.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(3)), dim=1)


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
