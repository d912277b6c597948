"""Keys and shapes of published video tokenizers; see layouts.py."""

from layouts import affine, linear


def conv(name, out, into, *kernel, bias=True):
    return {f"{name}.weight": (out, into, *kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def vidtok(ch, mult, blocks, z, down, up):
    """down, up: levels at which time shrinks and grows; at space every level but one does."""
    last, norm = len(mult) - 1, lambda name, width: affine(f"{name}.norm", width)

    def block(name, into, out, inner, *kernel):
        found = norm(f"{name}.norm1", into) | conv(f"{name}.conv1{inner}", out, into, *kernel)
        found |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2{inner}", out, out, *kernel)
        return found if into == out else found | conv(f"{name}.nin_shortcut{inner}", out, into, *[1] * len(kernel))

    def level(side, i, into, count):
        found = {}
        for j in range(count):
            found |= block(f"{side}.{i}.block.{j}", into, ch * mult[i], "", 3, 3)
            into = ch * mult[i]
            found |= block(f"{side}_temporal.{i}.block.{j}", into, into, ".conv", 3)
        return found

    def sample(side, way, i, into, time):
        found = {}
        if time:
            found |= conv(f"{side}_temporal.{i}.{way}.conv.conv", into, into, 3, 3, 3)
            found |= {f"{side}_temporal.{i}.{way}.mix_factor": (1,)}
        return found

    found, wide = conv("encoder.conv_in.conv", ch, 3, 3, 3, 3), ch
    for i in range(last + 1):
        found |= level("encoder.down", i, wide, blocks)
        wide = ch * mult[i]
        if i < last:
            found |= conv(f"encoder.down.{i}.downsample.conv", wide, wide, 3, 3)
        found |= sample("encoder.down", "downsample", i, wide, i in down)
    for side in ("encoder", "decoder"):
        for n in (1, 2):
            found |= block(f"{side}.mid.block_{n}", wide, wide, ".conv", 3, 3, 3)
        found |= norm(f"{side}.mid.attn_1.norm", wide)
        for part in ("q", "k", "v", "proj_out"):
            found |= conv(f"{side}.mid.attn_1.{part}.conv", wide, wide, 1, 1, 1)
    found |= norm("encoder.norm_out", wide) | conv("encoder.conv_out.conv", z, wide, 3, 3, 3)
    found |= conv("decoder.conv_in.conv", wide, z, 3, 3, 3)
    for i in reversed(range(last + 1)):
        found |= level("decoder.up", i, wide, blocks + 1)
        wide = ch * mult[i]
        if i:
            found |= conv(f"decoder.up.{i}.upsample.conv", wide, wide, 3, 3)
        found |= sample("decoder.up", "upsample", i, wide, i in up)
    return found | norm("decoder.norm_out", wide) | conv("decoder.conv_out.conv", 3, wide, 3, 3, 3)


def cosmos(ch=128, mult=(2, 4, 4), blocks=2, z=16, patch=4, dim=6):
    """Every level but the last has all three convolutions of its change of size, used or not."""
    last, pixels = len(mult) - 1, 3 * patch**3

    def two(name, out, into):
        found = conv(f"{name}.0.conv3d", out, into, 1, 3, 3)
        return found | conv(f"{name}.1.conv3d", out, out, 3, 1, 1)

    def block(name, into, out):
        found = affine(f"{name}.norm1.norm", into) | two(f"{name}.conv1", out, into)
        found |= affine(f"{name}.norm2.norm", out) | two(f"{name}.conv2", out, out)
        return found if into == out else found | conv(f"{name}.nin_shortcut.conv3d", out, into, 1, 1, 1)

    space, time = (1, 3, 3), (3, 1, 1)
    found, wide = two("encoder.conv_in", ch, pixels), ch
    for i in range(last + 1):
        for j in range(blocks):
            found |= block(f"encoder.down.{i}.block.{j}", wide, ch * mult[i])
            wide = ch * mult[i]
        if i < last:
            for n, kernel in enumerate((space, time, (1, 1, 1)), 1):
                found |= conv(f"encoder.down.{i}.downsample.conv{n}.conv3d", wide, wide, *kernel)
    for side in ("encoder", "decoder"):
        for n in (1, 2):
            found |= block(f"{side}.mid.block_{n}", wide, wide)
        for n in (0, 1):
            found |= affine(f"{side}.mid.attn_1.{n}.norm.norm", wide)
            for part in ("q", "k", "v", "proj_out"):
                found |= conv(f"{side}.mid.attn_1.{n}.{part}.conv3d", wide, wide, 1, 1, 1)
    found |= affine("encoder.norm_out.norm", wide) | two("encoder.conv_out", z, wide) | two("decoder.conv_in", wide, z)
    for i in reversed(range(last + 1)):
        for j in range(blocks + 1):
            found |= block(f"decoder.up.{i}.block.{j}", wide, ch * mult[i])
            wide = ch * mult[i]
        if i:
            for n, kernel in enumerate((time, space, (1, 1, 1)), 1):
                found |= conv(f"decoder.up.{i}.upsample.conv{n}.conv3d", wide, wide, *kernel)
    found |= affine("decoder.norm_out.norm", wide) | two("decoder.conv_out", pixels, wide)
    return found | conv("quant_conv.conv3d", dim, z, 1, 1, 1) | conv("post_quant_conv.conv3d", z, dim, 1, 1, 1)


def traced(haar=True, codes=64000, dim=6):
    """What the published TorchScript halves hold besides: wavelets and tables of FSQ."""
    found = {}
    for name in ("encoder.patcher3d", "decoder.unpatcher3d") if haar else ():
        found |= {f"{name}.wavelets": (2,), f"{name}._arange": (2,), f"{name}.patch_size_buffer": (1,)}
    found |= {f"inv_quant.quantizer.{name}": (dim,) for name in ("_levels", "_basis")}
    return found | {"inv_quant.quantizer.implicit_codebook": (codes, dim)}


def cogvideox(widths=(128, 256, 256, 512), layers=3, z=16):
    """diffusers' AutoencoderKLCogVideoX."""

    def spatial(name, width):
        found = affine(f"{name}.norm_layer", width) | conv(f"{name}.conv_y.conv", width, z, 1, 1, 1)
        return found | conv(f"{name}.conv_b.conv", width, z, 1, 1, 1)

    def block(name, into, out, norm):
        found = norm(f"{name}.norm1", into) | conv(f"{name}.conv1.conv", out, into, 3, 3, 3)
        found |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2.conv", out, out, 3, 3, 3)
        return found if into == out else found | conv(f"{name}.conv_shortcut", out, into, 1, 1, 1)

    found, last = {}, len(widths) - 1
    sides = (("encoder", "down", widths, layers, affine), ("decoder", "up", widths[::-1], layers + 1, spatial))
    for side, way, sizes, count, norm in sides:
        ends = (3, 2 * z) if side == "encoder" else (z, 3)
        wide = sizes[0]
        found |= conv(f"{side}.conv_in.conv", wide, ends[0], 3, 3, 3)
        for i, width in enumerate(sizes):
            for j in range(count):
                found |= block(f"{side}.{way}_blocks.{i}.resnets.{j}", wide, width, norm)
                wide = width
            if i < last:
                found |= conv(f"{side}.{way}_blocks.{i}.{way}samplers.0.conv", wide, wide, 3, 3)
        for j in range(2):
            found |= block(f"{side}.mid_block.resnets.{j}", widths[-1], widths[-1], norm)
        found |= norm(f"{side}.norm_out", wide) | conv(f"{side}.conv_out.conv", ends[1], wide, 3, 3, 3)
    return found


def magvit2(ch=128, mult=(1, 2, 2, 4), blocks=4, z=18):
    """Open-MAGVIT2 for video; a level doubles time too where its multiplier is not 1."""
    last, cube = len(mult) - 1, (3, 3, 3)

    def block(name, into, out):
        found = affine(f"{name}.norm1", into) | conv(f"{name}.conv1.conv_1", out, into, *cube, bias=False)
        found |= affine(f"{name}.norm2", out) | conv(f"{name}.conv2.conv_1", out, out, *cube, bias=False)
        return found if into == out else found | conv(f"{name}.nin_shortcut.conv_1", out, into, 1, 1, 1, bias=False)

    found, wide = conv("encoder.conv_in.conv_1", ch, 3, *cube, bias=False), ch
    for i in range(last + 1):
        for j in range(blocks):
            found |= block(f"encoder.down.{i}.block.{j}", wide, ch * mult[i])
            wide = ch * mult[i]
        if i < last:
            found |= conv(f"encoder.down.{i}.downsample.conv_1", wide, wide, *cube)
    for side in ("encoder", "decoder"):
        for j in range(blocks):
            found |= block(f"{side}.mid_block.{j}", wide, wide)
    found |= affine("encoder.norm_out", wide) | conv("encoder.conv_out.conv_1", z, wide, 1, 1, 1)
    found |= conv("decoder.conv_in.conv_1", wide, z, *cube)
    for i in reversed(range(last + 1)):
        found |= linear(f"decoder.adaptive.{i}.gamma", wide, z) | linear(f"decoder.adaptive.{i}.beta", wide, z)
        for j in range(blocks):
            found |= block(f"decoder.up.{i}.block.{j}", wide, ch * mult[i])
            wide = ch * mult[i]
        if i:
            grown = wide * (4 if mult[i - 1] == 1 else 8)
            found |= conv(f"decoder.up.{i}.upsample.conv1.conv_1", grown, wide, *cube)
    return found | affine("decoder.norm_out", wide) | conv("decoder.conv_out.conv_1", 3, wide, *cube)


def vivit(
    dim=512, heads=8, head=64, patch=(4, 8, 8), spatial=("ttww", "tttt"), temporal=4, window=8, hidden=1365,
    omni=(8192, 8), null=None,
):
    """OmniTokenizer (omni: codes and their channels) and the C-ViViT of phenaki-pytorch (null: keys without input)."""
    inner = heads * head

    def norm(name, width):
        return {f"{name}.gamma": (width,), f"{name}.beta": (width,)}

    def network(name):
        found = linear(f"{name}.net.0.0", dim, 2) | linear(f"{name}.net.1.0", dim, dim)
        return found | linear(f"{name}.net.2", heads, dim)

    def attention(at, kind, time):
        if kind == "w":
            table = ((2 * window - 1) ** 2, heads)
            found = norm(f"{at}.norm", dim) | linear(f"{at}.qkv", 3 * dim, dim, False) | linear(f"{at}.proj", dim, dim)
            return found | {
                f"{at}.relative_position_bias_table": table, f"{at}.relative_position_index": (window**2, window**2)
            }
        found = norm(f"{at}.norm", dim) | norm(f"{at}.context_norm", dim) | linear(f"{at}.to_q", inner, dim, False)
        found |= linear(f"{at}.to_kv", 2 * inner, dim, False) | linear(f"{at}.to_out", dim, inner, False)
        found |= {f"{at}.{part}_scale": (head,) for part in "qk"}
        if null is not None:
            found |= {f"{at}.null_kv": (heads, 2 * null, head)}
        # OmniTokenizer saves position networks that its attention over time never reads
        return found | (network(f"{at}.spatial_rel_pos_bias") if omni and time else {})

    found = {}
    for side, kinds in zip(("enc", "dec"), spatial, strict=True):
        root = {"enc": "encoder.", "dec": "decoder."}[side] if omni else ""
        for name, letters in (("spatial", kinds), ("temporal", "t" * temporal)):
            stack = f"{root}{side}_{name}_transformer"
            for i, kind in enumerate(letters):
                at, time = f"{stack}.layers.{i}", name == "temporal"
                if kind == "t" and (omni or time):
                    found |= conv(f"{at}.0.dsconv", dim, 1, 3, 3, 3)
                found |= attention(f"{at}.1", kind, time) | affine(f"{at}.3.0", dim)
                found |= linear(f"{at}.3.1", 2 * hidden, dim, False) | linear(f"{at}.3.4", dim, hidden, False)
            found |= norm(f"{stack}.norm_out", dim)
    first = 3 * patch[1] * patch[2]
    enc, dec = ("encoder.", "decoder.") if omni else ("", "")
    for name, size in (("", first * patch[0]), ("_first_frame", first)):
        found |= affine(f"{enc}to_patch_emb{name}.1", size) | linear(f"{enc}to_patch_emb{name}.2", dim, size)
        found |= affine(f"{enc}to_patch_emb{name}.3", dim) | linear(f"{dec}to_pixels{name}.0", size, dim)
    if not omni:
        return found | network("spatial_rel_pos_bias")
    codes, width = omni
    found |= {"codebook.embeddings": (codes, width), "codebook.z_avg": (codes, width)}
    found |= {"codebook.N": (codes,), "codebook.codebook_usage": (codes,)}
    return found | linear("pre_vq_conv.1", width, dim) | linear("post_vq_conv.1", dim, width)


def larp(
    width=768, layers=(12, 12), latents=1024, patches=1024, dim=16, codes=8192, patch=(4, 8, 8), prior=(384, 12)
):
    """prior: width and layers of the model of codes; None where there is none."""

    def block(name, wide, names, bias):
        norms, qkv, mlp = names
        found = affine(f"{name}.{norms[0]}", wide) | affine(f"{name}.{norms[1]}", wide)
        for part in qkv:
            found |= linear(f"{name}.attn.{part}", 3 * wide if part == "qkv" else wide, wide, bias)
        found |= linear(f"{name}.attn.proj", wide, wide)
        return found | linear(f"{name}.mlp.{mlp[0]}", 4 * wide, wide) | linear(f"{name}.mlp.{mlp[1]}", wide, 4 * wide)

    vit = (("norm1", "norm2"), ("qkv",), ("fc1", "fc2"))
    pixels = 3 * patch[0] * patch[1] * patch[2]
    found = conv("x_embedder.proj", width, 3, *patch) | {"encoder_latent_query_embed": (latents, width)}
    found |= {"decoder_patch_query_token_type_embed": (1, 1, width), "encoder_patch_pe": (1, patches, width)}
    found |= {"decoder_latent_pe": (1, latents, width), "decoder_patch_query_embed": (1, patches, width)}
    for side, count in zip(("encoder", "decoder"), layers, strict=True):
        for i in range(count):
            found |= block(f"{side}.blocks.{i}", width, vit, False)
    found |= linear("bottleneck.in_linear", dim, width) | linear("bottleneck.out_linear", width, dim)
    found |= {"bottleneck.regularizer.embedding.weight": (codes, dim)} | affine("final_layer.norm_final", width)
    found |= linear("final_layer.linear", pixels, width)
    if prior is None:
        return found
    wide, count = prior
    found |= {"prior_model.pos_emb": (1, latents, wide)} | linear("prior_model.input_proj", wide, dim)
    for i in range(count):
        names = (("ln1", "ln2"), ("query", "key", "value"), ("0", "2"))
        found |= block(f"prior_model.blocks.{i}", wide, names, True)
    return found | affine("prior_model.ln_f", wide) | linear("prior_model.head", dim, wide)


def scorer(width=768, layers=12, latents=2048, into=1536):
    """What AdapTok adds to LARP."""
    stack = larp(width, (layers, 0), prior=None)
    found = {key.replace("encoder.", "scorer."): v for key, v in stack.items() if key.startswith("encoder.blocks.")}
    found |= linear("scorer.project", width, into) | {"scorer.latent_pe": (latents, width)}
    found |= affine("scorer.ln_post", width) | linear("scorer.ffn.0", 2 * width, width)
    return found | linear("scorer.ffn.2", 1, 2 * width)


def elastictok(width=1024, hidden=2048, layers=(10, 10), patch=(1, 8, 8), dim=6):
    """flax's names; layers are stacked, kernels are (in, out)."""
    pixels, found = 3 * patch[0] * patch[1] * patch[2], {}
    for side, count in zip(("encoder", "decoder"), layers, strict=True):
        at = f"{side}/{side}_blocks/scan_decoder"
        found |= {f"{at}/attention/w{part}/kernel": (count, width, width) for part in "qkvo"}
        found |= {f"{at}/feed_forward/w{n}/kernel": (count, width, hidden) for n in (1, 3)}
        found |= {f"{at}/feed_forward/w2/kernel": (count, hidden, width)}
        found |= {f"{at}/{name}_norm/kernel": (count, width) for name in ("attention", "ffn")}
        found |= {f"{side}/ln_f/kernel": (width,)}
    found |= {"encoder/in_proj/kernel": (pixels, width), "decoder/out_proj/kernel": (width, pixels)}
    found |= {f"encoder/is_{name}_embed": (1, width) for name in ("kept", "masked")}
    return found | {"encoder/pre_quant/kernel": (width, dim), "decoder/post_quant/kernel": (dim, width)}
