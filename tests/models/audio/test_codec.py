"""Waveform codecs: user mistakes, lengths, depth drop, gradients, what a stream remembers."""

import copy

import pytest
import torch

from mmtok.keep import Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.segmented import GROUP, SegmentedCodec
from mmtok.nn.seanet import SEANetDecoder, SEANetEncoder
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.strided import StridedResidual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import ChoiceTail, PartialTail, UniformTail
from mmtok.types import Batch


def parts(channels=1, **sizes):
    sizes = {"channels": channels, "dim": 6, "n_filters": 4, "ratios": [5, 2], "lstm": 1} | sizes
    quantizer = Residual([VQ(6, 16, ema_decay=0.9, revival=0.0) for _ in range(4)])
    return SEANetEncoder(**sizes), quantizer, SEANetDecoder(**sizes)


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return WaveCodec(*parts(), sample_rate=1000, tail=UniformTail(Prefix(1)), end="layers").eval()


@pytest.fixture
def segmented():
    torch.manual_seed(0)
    networks = parts(2, causal=False, norm="time_group_norm")
    return SegmentedCodec(*networks, 1000, segment=100, overlap=0.1).eval()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((1, 1, 50), torch.nan), "NaN"),
        (torch.zeros(1, 1, 0), "no samples"),
        (torch.zeros(1, 8, 50), "8: average them"),
        (torch.zeros(1, 50), "expected float"),
        (torch.zeros(1, 1, 50, dtype=torch.int16), "expected float"),
        (Batch(torch.zeros(1, 1, 50), ("a",), torch.tensor([[50]]), torch.tensor([96000.0])), "resample first"),
    ],
)
def test_mistakes_are_one_line_errors(codec, x, message):
    with pytest.raises(ValueError, match=message) as error:
        codec.encode(x)
    assert "\n" not in str(error.value)


def test_mistakes_of_streams(codec, segmented):
    state = codec.stream_state(batch=2)
    with pytest.raises(ValueError, match="batch of 2"):
        codec.encode_chunk(torch.zeros(1, 1, 10), state)
    with pytest.raises(ValueError, match="without a sample"):
        codec.encode_chunk(torch.zeros(2, 1, 0), state, last=True)
    with pytest.raises(ValueError, match="cannot stream"):
        segmented.stream_state()
    with pytest.raises(ValueError, match="num_quantizers: this model sends 1 to 4"):
        codec.encode(torch.zeros(1, 1, 50), num_quantizers=5)


@torch.no_grad()
@pytest.mark.parametrize("x", [torch.zeros(1, 1, 333), torch.ones(1, 1, 333), torch.randn(1, 1, 333).sign()])
def test_silence_direct_current_and_clipping(codec, segmented, x):
    for model in (codec, segmented):
        clip = x.expand(1, model.channels, -1)
        out = model.decode(model.encode(clip))
        assert out.shape == clip.shape and bool(torch.isfinite(out).all()) and float(out.abs().max()) <= 1


@torch.no_grad()
def test_codes_of_a_padded_batch_are_those_of_each_clip(codec):
    """A causal codec: whole frames of a short clip do not hear the padding behind it."""
    clips = [torch.randn(1, 1, n) for n in (200, 140, 70)]
    batch = torch.cat([torch.nn.functional.pad(clip, (0, 200 - clip.shape[-1])) for clip in clips])
    together = codec.encode(batch).codes
    for row, clip in zip(together, clips, strict=True):
        alone = codec.encode(clip).codes[0]
        assert torch.equal(row[:, : alone.shape[-1]], alone)


@pytest.mark.parametrize("levels", [False, True], ids=["residual", "levels"])
def test_what_stands_behind_a_clip_teaches_nothing(codec, levels):
    """Losses, codebooks and usage of a padded batch are those of the true frames, whatever the padding holds."""
    if levels:
        books = [VQ(6, 16, ema_decay=0.9, revival=0.0) for _ in range(2)]
        codec.quantizer, codec.tail, codec.end = StridedResidual(books, [2, 1]), None, "zeros"
    learned = []
    for fill in (0.0, 3.0):
        model = copy.deepcopy(codec).train()
        x = torch.randn(2, 1, 200, generator=torch.Generator().manual_seed(0))
        x[1, :, 80:] = fill
        x.requires_grad_()
        lengths = torch.tensor([200, 80])
        torch.manual_seed(1)
        quantized, tokens = model.code(Batch(x, ("a", "b"), lengths[:, None], lengths=lengths))
        quantized.losses["commit"].backward()
        assert x.grad[1, :, :80].any() and not x.grad[1, :, 80:].any() and not quantized.z[1, :, 8:].any()
        found = [quantized.losses["commit"].detach(), *quantized.stats.values(), tokens.num_sent]
        learned.append(found + list(model.quantizer.buffers()))
    for a, b in zip(*learned, strict=True):
        torch.testing.assert_close(a, b)
    counts = model.quantizer.levels[0].ema_counts if levels else model.quantizer.at(0).ema_counts
    assert float(counts.sum()) == pytest.approx(0.9 * 16 + 0.1 * (10 + 4 if levels else 20 + 8), rel=1e-5)


@torch.no_grad()
def test_frames_of_segments_behind_a_clip_are_not_counted(segmented):
    lengths = torch.tensor([400, 270])  # segments begin at 0, 90, 180, 270, 360; the last has 40 samples
    _, tokens = segmented.train().code(Batch(torch.randn(2, 2, 400), ("a", "b"), lengths[:, None], lengths=lengths))
    assert tokens.num_sent.tolist() == [4 * 44, 4 * 29]


@torch.no_grad()
def test_depth_is_a_prefix_and_is_paid_for(codec):
    x = torch.randn(2, 1, 130)
    full = codec.encode(x)
    assert float(full.kbps[0]) == pytest.approx((13 * 4 * 4 + 2) / 130, rel=1e-6)
    for depth in (1, 3):
        tokens = codec.encode(x, num_quantizers=depth)
        assert torch.equal(tokens.codes[:, :depth], full.codes[:, :depth]) and not tokens.codes[:, depth:].any()
        assert tokens.num_sent.tolist() == [13 * depth] * 2


@pytest.mark.parametrize(
    ("tail", "drawn"),
    [
        (ChoiceTail([2, 4], Prefix(1), per_batch=True), {2, 4}),
        (PartialTail(0.5, Prefix(1)), {1, 2, 3, 4}),
        (UniformTail(Prefix(1), per_batch=True), {1, 2, 3, 4}),
    ],
)
def test_published_ways_to_drop_depth(codec, tail, drawn):
    codec.tail = tail
    codec.train()
    seen = set()
    torch.manual_seed(1)
    for _ in range(12):
        out = codec(Batch.of(torch.randn(8, 1, 60)))
        lengths = (out.tokens.num_sent // 6).tolist()
        seen |= set(lengths)
        if tail.per_batch:
            assert len(set(lengths)) == 1
        if isinstance(tail, PartialTail):
            assert lengths[4:] == [4] * 4  # the first half draws, the other sends everything
        assert out.x.shape == (8, 1, 60)
    assert seen == drawn


def test_mistakes_of_tails():
    with pytest.raises(ValueError, match="choices"):
        ChoiceTail([0, 2])
    with pytest.raises(ValueError, match="share"):
        PartialTail(1.5)


def test_gradients_reach_the_whole_model(codec, segmented):
    for model in (codec, segmented):
        model.train()
        x = torch.randn(2, model.channels, 230)
        out = model(Batch.of(x))
        ((out.x - x).abs().mean() + out.losses["commit"]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name


@torch.no_grad()
def test_segments_carry_their_level_and_stand_alone(segmented):
    x = torch.randn(1, 2, 400) * 0.01  # far from where decode clamps
    tokens, louder = segmented.encode(x), segmented.encode(x * 4)
    assert torch.equal(tokens.codes, louder.codes)  # the network sees the same, the level is told beside it
    torch.testing.assert_close(segmented.decode(louder) / 4, segmented.decode(tokens), atol=1e-5, rtol=1e-4)
    assert tokens.side["scale"].values.shape == (1, 5, 4)
    assert float(tokens.bits[0]) == tokens.codes.numel() * 4 + 5 * 32
    changed = x.clone()
    changed[..., 250:] = 0
    assert torch.equal(segmented.encode(changed).codes[..., :20], tokens.codes[..., :20])


@torch.no_grad()
def test_long_files_go_through_the_network_in_groups(segmented):
    seen = []
    segmented.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    x = torch.randn(1, 2, 90 * 40)
    tokens = segmented.encode(x)
    assert max(shape[0] for shape in seen) == GROUP and sum(shape[0] for shape in seen) == 40
    assert segmented.decode(tokens).shape == x.shape
