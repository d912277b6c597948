"""Keys and shapes of published files at full size, as meta tensors, written down from the authors' architectures.

Nothing here comes from our models: widths, depths and names are those of the references (docs/image.md has the papers).
"""

import torch


def tensors(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def conv(name, out, into, kernel=3):
    return {f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)}


def affine(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def res(name, into, out):
    found = affine(f"{name}.norm1", into) | conv(f"{name}.conv1", out, into)
    found |= affine(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out)
    return found if into == out else found | conv(f"{name}.nin_shortcut", out, into, 1)


def attention(name, width, fused=False):
    found = affine(f"{name}.norm", width) | conv(f"{name}.proj_out", width, width, 1)
    if fused:
        return found | conv(f"{name}.qkv", 3 * width, width, 1)
    return found | {k: v for part in "qkv" for k, v in conv(f"{name}.{part}", width, width, 1).items()}


TAMING = {"down": "encoder.down.{}.block.{}", "up": "decoder.up.{}.block.{}", "mid": ("block_1", "attn_1", "block_2")}
LLAMAGEN = {"down": "encoder.conv_blocks.{}.res.{}", "up": "decoder.conv_blocks.{}.res.{}", "mid": ("0", "1", "2")}


def vqgan(ch, mult, blocks, z, dim, codes, names=TAMING, fused=False, kernel=1):
    """The VQGAN family with attention at the lowest level; levels of LlamaGen's decoder count from the lowest up."""
    last, width, found = len(mult) - 1, ch, conv("encoder.conv_in", ch, 3)

    def level(block, i, place, count):
        nonlocal width
        out = {}
        for j in range(count):
            out |= res(block.format(place, j), width, ch * mult[i])
            width = ch * mult[i]
            if i == last:
                name = block.format(place, j).replace(".block.", ".attn.").replace(".res.", ".attn.")
                out |= attention(name, width, fused)
        return out

    def middle(side):
        first, inner, second = (f"{side}.mid.{part}" for part in names["mid"])
        return res(first, width, width) | attention(inner, width, fused) | res(second, width, width)

    for i in range(last + 1):
        found |= level(names["down"], i, i, blocks)
        if i < last:
            found |= conv(names["down"].rsplit(".", 2)[0].format(i) + ".downsample.conv", width, width)
    found |= middle("encoder") | affine("encoder.norm_out", width) | conv("encoder.conv_out", z, width)
    found |= conv("decoder.conv_in", width, z) | middle("decoder")
    for i in reversed(range(last + 1)):
        place = i if names is TAMING else last - i
        found |= level(names["up"], i, place, blocks + 1)
        if i:
            found |= conv(names["up"].rsplit(".", 2)[0].format(place) + ".upsample.conv", width, width)
    found |= affine("decoder.norm_out", width) | conv("decoder.conv_out", 3, width)
    found |= conv("quant_conv", dim, z, kernel) | conv("post_quant_conv", z, dim, kernel)
    return found | {"quantize.embedding.weight": (codes, dim)}


def var():
    found = vqgan(160, (1, 1, 2, 2, 4), 2, 32, 32, 4096, fused=True, kernel=3)
    found |= {"quantize.ema_vocab_hit_SV": (10, 4096)}
    return found | {k: v for i in range(4) for k, v in conv(f"quantize.quant_resi.qresi_ls.{i}", 32, 32).items()}


def blocks(name, width, layers, mlp=4):
    """The transformer blocks of CLIP's code, which TiTok and BSQ-ViT use."""
    found = {}
    for i in range(layers):
        at = f"{name}.{i}"
        found |= affine(f"{at}.ln_1", width) | affine(f"{at}.ln_2", width)
        found |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
        for part, out, into in (
            ("attn.out_proj", width, width), ("mlp.c_fc", mlp * width, width), ("mlp.c_proj", width, mlp * width),
        ):  # fmt: skip
            found |= {f"{at}.{part}.weight": (out, into), f"{at}.{part}.bias": (out,)}
    return found


def bsq(bits=18, width=768, layers=12):
    found = {"encoder.conv1.weight": (width, 192), "quantize.basis": (bits,), "quantize.group_basis": (bits,)}
    for side in ("encoder", "decoder"):
        found |= blocks(f"{side}.transformer.resblocks", width, layers)
        found |= {f"{side}.positional_embedding": (1024, width)}
        found |= affine(f"{side}.ln_pre", width) | affine(f"{side}.ln_post", width)
    for name, out, into in (
        ("quant_embed", bits, width), ("post_quant_embed", width, bits), ("decoder.ffn.0", 4 * width, width),
        ("decoder.conv_out", 192, 4 * width),
    ):  # fmt: skip
        found |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return found


def titok(width, layers, latents, codes, dim):
    """Single stage: pixels from a linear layer and a 3x3 convolution."""
    found = {"latent_tokens": (latents, width[0]), "quantize.embedding.weight": (codes, dim)}
    for side, wide, deep in zip(("encoder", "decoder"), width, layers, strict=True):
        found |= blocks(f"{side}.transformer", wide, deep) | affine(f"{side}.ln_pre", wide)
        found |= affine(f"{side}.ln_post", wide) | {f"{side}.class_embedding": (1, wide)}
        found |= {f"{side}.positional_embedding": (257, wide)}
        found |= {f"{side}.latent_token_positional_embedding": (latents, wide)}
    found |= conv("encoder.patch_embed", width[0], 3, 16) | conv("encoder.conv_out", dim, width[0], 1)
    found |= {"decoder.decoder_embed.weight": (width[1], dim), "decoder.decoder_embed.bias": (width[1],)}
    found |= {"decoder.mask_token": (1, 1, width[1])}
    return found | conv("decoder.ffn.0", 768, width[1], 1) | conv("decoder.conv_out", 3, 3)
