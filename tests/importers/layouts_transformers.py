"""Keys and shapes of published files of image tokenizers built of transformers; see layouts.py."""

from layouts import LLAMAGEN, affine, conv, linear, maskgit, maskgit_decoder, under, vqgan, without

MULT = (1, 1, 2, 2, 4)


def blocks(name, width, layers, mlp=4):
    """The transformer blocks of CLIP's code, which TiTok, KARL, FQGAN and BSQ use."""
    found = {}
    for i in range(layers):
        at = f"{name}.{i}"
        found |= affine(f"{at}.ln_1", width) | affine(f"{at}.ln_2", width) | linear(f"{at}.attn.out_proj", width, width)
        found |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
        found |= linear(f"{at}.mlp.c_fc", mlp * width, width) | linear(f"{at}.mlp.c_proj", width, mlp * width)
    return found


def bsq(bits=18, width=768, layers=12, patch=8, grid=32, hidden=3072, groups=None):
    found = {"encoder.conv1.weight": (width, 3 * patch**2), "quantize.basis": (bits,)}
    found |= {"quantize.group_basis": (groups or bits,)}
    for side in ("encoder", "decoder"):
        found |= blocks(f"{side}.transformer.resblocks", width, layers)
        found |= {f"{side}.positional_embedding": (grid**2, width)}
        found |= affine(f"{side}.ln_pre", width) | affine(f"{side}.ln_post", width)
    found |= linear("quant_embed", bits, width) | linear("post_quant_embed", width, bits)
    return found | linear("decoder.ffn.0", hidden, width) | linear("decoder.conv_out", 3 * patch**2, hidden)


def titok(width, layers, latents, codes, dim, patch=16, grid=16, proxy=None, text=None, clustered=False):
    """proxy: (codes, arguments of the pixel decoder) of two stages; text: (tokens, channels) of TA-TiTok."""
    found = {"quantize.embed_prob": (codes,)} if clustered else {}
    found |= {"latent_tokens": (latents, width[0]), "quantize.embedding.weight": (codes, dim)}
    for side, wide, deep in zip(("encoder", "decoder"), width, layers, strict=True):
        found |= blocks(f"{side}.transformer", wide, deep) | affine(f"{side}.ln_pre", wide)
        found |= affine(f"{side}.ln_post", wide) | {f"{side}.class_embedding": (1, wide)}
        found |= {f"{side}.positional_embedding": (grid**2 + 1, wide)}
        found |= {f"{side}.latent_token_positional_embedding": (latents, wide)}
    found |= conv("encoder.patch_embed", width[0], 3, patch) | conv("encoder.conv_out", dim, width[0], 1)
    found |= linear("decoder.decoder_embed", width[1], dim) | {"decoder.mask_token": (1, 1, width[1])}
    if text is not None:
        found |= linear("decoder.text_guidance_proj", width[1], text[1])
        found |= {"decoder.text_guidance_positional_embedding": (text[0], width[1])}
    if proxy is None:
        return found | conv("decoder.ffn.0", 3 * patch**2, width[1], 1) | conv("decoder.conv_out", 3, 3)
    count, pixels = proxy
    found |= conv("decoder.ffn.0", 2 * width[1], width[1], 1) | conv("decoder.ffn.2", count, 2 * width[1], 1)
    found |= {"pixel_quantize.embedding.weight": (count, pixels[3])}
    return found | under("pixel_decoder.", maskgit_decoder(*pixels))


def mage():
    return maskgit(128, MULT, 2, 256, 1024, "mid.block_{}", 1, "upsample.conv")


def _adaptive(width, layers, dim, codes, base, patch):
    """What KARL and ALIT share; base: (codes, channels) of the frozen tokenizer, whose codes are predicted."""
    found = {"quantize.embedding.weight": (codes, dim), "base_tokenizer.vqgan.quantize.embedding.weight": base}
    for side in ("encoder", "decoder"):
        found |= blocks(f"{side}.transformer", width, layers)
    found |= affine("encoder_ln_pre", width) | affine("encoder_ln_post", width)
    found |= affine("decoder.ln_pre", width) | affine("decoder.ln_post", width)
    found |= conv("patch_embed", width - base[1], 3, patch) | linear("pre_quantizer_mlp", dim, width)
    return found | linear("decoder.ffn.0", 2 * width, width) | linear("decoder.ffn.2", base[0], 2 * width)


def karl(width=1024, layers=8, dim=12, codes=4096, base=(1024, 256), patch=16, grid=64, latents=512, hidden=512):
    found = _adaptive(width, layers, dim, codes, base, patch) | affine("encoder_ln_post_halt", width)
    for side in ("encoder", "decoder"):
        found |= {f"{side}_positional_embedding": (width, grid, grid)}
    found |= {"latent_tokens": (latents, width), "decoder_latent_tokens_timestep_embed": (latents, width)}
    found |= {"rec_loss_embeddings": (19, width), "decoder_mask_token": (1, 1, width)}
    found |= linear("halting_mlp.0", hidden, width) | linear("halting_mlp.2", 1, hidden)
    return found | linear("decoder_embed", width, dim)


def alit(
    width=1024, layers=8, dim=12, codes=4096, base=(1024, 256), patch=16, grid=16, step=32, iterations=8, latents=256
):
    found = _adaptive(width, layers, dim, codes, base, patch) | affine("encoder_ln_recursive", width)
    for side in ("encoder", "decoder"):
        found |= {f"{side}_positional_embedding": (grid**2 + 1, width), f"{side}_class_embedding": (1, width)}
        found |= {f"{side}_mask_token": (1, 1, width)}
    found |= {"latent_tokens": (step, width), "latent_token_positional_embedding": (step, width)}
    found |= {"timestep_embedding": (iterations, step, width)}
    found |= {"decoder.latent_token_positional_embedding": (latents, width)}
    return found | linear("decoder.decoder_embed", width, dim)


def flextok(
    widths, layers, levels=6, channels=16, patch=2, grid=16, registers=256, frequencies=256, ratio=4.0, expansion=2
):
    """Widths and depths of encoder and decoder. How the modules are joined is assumed: see docs/image.md."""
    found = {}
    for side, width, deep in zip(("enc", "dec"), widths, layers, strict=True):
        hidden = int(2 * ratio * width / 3)
        for i in range(deep):
            at = f"{side}_transformer.blocks.{i}"
            for part in ("wq", "wk", "wv", "proj"):
                found |= linear(f"{at}.attn.{part}", width, width, False)
            found |= linear(f"{at}.mlp.fc1", hidden, width, False) | linear(f"{at}.mlp.fc3", hidden, width, False)
            found |= linear(f"{at}.mlp.fc2", width, hidden, False)
            if side == "dec":
                found |= linear(f"{at}.adaLN_modulation.1", 6 * expansion * width, width)
    (wide, width), pixels = widths, channels * patch**2
    found |= linear("enc_patch_emb.patch_proj", wide, pixels) | {"enc_posemb_module.posembs": (1, wide, grid, grid)}
    found |= {"enc_register_module.registers": (registers, wide)} | linear("enc_to_latents.proj", levels, wide)
    found |= linear("dec_from_latents.proj", width, levels) | linear("dec_noise_patch_emb.patch_proj", width, pixels)
    found |= {"dec_latent_dropout.nullcond": (width,), "dec_nested_dropout.dropout_mask_token": (width,)}
    found |= {"dec_patches_posemb_module.posembs": (1, width, grid, grid)}
    found |= {"dec_registers_posemb_module.posembs": (1, 1, width, registers)}
    found |= linear("dec_time_embedder.mlp.0", width, frequencies) | linear("dec_time_embedder.mlp.2", width, width)
    found |= linear("dec_to_patches.adaLN_modulation.1", 2 * width, width)
    found |= linear("dec_to_patches.proj", pixels, width)
    side = {"enc": "encoder", "dec": "decoder"}
    return {f"{side[key[:3]]}.module_dict.{key}": shape for key, shape in found.items()}


def fqgan(
    ch=128, mult=MULT, count=2, z=256, dim=8, codes=16384, adapter=(512, 6), head=(1024, 3), grid=16, used=65536,
    branches=("vis", "sem"),
):
    """A trunk of LlamaGen's; adapter, head: (width, layers) of the branches' transformers."""
    found = without(
        vqgan(ch, mult, count, z, dim, codes, LLAMAGEN),
        "encoder.norm_out", "encoder.conv_out", "quant_conv", "quantize", "post_quant_conv",
    )  # fmt: skip
    found |= conv("post_quant_conv", z, dim * len(branches), 1)
    names = {
        "vis": ("visual_head", None), "sem": ("semantic_head", "feat_pred_head"),
        "sem_mid": ("semantic_head_mid", "mid_sem_feat_pred"), "sem_high": ("semantic_head_high", "high_sem_feat_pred"),
    }

    def transformer(name, width, layers, rows):
        found = blocks(f"{name}.transformer", width, layers) | {f"{name}.positional_embedding": (rows, width)}
        return found | affine(f"{name}.ln_pre", width) | affine(f"{name}.ln_post", width)

    for branch in branches:
        wide, (trunk, predictor) = ch * mult[-1], names[branch]
        found |= transformer(f"encoder.{trunk}.0", *adapter, grid**2)
        found |= affine(f"encoder.norm_out_{branch}", wide) | conv(f"encoder.conv_out_{branch}", z, wide)
        found |= conv(f"quant_conv_{branch}", dim, z, 1)
        found |= {f"quantize_{branch}.embedding.weight": (codes, dim), f"quantize_{branch}.codebook_used": (used,)}
        if predictor is not None:
            width = head[0][branch] if isinstance(head[0], dict) else head[0]
            found |= transformer(predictor, width, head[1], grid**2 + 1) | {f"{predictor}.class_embedding": (1, width)}
            found |= linear(f"{predictor}.upscale.0", width, dim) | linear(f"{predictor}.upscale.2", width, width)
    return found


def timm(name, width, layers, grid, patch, hidden=None, scale=False, split_bias=False):
    """A vision transformer under timm's names, with a class token: DINOv2 (`scale`), EVA, BEiT (`split_bias`)."""
    hidden, found = hidden or 4 * width, {f"{name}.cls_token": (1, 1, width)}
    found |= {f"{name}.pos_embed": (1, grid**2 + 1, width)}
    if patch is not None:
        found |= conv(f"{name}.patch_embed.proj", width, 3, patch)
    for i in range(layers):
        at = f"{name}.blocks.{i}"
        found |= affine(f"{at}.norm1", width) | affine(f"{at}.norm2", width) | linear(f"{at}.attn.proj", width, width)
        found |= linear(f"{at}.attn.qkv", 3 * width, width, not split_bias)
        found |= linear(f"{at}.mlp.fc1", hidden, width) | linear(f"{at}.mlp.fc2", width, hidden)
        if split_bias:
            found |= {f"{at}.attn.q_bias": (width,), f"{at}.attn.v_bias": (width,)}
        if scale:
            found |= {f"{at}.ls1.gamma": (width,), f"{at}.ls2.gamma": (width,)}
    return found


def imagefolder(quantizer, dim, branches=1, side=16, width=768, layers=12, grid=16, patch=16):
    """quantizer: keys and shapes of one branch's."""
    found = conv("quant_conv", dim, width, 1) | conv("post_quant_conv", width, branches * dim, 1)
    for b in range(branches):
        found |= under("quantize." if branches == 1 else f"quantizes.{b}.", quantizer)
    count = branches * side**2
    found |= timm("encoder.model", width, layers, grid, patch, scale=True) | affine("encoder.model.norm", width)
    found |= timm("decoder.model", width, layers, grid, None, scale=True) | affine("decoder.model.norm", width)
    found |= {"encoder.latent_tokens": (1, count, width), "encoder.lvl_embed.weight": (1 + branches, width)}
    found |= {"decoder.lvl_embed.weight": (2, width), "decoder.mask_token": (1, 1, width)}
    found |= {"encoder.lvl1LC": (1, 1 + grid**2 + count), "decoder.lvl1LC": (1, 2 + grid**2 + side**2)}
    found |= linear("decoder.to_pixel.model", 3 * patch**2, width)
    return found | timm("semantic_model", width, layers, grid, patch, scale=True) | affine("semantic_model.norm", width)


def phi(dim, count=4):
    return {key: shape for i in range(count) for key, shape in conv(f"quant_resi.qresi_ls.{i}", dim, dim).items()}


def table(dim, codes):
    """Quantizers of ImageFolder's family: one grid of codes, ..."""
    return {"embedding.weight": (codes, dim), "ema_vocab_hit_SV": (codes,)}


def scales(dim, codes, count=10, shared=4):
    """... residuals over several grids, ..."""
    return {"embedding.weight": (codes, dim), "ema_vocab_hit_SV": (count, codes)} | phi(dim, shared)


def signs(bits, count=10, shared=4):
    """... and signs over several grids."""
    return {"scaler": (count,), "ema_vocab_hit_SV": (count, 2**bits)} | phi(bits, shared)


def clip(width=768, layers=12, grid=14, patch=16, out=512):
    """OpenAI's CLIP, its own names."""
    found = {"conv1.weight": (width, 3, patch, patch), "class_embedding": (width,), "proj": (width, out)}
    found |= {"positional_embedding": (grid**2 + 1, width)} | affine("ln_pre", width) | affine("ln_post", width)
    return found | blocks("transformer.resblocks", width, layers)


def tokenflow(semantic, width, teacher, meaning, grid, decoder=(256, 4), dims=(32, 8), codes=32768):
    """semantic: the frozen encoder's keys; meaning: width of the semantic decoder, three blocks on `grid` places."""
    found = without(vqgan(128, MULT, 2, 256, dims[1], codes, LLAMAGEN), "quantize", "decoder")
    better = vqgan(decoder[0], MULT, decoder[1], 256, dims[1], codes, LLAMAGEN)
    found |= {key: shape for key, shape in better.items() if key.startswith("decoder.")} | semantic
    found |= tokenflow_quantizer(width, 256, dims, codes)
    found |= linear("decode_task_layer.0", meaning, meaning) | linear("decode_task_layer.2", teacher, meaning)
    found |= timm("decoder_vqkd", meaning, 3, grid, None, split_bias=True) | affine("decoder_vqkd.fc_norm", meaning)
    return found | conv("decoder_vqkd.patch_embed.proj", meaning, dims[0], 1)


def tokenflow_quantizer(width, z, dims, codes):
    found = linear("encode_task_layer.0", width, width) | linear("encode_task_layer.2", dims[0], width)
    for name, dim in zip(("vqkd", "vqgan"), dims, strict=True):
        found |= {f"quantize.embedding_{name}.weight": (codes, dim)}
    return found | conv("quant_conv", dims[1], z, 1)


def eva(name, layers, width=1408, hidden=6144, grid=16, patch=14):
    return timm(name, width, layers, grid, patch, hidden, split_bias=True)


def seed(
    trunk_width=1408, trunk_layers=39, width=768, queries=32, codes=8192, dim=32, layers=12, decoder=4,
    down=(256, 128, 32), embedding=1024, words=30523, hidden=3072,
):
    """Of BLIP-2's Q-Former the parts for images; its text side is there too, and left out by the importer."""
    found = eva("visual_encoder", trunk_layers, trunk_width) | affine("ln_vision", trunk_width)
    found |= {"query_tokens": (1, queries, width)} | affine("Qformer.bert.embeddings.LayerNorm", width)
    found |= {"Qformer.bert.embeddings.position_ids": (1, 512)}
    found |= {"Qformer.bert.embeddings.word_embeddings.weight": (words, width)}
    found |= {"Qformer.bert.embeddings.position_embeddings.weight": (512, width)}
    for i in range(layers):
        at = f"Qformer.bert.encoder.layer.{i}"
        for kind in ["attention"] + ["crossattention"] * (i % 2 == 0):
            for part in ("query", "key", "value"):
                found |= linear(
                    f"{at}.{kind}.self.{part}", width, trunk_width if kind[0] == "c" and part != "query" else width
                )
            found |= linear(f"{at}.{kind}.output.dense", width, width) | affine(f"{at}.{kind}.output.LayerNorm", width)
        for kind in ("", "_query"):
            found |= linear(f"{at}.intermediate{kind}.dense", hidden, width)
            found |= linear(f"{at}.output{kind}.dense", width, hidden) | affine(f"{at}.output{kind}.LayerNorm", width)
    return found | seed_quantizer(width, queries, codes, dim, decoder, down, embedding)


def seed_quantizer(width, queries, codes, dim, decoder, down, embedding):
    found = {"quantize.embedding.weight": (codes, dim), "pos_embed_image": (1, queries, width)}
    found |= linear("encode_task_layer.0", width, width) | linear("encode_task_layer.2", dim, width)
    found |= linear("decode_task_layer.0", dim, dim) | linear("decode_task_layer.2", width, dim)
    made = timm("blocks", width, decoder, 0, None)
    found |= {key.replace("blocks.blocks", "blocks_image"): v for key, v in made.items() if ".blocks." in key}
    for i, (into, out) in enumerate(zip((width, *down[:-1]), down, strict=True)):
        found |= linear(f"image_down.{2 * i}", out, into, False)
    return found | linear("distill_image_proj", embedding, queries * down[-1])


def lavit(low=None, eva_layers=40, **sizes):
    """Three files, or four with the decoder for the smaller diffusion model."""
    return eva("eva_vitg_psz14", eva_layers) | lavit_parts(low=low, **sizes)


def lavit_parts(
    width=1408, layers=12, hidden=6144, codes=16384, dim=32, places=256, llm=4096, prompts=(768, 1280), low=None,
    high=True,
):
    """low: (layers, channels of the prompt) of the decoder for the smaller diffusion model; high: with the other's."""

    def cross(at):
        found = {}
        for part in ("query", "key", "value", "proj"):
            found |= linear(f"{at}.{part}", width, width)
        return found

    def block(at, own, other):
        found = linear(f"{at}.{own}.qkv", 3 * width, width) | linear(f"{at}.{own}.proj", width, width)
        for n in range(3):
            found |= affine(f"{at}.norm{n}", width)
        found |= linear(f"{at}.mlp.fc1", hidden, width) | linear(f"{at}.mlp.fc2", width, hidden)
        return found | cross(f"{at}.{other}")

    def decoder(name, deep):
        found = {f"{name}.pos_embed": (1, places, width), f"{name}.query_embed": (1, places, width)}
        for i in range(deep):
            found |= block(f"{name}.blocks.{i}", "self_attn", "cross_attn")
        for n in (0, 2):
            found |= linear(f"{name}.decode_task_layer.{n}", width, width)
        return found | linear(f"{name}.in_proj", width, dim) | affine(f"{name}.norm", width)

    enc, wide = "tokenizer_encoder", "highres_tokenizer_decoder"
    found = {f"{enc}.quantize.embedding.weight": (codes, dim)} | linear(f"{enc}.vit_proj", llm, width)
    found |= linear(f"{enc}.encode_task_layer.0", width, width) | linear(f"{enc}.encode_task_layer.2", dim, width)
    found |= affine(f"{enc}.causal_encoder.ln_vision", width) | affine(f"{enc}.causal_encoder.norm", width)
    for i in range(layers):
        found |= block(f"{enc}.causal_encoder.blocks.{i}", "token_causal_attn", "token_cross_attn")
    found |= affine(f"{enc}.token_predictor.in_conv.0", width)
    found |= linear(f"{enc}.token_predictor.in_conv.1", width, width)
    for n, out, into in ((0, width // 2, width), (2, width // 4, width // 2), (4, 2, width // 4)):
        found |= linear(f"{enc}.token_predictor.out_conv.{n}", out, into)
    if high:
        found |= decoder(wide, layers) | {f"{wide}.unet_attnpool.positional_embedding": (places + 1, width)}
        for n, size in enumerate(prompts, 1):
            found |= linear(f"{wide}.unet_proj_{n}", size, width)
        for part, out in (("q", width), ("k", width), ("v", width), ("c", prompts[1])):
            found |= linear(f"{wide}.unet_attnpool.{part}_proj", out, width)
    if low is not None:
        found |= decoder("tokenizer_decoder", low[0]) | linear("tokenizer_decoder.unet_proj", low[1], width)
    return found
