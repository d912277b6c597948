"""Keys and shapes of published files, as meta tensors, written down from the authors' architectures: 2D images.

Nothing here comes from our models: widths, depths and names are those of the references (docs/image.md has the papers).
tests/importers/test_layouts.py holds every layout to the reference's own keys at the sizes of the golden folders.
"""

import torch


def tensors(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def conv(name, out, into, kernel=3, bias=True):
    return {f"{name}.weight": (out, into, kernel, kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def under(prefix, found):
    return {prefix + key: shape for key, shape in found.items()}


def without(found, *prefixes):
    return {key: shape for key, shape in found.items() if not key.startswith(prefixes)}


def affine(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def res(name, into, out, bias=True, on_branch=False):
    """on_branch: the shortcut reads the block's own output (MaskGIT)."""
    found = affine(f"{name}.norm1", into) | conv(f"{name}.conv1", out, into, bias=bias)
    found |= affine(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out, bias=bias)
    return found if into == out else found | conv(f"{name}.nin_shortcut", out, out if on_branch else into, 1, bias)


def attention(name, width, fused=False):
    found = affine(f"{name}.norm", width) | conv(f"{name}.proj_out", width, width, 1)
    if fused:
        return found | conv(f"{name}.qkv", 3 * width, width, 1)
    return found | {k: v for part in "qkv" for k, v in conv(f"{name}.{part}", width, width, 1).items()}


TAMING = {"down": "encoder.down.{}.block.{}", "up": "decoder.up.{}.block.{}", "mid": ("block_1", "attn_1", "block_2")}
LLAMAGEN = {"down": "encoder.conv_blocks.{}.res.{}", "up": "decoder.conv_blocks.{}.res.{}", "mid": ("0", "1", "2")}


def vqgan(ch, mult, blocks, z, dim, codes, names=TAMING, fused=False, kernel=1, lowest=True):
    """The VQGAN family with attention at the lowest level; levels of LlamaGen's decoder count from the lowest up."""
    last, width, found = len(mult) - 1, ch, conv("encoder.conv_in", ch, 3)

    def level(block, i, place, count):
        nonlocal width
        out = {}
        for j in range(count):
            out |= res(block.format(place, j), width, ch * mult[i])
            width = ch * mult[i]
            if i == last and lowest:
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


def maskgit(ch, mult, blocks, z, codes, mid="mid.{}", first=0, up="upsample_conv"):
    """MaskGIT-VQGAN as TiTok converted it; MAGE's names differ in the middle blocks and in `up`."""
    width, found = ch, conv("encoder.conv_in", ch, 3, bias=False)
    for i, m in enumerate(mult):
        for j in range(blocks):
            found |= res(f"encoder.down.{i}.block.{j}", width, ch * m, False, True)
            width = ch * m
    for j in range(blocks):
        found |= res(f"encoder.{mid.format(j + first)}", width, width, False)
    found |= affine("encoder.norm_out", width) | conv("encoder.conv_out", z, width, 1)
    found |= under("decoder.", maskgit_decoder(ch, mult, blocks, z, mid, first, up))
    return found | {"quantize.embedding.weight": (codes, z)}


def maskgit_decoder(ch, mult, blocks, z, mid="mid.{}", first=0, up="upsample_conv"):
    width = ch * mult[-1]
    found = conv("conv_in", width, z)
    for j in range(blocks):
        found |= res(mid.format(j + first), width, width, False)
    for i in reversed(range(len(mult))):
        for j in range(blocks):
            found |= res(f"up.{i}.block.{j}", width, ch * mult[i], False, True)
            width = ch * mult[i]
        if i:
            found |= conv(f"up.{i}.{up}", width, width)
    return found | affine("norm_out", width) | conv("conv_out", 3, width)


def magvit2(ch, mult, blocks, z):
    """Open-MAGVIT2 for images: adaptive norms in the decoder, depth to space."""
    width, last, found = ch, len(mult) - 1, conv("encoder.conv_in", ch, 3, bias=False)
    for i, m in enumerate(mult):
        for j in range(blocks):
            found |= res(f"encoder.down.{i}.block.{j}", width, ch * m, False)
            width = ch * m
        if i < last:
            found |= conv(f"encoder.down.{i}.downsample", width, width)
    for side in ("encoder", "decoder"):
        for j in range(blocks):
            found |= res(f"{side}.mid_block.{j}", width, width, False)
    found |= affine("encoder.norm_out", width) | conv("encoder.conv_out", z, width, 1)
    found |= conv("decoder.conv_in", width, z)
    for i in reversed(range(last + 1)):
        found |= linear(f"decoder.adaptive.{i}.gamma", width, z) | linear(f"decoder.adaptive.{i}.beta", width, z)
        for j in range(blocks):
            found |= res(f"decoder.up.{i}.block.{j}", width, ch * mult[i], False)
            width = ch * mult[i]
        if i:
            found |= conv(f"decoder.up.{i}.upsample.conv1", 4 * width, width)
    return found | affine("decoder.norm_out", width) | conv("decoder.conv_out", 3, width)


def bae(ch, mult, blocks, dim, bits):
    """ELM's binary autoencoder: two flat lists of layers; every block has a shortcut convolution."""
    found = linear("ae.quantize.embed", bits, dim, False) | conv("ae.quantize.proj.0", bits, dim, 1)
    last = len(mult) - 1

    def side(name, levels, start):
        nonlocal found
        layers, width = [], start

        def block(out):
            nonlocal width
            layers.append(lambda at, into=width: res(at, into, out) | conv(f"{at}.conv_out", out, into, 1))
            width = out

        def attend():
            layers.append(lambda at, wide=width: attention(at, wide))

        def middle():
            block(width)
            attend()
            block(width)

        if name == "generator":
            layers.append(lambda at: affine(at, dim))
        layers.append(lambda at, into=3 if name == "encoder" else dim: conv(at, start, into))
        if name == "generator":
            middle()
        for place, i in enumerate(levels):
            for _ in range(blocks):
                block(ch * mult[i])
                if i == last:
                    attend()
            if place < last:
                layers.append(lambda at, wide=width: conv(f"{at}.conv", wide, wide))
        if name == "encoder":
            middle()
        out = dim if name == "encoder" else 3
        layers.extend([lambda at, wide=width: affine(at, wide), lambda at, wide=width: conv(at, out, wide)])
        for number, layer in enumerate(layers):
            made = layer(f"ae.{name}.blocks.{number}")
            found |= {key: shape for key, shape in made.items() if ".nin_shortcut" not in key}
        return width

    side("encoder", range(last + 1), ch)
    width = side("generator", list(reversed(range(last + 1))), ch * mult[-1])
    return found | conv("ae.generator.logsigma.0", width, width) | conv("ae.generator.logsigma.2", 3, width, 1)
