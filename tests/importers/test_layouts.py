"""Every written-down layout names the keys and shapes of the reference's own weights, at the golden folders' sizes."""

import json

import layouts
import layouts_audio as audio
import layouts_transformers as transformers
import layouts_video as video
import pytest
import torch
from golden_sets import ROOTS
from safetensors import safe_open


def dd(config):
    return config["ddconfig"]


def taming(c):
    sizes = dd(c)
    return layouts.vqgan(
        sizes["ch"], sizes["ch_mult"], sizes["num_res_blocks"], sizes["z_channels"], c["embed_dim"], c["codebook_size"]
    )


def maskgit_sizes(c):
    return c["hidden_channels"], c["channel_mult"], c["num_res_blocks"], c["z_channels"]


def titok(c, **more):
    sides = (c["encoder"], c["decoder"])
    patch = c["encoder"]["patch"]
    return transformers.titok(
        [s["width"] for s in sides], [s["layers"] for s in sides], c["num_latent_tokens"], c["codebook_size"],
        c["token_size"], patch, c["image_size"] // patch, **more,
    )


def two_stage(c):
    return titok(c, proxy=(c["proxy_codebook_size"], maskgit_sizes(c["pixel_decoder"])))


def adaptive(c):
    return {
        "width": c["width"], "layers": c["layers"], "dim": c["token_size"], "codes": c["codebook_size"],
        "base": (c["base_codebook_size"], c["base_embed_dim"]), "patch": c["patch"],
    }


def flextok(c):
    return transformers.flextok(
        (c["width"],) * 2, (c["depth"],) * 2, len(c["fsq_levels"]), c["latent_channels"], c["patch"],
        c["latent_size"] // c["patch"], c["num_registers"], c["time_frequency_embedding_size"], c["mlp_ratio"],
        c["adaLN_expansion"],
    )


def llamagen(c, extra):
    return layouts.vqgan(
        c["ch"], c["ch_mult"], c["num_res_blocks"], c["z_channels"], c["codebook_embed_dim"], c["codebook_size"],
        layouts.LLAMAGEN,
    ) | extra


def fqgan(c):
    adapter, head = ((c[part]["width"], c[part]["layers"]) for part in ("adapter", "feature_head"))
    return transformers.fqgan(
        c["ch"], c["ch_mult"], c["num_res_blocks"], c["z_channels"], c["codebook_embed_dim"], c["codebook_size"],
        adapter, head, c["adapter"]["grid"], 1024,
    )


def lavit(c):
    return transformers.lavit_parts(
        c["width"], c["layers"], int(c["width"] * c["mlp_ratio"]), c["codebook_size"], c["code_dim"],
        c["num_patches"], c["llm_embed_dim"], c["prompt_dims"], (c["lowres_decoder_layers"], c["lowres_prompt_dim"]),
    )


def two_branches(c):
    found = layouts.conv("quant_conv", c["code_dim"], c["feature_channels"], 1)
    found |= layouts.conv("post_quant_conv", c["feature_channels"], c["branches"] * c["code_dim"], 1)
    one = transformers.scales(c["code_dim"], c["codebook_size"], len(c["patch_nums"]), c["share_quant_resi"])
    for b in range(c["branches"]):
        found |= layouts.under(f"quantizes.{b}.", one)
    return found


LAYOUTS = {
    "taming_vqgan": taming, "ibq": taming,
    "llamagen_vq": lambda c: llamagen(c, {"quantize.codebook_used": (1024,)}),
    "var_vqvae": lambda c: layouts.vqgan(
        c["ch"], c["ch_mult"], c["num_res_blocks"], c["z_channels"], c["z_channels"], c["codebook_size"], fused=True,
        kernel=3, lowest=c["attention_at_lowest_level"],
    ) | {"quantize.ema_vocab_hit_SV": (len(c["patch_nums"]), c["codebook_size"])}
    | layouts.under("quantize.", transformers.phi(c["z_channels"], c["share_quant_resi"])),
    "maskgit_vqgan": lambda c: layouts.maskgit(*maskgit_sizes(c), c["codebook_size"]),
    "open_magvit2_lfq": lambda c: layouts.magvit2(
        dd(c)["ch"], dd(c)["ch_mult"], dd(c)["num_res_blocks"], dd(c)["z_channels"]
    ),
    "bae": lambda c: layouts.bae(c["nf"], c["ch_mult"], c["res_blocks"], c["emb_dim"], c["bits"]),
    "bsq_vit": lambda c: transformers.bsq(
        c["bits"], c["vit"]["width"], c["vit"]["layers"], c["vit"]["patch_size"],
        c["image_size"] // c["vit"]["patch_size"], c["decoder_vit"]["dim_ffn_output"], c["group_size"],
    ),
    "titok_single_stage": titok, "titok_two_stage": two_stage, "one_d_piece": two_stage,
    "tatitok_vq": lambda c: titok(
        c, text=(c["text_context_length"], c["text_embed_dim"]), clustered=c["clustering_vq"]
    ),
    "karl": lambda c: transformers.karl(
        **adaptive(c), grid=c["max_grid_tokens"], latents=c["max_latent_tokens"], hidden=c["halting_hidden"]
    ),
    "alit": lambda c: transformers.alit(
        **adaptive(c), grid=c["grid"][0], step=c["num_init_latent_tokens"], iterations=c["iterations"],
        latents=c["max_latent_tokens"],
    ),
    "flextok": flextok, "fqgan_dual": fqgan, "lavit": lavit,
    # parts of these: no reference output of the transformers around them was at hand
    "imagefolder_msrq": two_branches,
    "imagefolder_msbr": lambda c: transformers.signs(c["bits"], len(c["patch_nums"]), c["share_quant_resi"]),
    "imagefolder_vq_perturbation": lambda c: transformers.table(c["code_dim"], c["codebook_size"]),
    "tokenflow_quantizer": lambda c: transformers.tokenflow_quantizer(
        c["semantic_width"], c["pixel_z_channels"], (c["semantic_code_dim"], c["pixel_code_dim"]), c["codebook_size"]
    ),
    "seed_quantizer": lambda c: transformers.seed_quantizer(
        c["width"], c["num_queries"], c["codebook_size"], c["code_dim"], c["decoder_blocks"], c["image_down"],
        c["image_features_dim"],
    ),
}  # fmt: skip


def seanet(c, **more):
    ratios = c.get("ratios", c.get("strides"))
    return audio.SEANet(ratios, c["n_filters"], c["dimension"], lstm=c.get("lstm", c.get("lstm_layers")), **more)


def encodec(c):
    group = c["norm"] == "time_group_norm"
    net = seanet(c, channels=c["channels"], norm="group" if group else "old")
    return audio.encodec(net, c["n_q"], c["codebook_size"])


def speechtokenizer(c):
    net = seanet(c, snake=c["activation"] == "Snake", bidirectional=c["bidirectional"])
    return audio.speechtokenizer(net, c["n_q"], c["codebook_size"], c["semantic_dimension"])


def snac(c):
    return audio.snac(
        c["encoder_dim"], c["encoder_rates"], c["decoder_dim"], c["decoder_rates"], len(c["vq_strides"]),
        c["codebook_size"], c["codebook_dim"], bool(c["attn_window_size"]),
    )


def mimi(c):
    quantizer, transformer = c["quantizer"], c["transformer"]
    return audio.mimi(
        c["seanet"]["ratios"], c["seanet"]["n_filters"], c["seanet"]["dimension"], transformer["num_layers"],
        transformer["dim_feedforward"], quantizer["num_quantizers"], quantizer["codebook_size"], quantizer["dim"],
        c["resample"]["kernel"],
    )


def wavtokenizer(c):
    backbone = c["backbone"]
    sizes = (backbone["dim"], backbone["intermediate_dim"], backbone["num_layers"], c["head"]["n_fft"])
    unused = c["unused_decoder"]
    return audio.wavtokenizer(
        seanet(c["encoder"]), c["quantizer"]["codebook_size"], sizes, (unused["ratios"], unused["lstm"])
    )


def vocos(c):
    """Without EnCodec, which lies in a file of its own."""
    table = {"feature_extractor.codebook_weights": (c["num_codebooks"] * c["codebook_size"], c["dimension"])}
    return table | audio.vocos(
        c["dimension"], c["dim"], c["intermediate_dim"], c["num_layers"], c["n_fft"], c["adanorm_num_embeddings"]
    )


def hubert(c):
    """transformers' names for the speech model."""
    from transformers import HubertConfig, HubertModel

    names = ("kind", "layer", "input_pad_each_side")
    with torch.device("meta"):
        state = HubertModel(HubertConfig(**{k: v for k, v in c.items() if k not in names})).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def xcodec(c):
    sound = c["acoustic"]
    return audio.xcodec(
        hubert(c["semantic_model"]), sound["d_model"], c["ratios"], sound["latent"], sound["decoder_channels"],
        c["semantic_hidden_size"], c["codebook_dim"], c["num_quantizers"], c["codebook_size"],
    )


def xcodec2(c):
    return audio.xcodec2(
        c["ngf"], c["up_ratios"], c["hidden"], c["sem"], c["fsq_dim"], c["hidden"], c["depth"], len(c["levels"])
    )


LAYOUTS |= {
    "encodec": encodec, "encodec_48k": encodec, "speechtokenizer": speechtokenizer, "dm_codec": speechtokenizer,
    "speechtokenizer_snake": speechtokenizer, "snac": snac, "snac_attention": snac, "mimi_moshi": mimi,
    "dac": lambda c: audio.dac(
        c["encoder_dim"], c["encoder_rates"], c["latent_dim"], c["decoder_dim"], c["n_codebooks"], c["codebook_size"],
        c["codebook_dim"],
    ),
    "bigcodec": lambda c: audio.bigcodec(
        c["ngf"], c["up_ratios"], c["out_channels"], c["upsample_initial_channel"], c["codebook_size"],
        c["codebook_dim"], c["rnn_num_layers"],
    ),
    "wavtokenizer": wavtokenizer, "vocos_encodec": vocos, "xcodec_original": xcodec, "xcodec2_original": xcodec2,
    "glm_tokenizer": lambda c: audio.glm(
        c["d_model"], c["num_mel_bins"], c["quantize_position"], c["encoder_ffn_dim"], c["quantize_vocab_size"],
        c["max_source_positions"], c["pooling_kernel_size"],
    ),
}  # fmt: skip


def vidtok(c):
    sizes = c["encoder_decoder"]
    return video.vidtok(
        sizes["ch"], sizes["ch_mult"], sizes["num_res_blocks"], sizes["z_channels"], c["tempo_ds_levels"],
        c["tempo_us_levels"],
    )


def cosmos(c):
    sizes = c["constructor"]
    return video.cosmos(
        sizes["channels"], sizes["channels_mult"], sizes["num_res_blocks"], sizes["z_channels"], sizes["patch_size"],
        sizes["embedding_dim"],
    )


def omnitokenizer(c):
    return video.vivit(
        c["dim"], c["heads"], c["dim_head"], (c["temporal_patch_size"], c["patch_size"], c["patch_size"]),
        (c["enc_block"], c["dec_block"]), c["temporal_depth"], c["window_size"], c["ff_inner_dim"],
        (c["codebook_size"], c["codebook_dim"]),
    )


def phenaki(c):
    found = video.vivit(
        c["dim"], c["heads"], c["dim_head"], (c["temporal_patch_size"], *c["patch_size"]),
        ("t" * c["spatial_depth"],) * 2, c["temporal_depth"], hidden=c["ff_inner_dim"], omni=None,
        null=c["flags"]["null_kv"],
    )
    if not c["lookup_free"]:
        codes = (1, c["codebook_size"])
        found |= {f"vq._codebook.{name}": (*codes, c["dim"]) for name in ("embed", "embed_avg")}
        return found | {"vq._codebook.cluster_size": codes, "vq._codebook.initted": ()}
    bits = c["codebook_size"].bit_length() - 1
    found |= layouts.linear("vq.project_in", bits, c["dim"]) | layouts.linear("vq.project_out", c["dim"], bits)
    return found | {"vq.mask": (bits,)}


def larp(c):
    sizes, prior = c["constructor"], c["prior"]
    bottleneck = sizes["bottleneck"]["args"]
    patch = (sizes["temporal_patch_size"], *[sizes["patch_size"]] * 2)
    places = sizes["frame_num"] // patch[0] * (sizes["input_size"] // patch[1]) ** 2
    return video.larp(
        sizes["encoder_hidden_size"], (sizes["encoder_depth"], sizes["decoder_depth"]), sizes["bottleneck_token_num"],
        places, bottleneck["bottleneck_dim"], bottleneck["regularizer"]["args"]["codebook_size"], patch,
        (prior["n_embd"], prior["n_layer"]),
    )


def adaptok(c):
    sizes = c["constructor"]
    width = sizes["encoder_hidden_size"]
    return larp(c) | video.scorer(width, sizes["scorer_depth"], sizes["bottleneck_token_num"], 2 * width)


LAYOUTS |= {
    "vidtok_v1_0": vidtok, "vidtok_v1_1": vidtok, "cosmos_dv": cosmos, "cosmos_dv_4x8x8_p2": cosmos,
    "cosmos_dv_8x16x16": cosmos, "omnitokenizer_vq": omnitokenizer, "phenaki_cvivit_vq": phenaki,
    "phenaki_cvivit_lfq": phenaki, "larp": larp, "adaptok": adaptok,
    "cogvideox_vae": lambda c: video.cogvideox(
        *(c["constructor"][name] for name in ("block_out_channels", "layers_per_block", "latent_channels"))
    ),
    "open_magvit2_video": lambda c: video.magvit2(
        dd(c)["ch"], dd(c)["ch_mult"], dd(c)["num_res_blocks"], dd(c)["z_channels"]
    ),
    "elastictok_fsq": lambda c: video.elastictok(
        c["hidden_size"], c["intermediate_size"], (c["num_encoder_layers"], c["num_decoder_layers"]), c["patch_size"]
    ),
}  # fmt: skip
# of which a few keys stand in the golden files for all
TRAINING = ("model_ema.", "multiperioddisc.", "multiresddisc.", "dac.", "dacdiscriminator.", "melspec_loss.")
FOLDERS = [f for root in ROOTS for f in sorted(root.glob("*/*/")) if f.name in LAYOUTS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parents[1].name}-{f.name}")
def test_layouts_name_the_keys_of_the_reference(folder):
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "weights.safetensors", "pt") as file:
        theirs = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert LAYOUTS[folder.name](config) == {k: v for k, v in theirs.items() if not k.startswith(TRAINING)}
