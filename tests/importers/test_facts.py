"""What importers read off the weights alone is what the golden set's own config says."""

import json

import pytest
from golden_sets import FAMILY, folders, label
from safetensors.torch import load_file

READ = {  # the rest is fixed by the published files, whose sizes the golden sets do not have
    "var_vqvae": ("ch", "ch_mult", "num_res_blocks", "z_channels", "codebook_size", "share_quant_resi",
                  "quant_conv_kernel"),
    "bsq_vit": ("bits",),
    "bae": ("bits", "emb_dim"),
    "fqgan_dual": ("ch", "ch_mult", "num_res_blocks", "z_channels", "codebook_size", "codebook_embed_dim", "adapter",
                   "feature_head"),
    "karl": ("width", "layers", "patch", "base_codebook_size", "base_embed_dim", "max_grid_tokens", "max_latent_tokens",
             "codebook_size", "token_size", "halting_hidden"),
    "flextok": ("width", "depth", "num_registers", "patch", "latent_channels", "latent_size",
                "time_frequency_embedding_size"),
}  # fmt: skip


@pytest.mark.parametrize("folder", folders(*READ), ids=label)
def test_sizes_off_the_weights(folder):
    golden = json.loads((folder / "config.json").read_text())
    facts = FAMILY[folder.name].facts({}, load_file(folder / "weights.safetensors"))
    wanted = {name: golden[name] for name in READ[folder.name]}
    assert {name: facts[name] for name in wanted} == wanted
    if folder.name == "bsq_vit":
        for side in ("vit", "decoder_vit"):
            sizes = {k: v for k, v in golden[side].items() if k not in ("heads", "drop_rate")}
            assert {name: facts[side][name] for name in sizes} == sizes


@pytest.mark.parametrize("system", ["ibq", "open_magvit2_lfq"])
def test_a_missing_config_is_named(system):
    (folder,) = folders(system)[:1]
    state = load_file(folder / "weights.safetensors")
    with pytest.raises(ValueError, match="config.yaml"):
        FAMILY[system].facts({}, state)
    golden = json.loads((folder / "config.json").read_text())
    facts = FAMILY[system].facts({"model": {"init_args": {"ddconfig": golden["ddconfig"]}}}, state)
    assert facts["ddconfig"] == golden["ddconfig"]
