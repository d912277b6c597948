"""Full-size recipes on the meta device: the published numbers of parameters, and the published files' shapes."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from mmtok.hub import build
from mmtok.importers import maskgit_vqgan, titok
from mmtok.nn.conv2d import ResBlock2d
from mmtok.training.config_file import read_config_file

CONFIGS = Path(__file__).parents[3] / "configs" / "image"

# millions, as published or counted on the reference code
PUBLISHED = {
    "titok_l32_stage2": 641.1, "titok_b64_stage2": 204.8, "titok_s128_stage2": 83.7, "titok_bl128_vq8k": 390.2,
    "titok_sl256_vq8k": 330.3, "llamagen_vq16": 71.88, "llamagen_vq8": 70.11,
    "var_vqvae": 108.95, "bsq_vit_18": 174.8, "fqgan_dual_ds16": 150.4, "fqgan_triple_ds16": 159.3,
}  # fmt: skip
PARTS = {
    ("titok_l32_stage2", "pixels"): 30.7, ("vqgan_f16_1024", "encoder"): 29.3, ("vqgan_f16_1024", "decoder"): 42.45,
    ("vqgan_f16_16384", "encoder"): 29.3, ("ibq_16384", "encoder"): 46.75, ("ibq_262144", "decoder"): 59.90,
    ("open_magvit2", "encoder"): 49.75, ("open_magvit2", "decoder"): 65.38,
}  # fmt: skip


def tokenizer(name):
    config = OmegaConf.create(read_config_file(CONFIGS / f"{name}.yaml"))
    with torch.device("meta"):
        return build(OmegaConf.to_container(config.model.tokenizer, resolve=True))


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def agrees(value, published):
    """Equal after rounding to the published decimals."""
    decimals = len(str(published).split(".")[1])
    return round(value, decimals) == published


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_published_number(name):
    assert agrees(millions(tokenizer(name)), PUBLISHED[name])


@pytest.mark.parametrize("name,part", PARTS)
def test_parts_equal_the_published_number(name, part):
    assert agrees(millions(getattr(tokenizer(name), part)), PARTS[name, part])


def test_karl_is_the_published_network_and_its_base_maskgit_vqgan():
    model = tokenizer("karl_small_stage1")
    assert agrees(millions(model) - millions(model.base), 216.4)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model.base, tokenizer("maskgit_vqgan_f16"))]
    assert shapes[0] == shapes[1]


def test_alit_is_the_published_network_on_the_base_of_karl():
    model = tokenizer("alit_small_stage1")
    assert agrees(millions(model) - millions(model.base), 207.5)
    assert (model.spec.tokens, model.spec.codebook_sizes) == (256, ((4096,),))


def test_lavit_is_the_published_network_with_and_without_what_the_language_model_needs():
    """Published: 409.8M without EVA, decoder 404M with its projection to Stable Diffusion's 768 channels."""
    model = tokenizer("lavit")
    codebook, language, prompt = 16384 * 32 / 1e6, 1409 * 4096 / 1e6, 1409 * 768 / 1e6
    assert agrees(millions(model.encoder) - millions(model.encoder.trunk) + codebook + language, 409.8)
    assert round(millions(model.decoder) + prompt) == 404


def test_imagefolder_tokenflow_and_seed_hold_the_published_trunks_and_codes():
    """DINOv2 and CLIP ViT-B have 86M parameters, EVA-CLIP-g 1.0G; code counts of the papers' scale lists."""
    expected = {
        "imagefolder_msvr10p2_4096": ("encoder.trunk", 86, 2 * 286), "robusttok_4096": ("encoder.trunk", 86, 256),
        "tokenflow_clipb": ("semantic.trunk", 86, 561), "seed": ("encoder.trunk", 986, 32),
        "lavit": ("encoder.trunk", 1011, 256),
    }  # fmt: skip
    for name, (part, size, count) in expected.items():
        model = tokenizer(name)
        assert (name, round(millions(model.get_submodule(part))), model.spec.tokens) == (name, size, count)


def test_flextok_has_the_trunks_that_were_counted_on_the_reference():
    """Within 0.1 %: which small parts a released model adds to its transformers is not known."""

    def size(module):  # the fixed positions are parameters there
        return pytest.approx(millions(module) + module.positions.numel() / 1e6, rel=1e-3)

    counted = {
        "flextok_d12_d12": (85.4, 172.5), "flextok_d18_d18": (287.3, 578.6), "flextok_d18_d28": (287.3, 2169.7),
    }  # fmt: skip
    for name, (encoder, decoder) in counted.items():
        model = tokenizer(name)
        assert (encoder, decoder) == (size(model.encoder), size(model.decoder)), name
        assert (model.spec.tokens, model.spec.codebook_sizes) == (256, ((64000,),))


def test_bae_is_the_published_network_without_what_it_never_uses():
    """Published: encoder 30.35M, generator 35.17M, with 1x1 convolutions in every block and an idle head."""
    model = tokenizer("bae_16")
    idle = {}
    for name in ("encoder", "decoder"):
        blocks = [m for m in getattr(model, name).modules() if isinstance(m, ResBlock2d) and m.shortcut is None]
        idle[name] = sum(block.conv2.out_channels * (block.conv2.out_channels + 1) for block in blocks) / 1e6
    head = (128 * 128 * 9 + 128 + 3 * 128 + 3) / 1e6
    assert agrees(millions(model.encoder) + idle["encoder"], 30.35)
    assert agrees(millions(model.decoder) + idle["decoder"] + head, 35.17)


def test_codebooks_and_token_counts_are_the_published_ones():
    expected = {
        "vqgan_f16_1024": (256, 1024), "vqgan_f16_16384": (256, 16384), "llamagen_vq16": (256, 16384),
        "llamagen_vq8": (1024, 16384), "maskgit_vqgan_f16": (256, 1024), "titok_l32_stage1": (32, 4096),
        "titok_b64_stage1": (64, 4096), "titok_s128_stage1": (128, 4096), "titok_bl64_vq8k": (64, 8192),
        "one_d_piece_s256_stage2": (256, 4096), "one_d_piece_l256_stage1": (256, 4096), "taildrop_sb256": (256, 8192),
        "ibq_1024": (256, 1024), "ibq_8192": (256, 8192), "ibq_16384": (256, 16384), "ibq_262144": (256, 262144),
        "open_magvit2": (256, 2**18), "bsq_vit_18": (1024, 2**18), "bae_16": (256, 2**16),
        "tatitok_bl32_vq": (32, 8192), "tatitok_bl64_vq": (64, 8192), "tatitok_bl128_vq": (128, 8192),
    }  # fmt: skip
    for name, (count, codes) in expected.items():
        spec = tokenizer(name).spec
        assert (name, spec.tokens, spec.codebook_sizes) == (name, count, ((codes,),))
    var = tokenizer("var_vqvae").spec
    assert (var.tokens, var.codebook_sizes) == (680, ((4096,),) * 10)


@pytest.mark.parametrize(
    "name,model",
    [
        ("titok_l32_stage2", {"vit_enc_model_size": "large", "vit_dec_model_size": "large", "num_latent_tokens": 32}),
        ("titok_s128_stage1", {
            "vit_enc_model_size": "small", "vit_dec_model_size": "small", "num_latent_tokens": 128,
            "finetune_decoder": False,
        }),
        ("titok_sl256_vq8k", {
            "vit_enc_model_size": "small", "vit_dec_model_size": "large", "num_latent_tokens": 256,
            "finetune_decoder": False, "is_legacy": False, "codebook_size": 8192, "token_size": 64,
            "use_l2_norm": False,
        }),
        ("one_d_piece_b256_stage2", {
            "vit_enc_model_size": "base", "vit_dec_model_size": "base", "num_latent_tokens": 256,
            "strict_length_assertion": False,
        }),
    ],
)  # fmt: skip
def test_recipe_and_importer_describe_the_same_model(name, model):
    """What a recipe trains has the shapes, flags and tail of what the importer makes of the published config.json."""
    defaults = {
        "codebook_size": 4096, "token_size": 12, "use_l2_norm": True, "vit_enc_patch_size": 16, "vit_dec_patch_size": 16
    }
    published = {"model": {"vq_model": defaults | model}, "dataset": {"preprocessing": {"crop_size": 256}}}
    ours = tokenizer(name)
    codebook = torch.empty(ours.quantizer.codebook_sizes[0][0], ours.quantizer.dim)
    config = titok.convert({"quantize.embedding.weight": codebook}, titok.facts(published, {})).config
    with torch.device("meta"):
        imported = build(config)
    shapes = [{key: value.shape for key, value in t.state_dict().items()} for t in (ours, imported)]
    assert shapes[0] == shapes[1]
    assert ours.encoder.legacy_readout == imported.encoder.legacy_readout
    assert ours.unit_range == imported.unit_range
    assert ours.quantizer.l2_norm == imported.quantizer.l2_norm
    assert (ours.tail is None) == (imported.tail is None)


def test_the_pixel_decoder_of_titok_is_the_decoder_of_maskgit_vqgan():
    shapes = [
        {key: value.shape for key, value in module.state_dict().items()}
        for module in (tokenizer("titok_l32_stage2").pixels.decoder, tokenizer("maskgit_vqgan_f16").decoder)
    ]
    assert shapes[0] == shapes[1]
    with torch.device("meta"):
        facts = maskgit_vqgan.facts({}, published_names(tokenizer("maskgit_vqgan_f16")))
    assert facts == titok.PIXEL_DECODER | {"codebook_size": 1024, "image_size": 256}


def published_names(tok):
    """The few published keys that sizes are read from."""
    state = {"encoder.conv_in.weight": tok.encoder.conv_in.weight, "quantize.embedding.weight": tok.quantizer.codebook}
    for i, level in enumerate(tok.encoder.levels):
        for j, block in enumerate(level.blocks):
            state[f"encoder.down.{i}.block.{j}.conv1.weight"] = block.conv1.weight
    return state
