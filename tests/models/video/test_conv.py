"""Convolutional video tokenizers: causality, images, chunks, odd sizes, memory of a stream."""

import gc
import math
from dataclasses import replace

import pytest
import torch
from video_models import MODELS, MULT, VIDTOK, make, video

from mmtok.nn.conv3d import CausalConv3d
from mmtok.nn.conv_video import ConvEncoder3d
from mmtok.nn.resample3d import LinearTime
from mmtok.nn.stream import in_chunks
from mmtok.nn.video_parts import CosmosParts, VidTokParts
from mmtok.types import Batch


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def cut(x, plan):
    """Pieces of these lengths, the last one taking the rest."""
    pieces = []
    for length in plan:
        if x.shape[2]:
            pieces.append(x[:, :, :length])
            x = x[:, :, length:]
    return pieces + ([x] if x.shape[2] else [])


def plans(frames):
    generator = torch.Generator().manual_seed(3)
    some = [int(torch.randint(0, 7, (), generator=generator)) for _ in range(frames)]
    return {"1": [1] * frames, "4": [4] * frames, "8": [8] * frames, "random": some, "whole": [frames]}


@torch.no_grad()
def test_codes_do_not_see_the_future(model):
    x = video(17)
    codes = model.encode(x).codes
    step = model.stride[0]
    for t in (1, 6, 13, 16):
        changed = x.clone()
        changed[:, :, t:] = video(17 - t, seed=t + 5)
        block = 0 if t == 0 else 1 + (t - 1) // step
        others = model.latents(changed)[:, :, :block]
        # the very same arithmetic: equal to the bit
        assert torch.equal(model.encode(changed).codes[:, :, :block], codes[:, :, :block])
        torch.testing.assert_close(others, model.latents(x)[:, :, :block], atol=1e-6, rtol=0)
        assert not torch.equal(model.latents(changed)[:, :, block:], model.latents(x)[:, :, block:])


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MODELS if "look_ahead" not in name])
def test_frames_do_not_see_later_codes(name):
    model = MODELS[name]()
    tokens = model.encode(video(17))
    z = model.embed(tokens)
    whole = model.reconstruct(z, tokens)
    for latent in range(1, z.shape[2]):
        changed = z.clone()
        changed[:, :, latent:] = 1
        frames = 1 + (latent - 1) * model.stride[0]
        torch.testing.assert_close(
            model.reconstruct(changed, tokens)[:, :, :frames], whole[:, :, :frames], atol=1e-6, rtol=0
        )
        shorter = model.reconstruct(z[:, :, :latent], tokens)
        torch.testing.assert_close(shorter, whole[:, :, :frames], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_lone_image_is_frame_zero(model):
    x = video(9)
    image, clip = model.latents(x[:, :, :1]), model.latents(x)
    torch.testing.assert_close(image, clip[:, :, :1], atol=1e-6, rtol=0)
    tokens = model.encode(x[:, :, :1])
    assert torch.equal(tokens.codes, model.encode(x).codes[:, :, :1])
    assert model.decode(tokens).shape == (1, 3, 1, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 17, 22])
def test_any_chunking_equals_the_whole(model, frames):
    x = video(frames, 12, 20, batch=2)
    whole = model.encode(x)
    recon = model.decode(whole)
    for name, plan in plans(frames).items():
        state, parts, sizes = model.stream_state(2), [], 0
        pieces = cut(x, plan)
        for index, piece in enumerate(pieces):
            tokens, state = model.encode_chunk(piece, state, last=index == len(pieces) - 1)
            parts.append(tokens)
            sizes += int(tokens.size[0, 0])
        codes = torch.cat([part.codes for part in parts], 2)
        assert torch.equal(codes, whole.codes) and sizes == frames, name
        state, frames_out = model.stream_state(2), []
        for index, tokens in enumerate(parts):
            out, state = model.decode_chunk(tokens, state, last=index == len(parts) - 1)
            frames_out.append(out)
        torch.testing.assert_close(torch.cat(frames_out, 2), recon, atol=1e-5, rtol=0, msg=name)


@torch.no_grad()
def test_pieces_are_exact_arithmetic(model):
    """In double precision nothing is left of the differences but rounding."""
    model.double()
    x = model._to_model(video(22).double())
    z = model.encoder(x)
    torch.testing.assert_close(in_chunks(model.encoder, x, 1, model.stride[0]), z, atol=1e-13, rtol=0)
    z = torch.randn(1, model.decoder.z_channels, *z.shape[2:], dtype=torch.float64)
    torch.testing.assert_close(in_chunks(model.decoder, z, 1, 1), model.decoder(z), atol=1e-12, rtol=0)


@torch.no_grad()
def test_one_latent_at_a_time_decodes_alike_and_at_once(model):
    """Tokens of one block each: a causal decoder gives out all their frames; looking ahead it is late."""
    tokens = model.encode(video(17))
    count, step = tokens.codes.shape[2], model.stride[0]
    state, out = model.stream_state(), []
    for index in range(count):
        size = torch.tensor([[1 if index == 0 else step, 16, 16]])
        one = replace(tokens, grids=(tokens.codes[:, :, index : index + 1],), size=size)
        frames, state = model.decode_chunk(one, state, last=index == count - 1)
        late = any(isinstance(module, LinearTime) for module in model.decoder.modules())
        assert late or frames.shape[2] == size[0, 0]
        out.append(frames)
    torch.testing.assert_close(torch.cat(out, 2), model.decode(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "frames,height,width", [(1, 1, 1), (2, 3, 17), (5, 40, 9), (33, 8, 8), (4, 33, 1), (1, 257, 129)]
)
def test_any_size_and_duration(model, frames, height, width):
    x = video(frames, height, width)
    tokens = model.encode(x)
    assert tokens.shapes == model.grid_shapes((frames, height, width))
    assert model.decode(tokens).shape == x.shape
    assert float(tokens.bits) == pytest.approx(tokens.codes.numel() * math.log2(model.quantizer.codebook_sizes[0][0]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vidtok_488", "vidtok_look_ahead", "cosmos_888"])
def test_pieces_bound_memory_and_change_nothing(name):
    whole, pieces = MODELS[name](), MODELS[name](piece=1)
    pieces.load_state_dict(whole.state_dict())
    x = video(23)
    tokens = whole.encode(x)
    assert torch.equal(pieces.encode(x).codes, tokens.codes)
    torch.testing.assert_close(pieces.decode(tokens), whole.decode(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_stream_remembers_no_more_with_time(model):
    def held(stream):
        tensors = [t for v in stream.memory.values() for t in (v if isinstance(v, tuple) else (v,))]
        return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor))

    state, seen = model.stream_state(), []
    for index in range(9):
        tokens, state = model.encode_chunk(video(model.stride[0], 8, 8, seed=index), state)
        _, state = model.decode_chunk(tokens, state)
        seen.append(held(state.encoder) + held(state.decoder) + state.waiting.untyped_storage().nbytes())
        gc.collect()
    assert len(set(seen[5:])) == 1


def test_states_are_values(model):
    """A caller may go back to an earlier state, and two streams do not meet."""
    x = video(13)
    first, state = model.encode_chunk(x[:, :, :5], model.stream_state())
    once, _ = model.encode_chunk(x[:, :, 5:], state, last=True)
    other, _ = model.encode_chunk(video(7, seed=9), model.stream_state(), last=True)
    again, _ = model.encode_chunk(x[:, :, 5:], state, last=True)
    assert torch.equal(once.codes, again.codes) and len(other.codes)
    with pytest.raises(ValueError, match="change size to"):
        model.encode_chunk(video(4, 32, 16), state)
    with pytest.raises(ValueError, match="batch of 1, the chunk has 2"):
        model.encode_chunk(video(4, batch=2), state)
    with pytest.raises(ValueError, match="without a frame"):
        model.encode_chunk(x[:, :, :0], model.stream_state(), last=True)
    with pytest.raises(ValueError, match="frames and pixels"):
        model.encode(x[:, :, :0])


def test_trains_and_recomputes(model):
    """Gradients reach every parameter, and are the same when activations are recomputed."""
    model.train()
    x = Batch.of(video(9, batch=2))
    grads = []
    for recompute in (False, True):
        model.encoder.gradient_checkpointing = model.decoder.gradient_checkpointing = recompute
        model.zero_grad()
        (model(x).x - x.x).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad is not None and bool(grad.isfinite().all()), name
        torch.testing.assert_close(grad, grads[1][name], atol=1e-6, rtol=1e-3)


@torch.no_grad()
def test_batched_equals_single(model):
    x = video(9, 24, 16, batch=3)
    batched = model.encode(x)
    for i in range(3):
        assert torch.equal(model.encode(x[i : i + 1]).codes, batched.codes[i : i + 1])
    torch.testing.assert_close(model.decode(batched)[1:2], model.decode(batched[1]), atol=1e-5, rtol=0)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at most 3 pairs"):
        ConvEncoder3d(VidTokParts(), 4, 8, MULT, 1, [(1, 3)])
    with pytest.raises(ValueError, match="quant_conv"):
        make(VidTokParts(), VIDTOK["488"], VIDTOK["488"], quant_conv=False)
    with pytest.raises(ValueError, match=r"strides give \[4, 8, 8\], decoder.strides \[8, 8, 8\]"):
        make(VidTokParts(), VIDTOK["488"], VIDTOK["888"])
    with pytest.raises(ValueError, match="power of two"):
        CosmosParts(3).stem(3)
    with pytest.raises(ValueError, match="smaller than stride"):
        CausalConv3d(3, 3, (1, 3, 3), (2, 2, 2))
    with pytest.raises(ValueError, match="piece"):
        MODELS["vidtok_488"](piece=0)
