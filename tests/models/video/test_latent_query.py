import copy

import pytest
import torch

from mmtok.bitstream import pack, unpack
from mmtok.keep import BlockPrefix
from mmtok.models.video.adaptok import AdapTok, PrefixScorer
from mmtok.models.video.larp import LARP
from mmtok.models.video.lengths import BPP, PSNR, BlockPolicy, psnr, read_target
from mmtok.models.video.prior import CodePrior
from mmtok.nn.latent_query import LatentQueryDecoder, LatentQueryEncoder
from mmtok.quantizers.fsq import FSQ
from mmtok.quantizers.stochastic import StochasticVQ
from mmtok.taildrop import TruncatedNormalTail, UniformTail
from mmtok.types import Batch

N, SIDE = 8, 16


def shake(module, scale=0.2):
    """Fresh weights hardly look at the input, so that every test would pass."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


def parts(blocks, frames, **more):
    torch.manual_seed(0)
    sizes = {"num_latents": N, "frames": frames, "blocks": blocks, "image_size": SIDE, "patch": (2, 8, 8), "width": 32,
             "layers": 2, "heads": 2} | more
    quantizer = StochasticVQ(6, 64)
    return LatentQueryEncoder(6, **sizes), quantizer, LatentQueryDecoder(6, **sizes)


def larp(prior=False):
    tok = LARP(*parts(1, 4), prior=CodePrior(6, N, 16, 2, 2) if prior else None)
    return shake(tok).eval()


def adaptok(scorer=True, **more):
    tail = TruncatedNormalTail(coding=BlockPrefix(), min_length=2)
    net = PrefixScorer(64, N, 3, 32, 2, 2, step=2) if scorer else None
    prior = CodePrior(6, 3 * N, 16, 1, 2)
    return shake(AdapTok(*parts(3, 2), tail=tail, prior=prior, scorer=net, **more)).eval()


def video(frames, height=SIDE, width=SIDE, batch=2, seed=0):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def joined(parts):
    """The codes, masks and sizes of chunks end to end."""
    return torch.cat([t.codes for t in parts], 2), sum(int(t.size[0, 0]) for t in parts)


@pytest.mark.parametrize("make", [larp, adaptok], ids=["larp", "adaptok"])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 16, 16), (3, 17, 9), (7, 16, 16), (15, 30, 40)], ids=str)
def test_any_size_round_trips(make, size):
    tok = make()
    x = video(*size)
    tokens = tok.encode(x)
    assert tokens.shapes == tok.grid_shapes(size)
    assert tok.decode(tokens).shape == x.shape
    torch.testing.assert_close(tok.decode(tokens), tok(Batch.of(x)).x.clamp(-1, 1), atol=1e-5, rtol=0)
    assert torch.equal(tok.encode(x[:1]).codes, tokens.codes[:1])
    again = unpack(pack(tokens[0]), tok)
    assert torch.equal(again.codes, tokens.codes[:1])


@pytest.mark.parametrize("make", [larp, adaptok], ids=["larp", "adaptok"])
def test_the_future_never_changes_earlier_blocks(make):
    tok = make()
    frames, total = tok.stride[0], 4 * tok.stride[0]
    x = video(total)
    tokens = tok.encode(x)
    for t in range(0, total, frames):
        y = x.clone()
        y[:, :, t] = video(1, seed=5)[:, :, 0]
        block = t // frames
        assert torch.equal(tok.encode(y).codes[:, :, :block], tokens.codes[:, :, :block])
        assert not torch.equal(tok.encode(y).codes[:, :, block], tokens.codes[:, :, block])
    alone = tok.decode(tok.encode(x[:, :, : 2 * frames]))
    torch.testing.assert_close(alone, tok.decode(tokens)[:, :, : 2 * frames], atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [larp, adaptok], ids=["larp", "adaptok"])
@pytest.mark.parametrize("chunk", [1, 3, 4, 8, 19])
def test_chunks_equal_the_whole(make, chunk):
    tok = make()
    x = video(19, 20, 16)
    asked = 5 if make is adaptok else None
    whole = tok.encode(x, num_tokens=asked)
    state = tok.stream_state(2, num_tokens=asked)
    found, frames = [], []
    for piece in x.split(chunk, 2):
        tokens, state = tok.encode_chunk(piece, state)
        y, state = tok.decode_chunk(tokens, state)
        found.append(tokens)
        frames.append(y)
    tokens, state = tok.encode_chunk(x[:, :, :0], state, last=True)
    y, state = tok.decode_chunk(tokens, state, last=True)
    codes, count = joined([*found, tokens])
    assert torch.equal(codes, whole.codes) and count == 19
    torch.testing.assert_close(torch.cat([*frames, y], 2), tok.decode(whole), atol=1e-5, rtol=0)
    # what a stream remembers does not grow: everything belongs to one segment
    kept = [v for memory in (state.encoder, state.decoder) for v in memory.memory.values() if isinstance(v, tuple)]
    assert all(t.shape[2] <= 3 * (N + 8) for pair in kept for t in pair)


def test_prefixes_per_block_and_per_item():
    tok = adaptok()
    x = video(6)
    full = tok.encode(x)
    tokens = tok.encode(x, num_tokens=[8, 3, 2])
    assert tokens.num_sent.tolist() == [13, 13]
    assert torch.equal(tokens.codes, full.codes.masked_fill(~tokens.keep[0], 0))
    assert tokens.bits[0] == 13 * 6 + 3 * 3  # codes of 6 bits, three lengths of 3 bits
    mixed = tok.encode(x, num_tokens=torch.tensor([[8, 3, 2], [2, 8, 5]]))
    alone = tok.encode(x[1:], num_tokens=[2, 8, 5])
    torch.testing.assert_close(tok.decode(mixed)[:1], tok.decode(tokens)[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(tok.decode(mixed)[1:], tok.decode(alone), atol=1e-5, rtol=0)
    cut = full.codes.clone()
    cut[~tokens.keep[0].expand_as(cut)] = 7  # the tail is never read
    spoiled = copy.copy(tokens)
    object.__setattr__(spoiled, "grids", (cut,))
    torch.testing.assert_close(tok.decode(spoiled), tok.decode(tokens), atol=1e-6, rtol=0)
    assert torch.equal(unpack(pack(mixed[1]), tok).keep[0].expand(1, 1, 3, N), mixed[1].keep[0])
    for wrong in ([8, 3], [8, 3, 1], [9, 3, 2]):
        with pytest.raises(ValueError, match="num_tokens"):
            tok.encode(x, num_tokens=wrong)


def test_training_draws_a_length_for_every_block_of_every_item():
    tok = adaptok().train()
    out = tok(Batch.of(video(6, batch=16)), 0.5)
    lengths = out.tokens.keep[0].expand_as(out.tokens.codes).sum(-1)[:, 0]
    assert len(lengths.unique()) > 3 and len({tuple(row) for row in lengths.tolist()}) > 10
    assert set(out.losses) == {"commit", "codebook", "prior"}
    sum(out.losses.values()).backward()
    assert tok.encoder.project.weight.grad.abs().sum() > 0


def test_the_prior_teaches_the_encoder_and_scheduled_sampling_ramps_up():
    tok = larp(prior=True).train()
    out = tok(Batch.of(video(8)), 0.15)
    grad, = torch.autograd.grad(out.losses["prior"], tok.encoder.project.weight, retain_graph=True)
    assert grad.abs().sum() > 0  # continuous codes carry the loss to the encoder
    codebook, = torch.autograd.grad(out.losses["prior"], tok.quantizer.codebook, allow_unused=True)
    assert codebook is None  # the codes it is compared with stand still
    prior = tok.prior
    z, logits = torch.zeros(4, N, 6), torch.randn(4, N - 1, 64)
    table = tok.quantizer.table().detach()
    torch.manual_seed(0)
    share = [float((prior.mix(z, logits, table, p).abs().sum(-1) > 0).float().mean()) for p in (0.0, 0.15, 0.3, 1.0)]
    assert share[0] == 0 and 0.05 < share[1] < 0.45 and 0.25 < share[2] < 0.7 and 0.25 < share[3] < 0.7


def test_stochastic_codes_only_while_training():
    tok = larp()
    z = tok.latents(video(8))
    draws = {tuple(tok.quantizer(z).grids[0].flatten().tolist()) for _ in range(3)}
    assert len(draws) == 1
    tok.quantizer.train()
    assert len({tuple(tok.quantizer(z).grids[0].flatten().tolist()) for _ in range(3)}) > 1


# ---- targets ------------------------------------------------------------------------------------------------------


def test_targets_read_from_text():
    assert read_target("32dB") == PSNR(32) and read_target(31.5) == PSNR(31.5)
    assert read_target("0.02bpp exact") == BPP(0.02, exact=True)
    with pytest.raises(ValueError, match="target"):
        read_target("good")


def test_a_policy_never_exceeds_its_rate_and_spends_saved_bits_on_hard_blocks():
    policy = BlockPolicy(BPP(0.5), (2, 4, 6, 8), 2, 8.0, 3.0, 2, 32)  # 32 bits a block: up to 3 codes on the even share
    easy, hard = torch.tensor([[30.0, 31, 32, 33]]), torch.tensor([[10.0, 12, 14, 40]])
    spent, lengths = 0.0, []
    for index, quality in enumerate([easy, easy, easy, easy, hard, hard, easy, easy] * 3):
        length, policy = policy.choose(quality)
        spent += float(length) * 8 + 3
        lengths.append(int(length))
        assert spent <= 0.5 * 2 * 32 * (index + 1)
    assert max(lengths[4::8] + lengths[5::8]) > max(lengths[:4])
    assert spent > 0.5 * 0.5 * 2 * 32 * len(lengths)
    with pytest.raises(ValueError, match="0.29688 bpp"):
        BlockPolicy(BPP(0.1), (2, 4), 2, 8.0, 3.0, 2, 32).choose(easy[:, :2])


def test_a_target_costs_one_encoder_pass_and_looks_at_no_later_block():
    tok = adaptok()
    calls = []
    tok.encoder.transformer.register_forward_hook(lambda *_: calls.append("encoder"))
    tok.decoder.transformer.register_forward_hook(lambda *_: calls.append("decoder"))
    x = video(12)
    middle = float(tok._score(*scored(tok, x)).median().detach())
    calls.clear()
    tokens = tok.encode(x, target=middle)
    assert "decoder" not in calls and len(calls) <= 2  # one a segment
    lengths = tokens.keep[0].expand_as(tokens.codes).sum(-1)[:, 0]
    assert len(lengths.unique()) > 1
    y = x.clone()
    y[:, :, 8:] = 0
    cut = tok.encode(y, target=middle)
    assert torch.equal(cut.codes[:, :, :4], tokens.codes[:, :, :4])
    for frames in (12, 11, 2, 1):  # a block that is not full earns only its real frames
        rate = tok.encode(x[:, :, :frames], target="0.06bpp")
        assert bool((rate.bpp <= 0.06).all()) and int(rate.num_sent.min()) >= 2
    state = tok.stream_state(2, target=middle)
    found = []
    for piece in x.split(3, 2):
        part, state = tok.encode_chunk(piece, state)
        found.append(part)
    assert torch.equal(joined(found)[0], tokens.codes)
    kept = torch.cat([p.keep[0].expand_as(p.codes) for p in found], 2)
    assert torch.equal(kept, tokens.keep[0].expand_as(tokens.codes))


def scored(tok, x):
    features = tok.encoder.features(tok._to_model(x))
    return features, tok.quantizer(tok.encoder.to_codes(features)).z, None


@pytest.mark.parametrize("size", [(6, SIDE, SIDE), (5, 20, 16)], ids=str)
def test_search_finds_the_shortest_prefix_that_really_reaches_the_quality(size):
    tok = adaptok(scorer=False)
    x = video(*size)
    full = psnr(x[:, :, :2], tok.decode(tok.encode(x))[:, :, :2])
    wanted = float(full.mean()) - 0.3
    tokens = tok.encode(x, target=PSNR(wanted))
    lengths = tokens.coding.symbols(tokens.keep, tokens.shapes) + 1
    again = tok.decode(tokens)
    for item in range(2):
        one = slice(item, item + 1)
        reached = psnr(x[one, :, :2], again[one, :, :2]) >= wanted
        assert bool(reached) or int(lengths[item, 0]) == N
        for shorter in range(2, int(lengths[item, 0])):
            y = tok.decode(tok.encode(x[one], num_tokens=[shorter, N, N]))
            assert float(psnr(x[one, :, :2], y[:, :, :2])) < wanted
    assert int(lengths.min()) < N
    exact = tok.encode(x, target=BPP(0.3, exact=True))
    assert bool((exact.bpp <= 0.3 + 1e-9).all())
    with pytest.raises(ValueError, match="both"):
        tok.encode(x, num_tokens=3, target=30.0)


def test_the_scorer_learns_what_prefixes_are_worth():
    torch.manual_seed(0)
    tok = adaptok(train_scorer=True)
    for part in (tok.encoder, tok.decoder, tok.quantizer, tok.prior):
        part.requires_grad_(False)
    optimizer = torch.optim.Adam(tok.scorer.parameters(), 3e-3)
    batch = Batch.of(video(6, batch=8))
    tok.scorer.mean, tok.scorer.std = 5.0, 2.0
    losses = []
    for _ in range(40):
        loss = tok(batch).losses["scorer"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_mistakes_are_named():
    encoder, quantizer, _ = parts(1, 4)
    _, _, decoder = parts(1, 2)
    with pytest.raises(ValueError, match="encoder.frames is 4, decoder.frames 2"):
        LARP(encoder, quantizer, decoder)
    with pytest.raises(ValueError, match="does not fill"):
        parts(1, 3)
    with pytest.raises(ValueError, match="train_scorer"):
        AdapTok(*parts(3, 2), tail=UniformTail(BlockPrefix()), train_scorer=True)
    with pytest.raises(ValueError, match="cannot stream"):
        adaptok(scorer=False).stream_state(target=30)


def test_longer_prefixes_are_better_after_a_short_overfit():
    """Codes of three bits and sixteen clips: one code cannot tell them apart, so each must add something."""
    torch.manual_seed(0)
    sizes = {"num_latents": 4, "frames": 2, "blocks": 2, "image_size": 8, "patch": (2, 4, 4), "width": 32, "layers": 2,
             "heads": 2}  # fmt: skip
    tail = UniformTail(BlockPrefix())
    encoder, decoder = LatentQueryEncoder(2, **sizes), LatentQueryDecoder(2, **sizes)
    tok = AdapTok(encoder, FSQ([3, 3]), decoder, tail=tail, unit_range=False).train()
    coarse = torch.rand(16, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clips = torch.nn.functional.interpolate(coarse, (4, 8, 8), mode="nearest")
    steps = 500
    optimizer = torch.optim.Adam(tok.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = (tok(Batch.of(clips)).x - clips).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    tok.eval()
    curve = [float(psnr(clips, tok.decode(tok.encode(clips, num_tokens=n))).mean()) for n in (1, 2, 3, 4)]
    assert all(b >= a - 0.05 for a, b in zip(curve, curve[1:], strict=False)), curve
    assert curve[-1] > curve[0] + 1, curve


def test_the_prior_reads_every_segment_of_every_tile_as_one_sequence():
    tok = adaptok()
    batch = Batch.of(video(10, 20, 16))  # two tiles; segments of three blocks and of two
    with torch.no_grad():
        quantized, tokens = tok.code(batch)
        found = tok.prior_loss(quantized, tokens, 0.0)
        tok.prior.rounds = 1
        table, total, count = tok.quantizer.table(), 0.0, 0
        for tile in range(2):
            for blocks in (slice(0, 3), slice(3, 5)):
                z = quantized.z[:, :, blocks, tile, 0].flatten(2).transpose(1, 2)
                codes = tokens.codes[:, 0, blocks, tile, 0].flatten(1)
                logits = tok.prior.logits(z, table).flatten(0, 1)
                total += float(torch.nn.functional.cross_entropy(logits, codes[:, 1:].flatten(), reduction="sum"))
                count += codes[:, 1:].numel()
    torch.testing.assert_close(float(found), total / count, atol=1e-4, rtol=1e-4)
