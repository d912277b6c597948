"""What the published files hold, entry by entry of the catalogue: keys and shapes, settings beside them, counts."""

import re
from dataclasses import dataclass, field, replace

import layouts
import layouts_audio as audio
import layouts_transformers as transformers
import layouts_video as video
import torch
import torchaudio.compliance.kaldi  # noqa: F401  makes a tensor when imported, which must not be on meta
from layouts import LLAMAGEN, magvit2, maskgit, vqgan

MULT = (1, 1, 2, 2, 4)
SIZES = {"small": (512, 8), "base": (768, 12), "large": (1024, 24)}
DD = {"double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
      "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0}  # fmt: skip


class Cut(float):
    """A published figure whose authors left out further digits instead of rounding."""


@dataclass(frozen=True)
class Case:
    """shapes of a file's keys; the rest as far as it is known.

    settings   of the config file beside it; None takes those of the catalogue
    count      number of keys, where it was published
    published  parameters in millions where they were published, to the digits of that place: of the whole file, or of
               keys that match {regex: ...}
    joined     parts of keys that an importer joins with others
    training   parts of our recipe's model that no published file has
    apart      parts of the published model that our recipe leaves out
    values     keys whose values, not only shapes, an importer reads
    legacy     flags of encoder and decoder that published weights need and our recipe leaves off
    """

    shapes: dict
    settings: dict | None = None
    count: int | None = None
    published: float | dict | None = None
    joined: tuple = (".qkv.",)
    training: tuple = ()
    apart: tuple = ()
    values: dict = field(default_factory=dict)
    legacy: tuple = ()


def taming(codes, published):
    settings = {"model": {"params": {"ddconfig": DD, "embed_dim": 256, "n_embed": codes}}}
    return Case(vqgan(128, MULT, 2, 256, 256, codes), settings, published=published)


def llamagen(mult, count=None, published=None):
    shapes = vqgan(128, mult, 2, 256, 8, 16384, LLAMAGEN) | {"quantize.codebook_used": (65536,)}
    return Case(shapes, count=count, published=published)


def ibq(codes):
    return Case(vqgan(128, MULT, 4, 256, 256, codes), published={"encoder.*": 46.75, "decoder.*": 59.9})


PIXELS = (1024, (128, MULT, 2, 256))  # codes of MaskGIT-VQGAN and sizes of its decoder


def titok(sides, latents, codes, dim, count=None, published=None, two_stage=False, **flags):
    """sides: sizes of encoder and decoder."""
    (wide, deep), (wide2, deep2) = (SIZES[side] for side in sides)
    text = flags.pop("text", None)
    model = {
        "codebook_size": codes, "token_size": dim, "use_l2_norm": two_stage, "vit_enc_model_size": sides[0],
        "vit_dec_model_size": sides[1], "vit_enc_patch_size": 16, "vit_dec_patch_size": 16,
        "num_latent_tokens": latents, "finetune_decoder": two_stage, "is_legacy": two_stage, **flags,
    }
    shapes = transformers.titok(
        (wide, wide2), (deep, deep2), latents, codes, dim, proxy=PIXELS if two_stage else None, text=text,
        clustered=text is not None,
    )
    settings = {"model": {"vq_model": model}, "dataset": {"preprocessing": {"crop_size": 256}}}
    return Case(shapes, settings, count, published, training=("text.",))


def tatitok(latents):
    return titok(("base", "large"), latents, 8192, 64, text=(77, 768), text_context_length=77, text_embed_dim=768)


def one_d_piece(size, latents=256):
    return titok((size, size), latents, 4096, 12, two_stage=True, strict_length_assertion=False)


def flextok(wide, deep):
    # the learned positions of patches and registers follow sines in ours and in the authors' code alike
    return Case(transformers.flextok((64 * wide, 64 * deep), (wide, deep)), training=("vae.",))


def based(shapes, published):
    """KARL and ALIT with their frozen base in the file, which the published number leaves out."""
    base = layouts.under("base_tokenizer.vqgan.", transformers.mage())
    return Case(shapes | base, published={"(?!base_tokenizer).*": published})


def tokenflow(semantic, *sizes):
    joined = (".q_bias", ".v_bias", ".k_proj.", ".v_proj.", "embedding_vqgan")
    return Case(transformers.tokenflow(layouts.under("encoder_vqkd.", semantic), *sizes), joined=joined)


def built(model, **settings):
    """(keys and shapes, settings) of a class of transformers, whose defaults are those of the released model."""
    import transformers as library

    config = getattr(library, f"{model}Config")(**settings)
    with torch.device("meta"):
        state = getattr(library, f"{model}Model")(config).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}, config.to_dict()


def hosted(model, published=None, joined=(), training=(), **settings):
    """A file that a class of transformers reads."""
    shapes, config = built(model, **settings)
    return Case(shapes, config | {"sampling_rate": config["sampling_rate"]}, None, published, joined, training)


def mimi():
    """The published file has no names for the halves, which newer versions of transformers put in front."""
    case = hosted("Mimi", 79.3, (".q_proj.", ".k_proj.", ".v_proj."), ("transform.",))
    named = r"(?:encoder|decoder)\.(?=(?:encoder|decoder)_transformer|downsample|upsample)|(?<=coder\.)\w+_seanet\."
    return replace(case, shapes={re.sub(named, "", key): shape for key, shape in case.shapes.items()})


def siglip():
    """The vision tower of SigLIP-so400m."""
    shapes, _ = built(
        "SiglipVision", hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
        image_size=384, patch_size=14,
    )
    return {f"vision_model.{key.removeprefix('vision_model.')}": shape for key, shape in shapes.items()}


def snac(rate, wide, strides, decoder_wide, decoder_strides, grids, published, window=None):
    settings = {
        "sampling_rate": rate, "encoder_dim": wide, "encoder_rates": strides, "decoder_dim": decoder_wide,
        "decoder_rates": decoder_strides, "attn_window_size": window, "codebook_size": 4096, "codebook_dim": 8,
        "vq_strides": grids, "noise": True, "depthwise": True,
    }
    shapes = audio.snac(wide, strides, decoder_wide, decoder_strides, len(grids), window=bool(window))
    return Case(shapes, settings, published=published)


def wavtokenizer(ratios, n_fft, published=None):  # with the decoder that is saved and never used
    net = audio.SEANet(ratios, dim=512)
    return Case(audio.wavtokenizer(net, 4096, (768, 2304, 12, n_fft)), {}, published=published)


def cosmos(published, **sizes):
    return Case(video.cosmos(**sizes) | video.traced(), published=published)


def vidtok(levels, mult=(1, 2, 4, 4), down=None, up=None, published=None, version=""):
    """down, up: levels where time changes, where they are not the usual ones."""
    usual = [len(mult) - 2, len(mult) - 3], [1, 2]
    sizes = {"ch": 128, "ch_mult": list(mult), "num_res_blocks": 2, "z_channels": len(levels)}
    sizes |= ({} if down is None else {"tempo_ds": down}) | ({} if up is None else {"tempo_us": up})
    target = f"vidtok.modules.model_3dcausal{version}.EncoderCausal3DPadding"
    settings = {"model": {"params": {
        "encoder_config": {"target": target, "params": sizes},
        "regularizer_config": {"params": {"levels": levels}},
    }}}  # fmt: skip
    shapes = video.vidtok(128, mult, 2, len(levels), down or usual[0], up or usual[1])
    return Case(shapes, settings, published=published)


def vocos_encodec():
    """The values of EnCodec's codebooks are compared with the decoder's table of them."""
    root, net = "feature_extractor.", audio.SEANet(RATIOS)
    shapes = audio.vocos_encodec(net, 32, 16, 1024, (384, 1152, 8, 1280), 4)
    values = {key: torch.zeros(shape) for key, shape in shapes.items() if key.endswith("._codebook.embed")}
    values[f"{root}codebook_weights"] = torch.zeros(shapes[f"{root}codebook_weights"])
    # the authors' 7.9 M is the decoder alone
    return Case(shapes, {}, published={"(?:backbone|head).*": Cut(7.9)}, values=values)


def averaged(shapes):
    """A Lightning file with moving averages under names without dots."""
    return shapes | {f"model_ema.{key.replace('.', '')}": shape for key, shape in shapes.items()} | {
        "model_ema.decay": (), "model_ema.num_updates": ()
    }


def scaled(count=10, gain=0.7):
    """The powers of the binary quantizer's gain, whose values tell it."""
    return {f"quantizes.{b}.scaler": gain ** torch.arange(count) for b in (0, 1)}


LARP_JOINED = (".attn.key.", ".attn.value.", ".attn.query.")
EVA = (".q_bias", ".v_bias")
IMAGES = {
    "vqgan-f16-1024": taming(1024, None), "vqgan-f16-16384": taming(16384, None),
    "maskgit-vqgan": Case(maskgit(128, MULT, 2, 256, 1024)),
    "llamagen-vq16": llamagen(MULT, 344, 71.88), "llamagen-vq16-t2i": llamagen(MULT, 344, 71.88),
    "llamagen-vq8": llamagen((1, 2, 2, 4), None, 70.11),
    "fqgan-dual-ds16": Case(
        transformers.fqgan(), published={".*": 150.4, "encoder.*": 68.6, "decoder.*": 42.45, "feat_pred_head.*": 39.1}
    ),
    "fqgan-dual-ds8": Case(transformers.fqgan(mult=(1, 2, 2, 4), grid=32)),
    "fqgan-triple-ds16": Case(
        transformers.fqgan(head=({"sem_mid": 384, "sem_high": 768}, 3), branches=("vis", "sem_mid", "sem_high")),
        published=159.3,
    ),
    "fqgan-triple-ds8": Case(
        transformers.fqgan(
            mult=(1, 2, 2, 4), grid=32, head=({"sem_mid": 384, "sem_high": 768}, 3),
            branches=("vis", "sem_mid", "sem_high"),
        )
    ),
    "open-magvit2-256": Case(
        magvit2(128, MULT, 4, 18), published={".*": 115.1, "encoder.*": 49.75, "decoder.*": 65.38}
    ),
    "open-magvit2-128": Case(magvit2(128, (1, 2, 2, 4), 4, 18)),
    "open-magvit2-pretrain-2e18": Case(magvit2(128, MULT, 4, 18), published=115.1),
    "open-magvit2-pretrain-2e14": Case(magvit2(128, MULT, 4, 14)),
    "ibq-1024": ibq(1024), "ibq-8192": ibq(8192), "ibq-16384": ibq(16384), "ibq-262144": ibq(262144),
    "var-vqvae": Case(
        vqgan(160, MULT, 2, 32, 32, 4096, fused=True, kernel=3) | {"quantize.ema_vocab_hit_SV": (10, 4096)}
        | layouts.under("quantize.", transformers.phi(32)), count=324, published=108.95,
    ),
    "bsq-vit-18": Case(transformers.bsq(), count=309, published=174.8),
    "bsq-vit-36": Case(transformers.bsq(36, groups=18)),
    "bae-16": Case(
        layouts.bae(128, MULT, 2, 256, 16), published={".*": 65.53, "ae.encoder.*": 30.35, r"ae.generator.*": 35.17}
    ),
    "titok-l32": titok(
        ("large", "large"), 32, 4096, 12, 692,
        {".*": 641.1, "encoder.*": 303.4, "decoder.*": 306.8, "pixel_.*": 30.7}, True,
    ),
    "titok-b64": titok(("base", "base"), 64, 4096, 12, 404, 204.8, True),
    "titok-s128": titok(("small", "small"), 128, 4096, 12, 308, 83.7, True),
    "titok-bl64-vq8k": titok(("base", "large"), 64, 8192, 64),
    "titok-bl128-vq8k": titok(("base", "large"), 128, 8192, 64, 459, 390.2),
    "titok-sl256-vq8k": titok(("small", "large"), 256, 8192, 64, 411, 330.3),
    "tatitok-bl32-vq": tatitok(32), "tatitok-bl64-vq": tatitok(64), "tatitok-bl128-vq": tatitok(128),
    "one-d-piece-s256": one_d_piece("small"), "one-d-piece-b256": one_d_piece("base"),
    "one-d-piece-l256": one_d_piece("large"),
    "flextok-d12-d12": flextok(12, 12), "flextok-d18-d18": flextok(18, 18), "flextok-d18-d28": flextok(18, 28),
    "flextok-d18-d28-dfn": flextok(18, 28),
    "karl-small": based(transformers.karl(), 216.4), "alit-small": based(transformers.alit(), 207.5),
    "mage-vqgan": Case(transformers.mage()),
    "robusttok": Case(transformers.imagefolder(transformers.table(64, 4096), 64)),
    "xqgan-4096": Case(transformers.imagefolder(transformers.table(64, 4096), 64)),
    "xqgan-8192": Case(transformers.imagefolder(transformers.table(64, 8192), 64)),
    "tokenflow-siglip": tokenflow(siglip(), 1152, 1152, 1152, 27),
    "tokenflow-clipb": tokenflow(transformers.clip(), 768, 512, 768, 14),
    "seed-2": Case(transformers.seed(), joined=EVA),
    # what leads from features to a diffusion model's prompts is trained with that model; our codebook is a running mean
    "lavit-2": Case(
        transformers.lavit(), joined=EVA, published={"tokenizer_encoder.*": 409.8, "highres_tokenizer_decoder.*": 414},
        apart=("decoder.to_prompt.", "decoder.pool.", "quantizer.quantizer.codebook"),
    ),
    "lavit-2-sd15": Case(
        transformers.lavit((12, 768), high=False), joined=EVA,
        published={"tokenizer_encoder.*": 409.8, "tokenizer_decoder.*": 404},
        apart=("decoder.to_prompt.", "quantizer.quantizer.codebook"),
    ),
}  # fmt: skip
LARP = {"input_size": 128, "frame_num": 16}
VIDEOS = {
    "cosmos-dv4x8x8": cosmos(112.5), "cosmos-dv8x8x8": cosmos(112.5), "cosmos-dv8x16x16": cosmos(112.5),
    "cosmos-1-dv8x16x16": cosmos(112.5), "cosmos-1-dv4x8x8-360p": cosmos(114.2, z=256, patch=2),
    "larp-l-long": Case(video.larp(), LARP, 479, {".*": 193.9, "prior_model.*": 21.7}, LARP_JOINED),
    "adaptok": Case(
        video.larp(latents=2048) | video.scorer(), LARP, published={"(?!scorer).*": 195.06}, joined=LARP_JOINED
    ),
    "vidtok-fsq-488-32768": vidtok([8] * 5, published={"encoder.*": 69.2, "decoder.*": 88.2}),
    "vidtok-fsq-488-262144": vidtok([8] * 6), "vidtok-fsq-488-4096": vidtok([8] * 4),
    "vidtok-fsq-41616-262144": vidtok([8] * 6, (1, 2, 4, 4, 4)),
    "vidtok-fsq-488-32768-v1-1": vidtok([8] * 5, version="_v1_1"),
    "vidtok-fsq-888-32768-v1-1": vidtok([8] * 5, down=[0, 1, 2], up=[1, 2, 3], version="_v1_1"),
    "vidtok-fsq-41616-262144-v1-1": vidtok([8] * 6, (1, 2, 4, 4, 4), version="_v1_1"),
    "cogvideox-vae": Case(video.cogvideox(), {
        "block_out_channels": [128, 256, 256, 512], "layers_per_block": 3, "latent_channels": 16, "norm_num_groups": 32,
        "temporal_compression_ratio": 4,
    }, 436, 215.6),
    "open-magvit2-video": Case(averaged(video.magvit2()), joined=("model_ema.",), legacy=("clip_norm",)),
    "omnitokenizer-ucf": Case(video.vivit(), {}, published={"encoder.*": 26.84, "decoder.*": 26.86}),
    "omnitokenizer-k600": Case(video.vivit(), {}, published={"encoder.*": 26.84, "decoder.*": 26.86}),
    "elastictok-fsq": Case(video.elastictok(), {}, joined=("/scan_decoder/",)),  # layers are taken apart
}  # fmt: skip
ENCODEC_48K = {
    "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01, "norm_type": "time_group_norm",
    "use_causal_conv": False, "target_bandwidths": [3.0, 6.0, 12.0, 24.0], "sampling_rate": 48000,
}  # fmt: skip
RATIOS = (8, 5, 4, 2)
WAVTOKENIZER = {".*": 80.6, "feature_extractor.*": 17.61, "backbone.*": 61.96, "head.*": 0.99}
STEREO = audio.SEANet(RATIOS, channels=2, norm="group")
AUDIO = {
    "encodec-24khz": hosted("Encodec", 14.85), "encodec-48khz": hosted("Encodec", **ENCODEC_48K),
    "encodec-24khz-original": Case(audio.encodec(audio.SEANet(RATIOS), 32), {}, published=14.85),
    "encodec-48khz-original": Case(audio.encodec(STEREO, 16), {}),
    # DAC's authors give no counts: these are of arXiv 2506.10274, table of the compared codecs
    "dac-44khz": Case(audio.dac(), {}, published=76.7),
    "dac-24khz": Case(audio.dac(strides=(2, 4, 5, 8), count=32), {}, published=74.7),
    "dac-16khz": Case(audio.dac(strides=(2, 4, 5, 8), count=12), {}, published=Cut(74.1)),
    "dac-44khz-16kbps": Case(audio.dac(latent=128, count=18), {}),
    "snac-24khz": snac(24000, 48, [2, 4, 8, 8], 1024, [8, 8, 4, 2], [4, 2, 1], 19.8),
    "snac-32khz": snac(32000, 64, [2, 3, 8, 8], 1536, [8, 8, 3, 2], [8, 4, 2, 1], 54.5, 32),
    "snac-44khz": snac(44100, 64, [2, 3, 8, 8], 1536, [8, 8, 3, 2], [8, 4, 2, 1], 54.5, 32),
    "mimi": mimi(),
    "mimi-moshi": Case(audio.mimi(), {}, published=79.3, training=("transform.",)),
    "speechtokenizer": Case(
        audio.speechtokenizer(audio.SEANet(RATIOS, 64, 1024, bidirectional=True)), {}, published=103.68
    ),
    "vocos-encodec-24khz": vocos_encodec(),
    "wavtokenizer-small-75": wavtokenizer(RATIOS, 1280, WAVTOKENIZER),
    "wavtokenizer-small-40": wavtokenizer((6, 5, 5, 4), 2400),
    "wavtokenizer-large-unify-40": wavtokenizer((6, 5, 5, 4), 2400),
    "wavtokenizer-large-speech-75": wavtokenizer(RATIOS, 1280, WAVTOKENIZER),
    "bigcodec": Case(audio.bigcodec(), {}, published=159),
    "xcodec-hubert-librispeech": Case(audio.xcodec(built("Hubert")[0]), {}, published=160.7),
    "xcodec2": hosted("Xcodec2", None, (".k_proj.", ".v_proj."), ("meaning.", "tell.")),
    "glm-4-voice-tokenizer": Case(audio.glm(), {}, published=343.6, training=("text.",)),
}  # fmt: skip
CASES = IMAGES | VIDEOS | AUDIO
