import pytest
import torch

from mmtok import hub
from mmtok.training.prepare import init_from
from mmtok.training.stage2 import main

VIT = {"dim": 6, "num_latents": 4, "image_size": 16, "patch": 4, "width": 16, "layers": 1, "heads": 2}
CNN = {"z_channels": 8, "channels": 8, "channel_mult": [1, 1, 1], "num_res_blocks": 1, "groups": 4}


def node(path, **arguments):
    return {"class_path": f"mmtok.{path}", "init_args": arguments}


def stage1(codes=32):
    return hub.build(node(
        "models.image.titok_proxy.ProxyTiTok",
        encoder=node("models.image.titok.TiTokEncoder", **VIT),
        quantizer=node("quantizers.vq.VQ", dim=6, codebook_size=16),
        decoder=node("models.image.titok.TiTokDecoder", **VIT, proxy_codes=codes),
    ))  # fmt: skip


def proxy(quant_conv=False):
    return hub.build(node(
        "models.image.conv.ConvTokenizer",
        encoder=node("nn.conv2d.ConvEncoder2d", **CNN),
        quantizer=node("quantizers.vq.VQ", dim=8, codebook_size=32),
        decoder=node("nn.conv2d.ConvDecoder2d", **CNN),
        size=[16, 16], quant_conv=quant_conv,
    ))  # fmt: skip


def test_joined_tokenizer_has_the_codes_of_stage_1_and_the_decoder_of_the_proxy(tmp_path):
    one, other = stage1().eval(), proxy().eval()
    hub.save(one, tmp_path / "one")
    hub.save(other, tmp_path / "proxy")
    main([str(tmp_path / name) for name in ("one", "proxy", "joined")])
    joined = hub.load(tmp_path / "joined")
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(joined.encode(x).codes, one.encode(x).codes)
    certain = torch.full((1, 32, 4, 4), -1e4)
    codes = torch.randint(32, (1, 1, 4, 4))
    certain.scatter_(1, codes, 1e4)
    torch.testing.assert_close(joined.pixels(certain), other.decoder(other.quantizer.decode((codes,))))
    # what the stage 2 recipe does with it
    fresh = hub.build(joined.config)
    init_from(fresh, str(tmp_path / "joined"), [])
    assert torch.equal(fresh.eval().decode(fresh.encode(x)), joined.decode(joined.encode(x)))


@pytest.mark.parametrize(
    "first,second,message",
    [
        ("proxy", "proxy", "first argument must be a saved stage 1"), ("one", "one", "second argument must be"),
        ("one", "projected", "quant_conv: false"), ("wide", "proxy", "codebook_size is 32, decoder.proxy_codes 40"),
        ("none", "proxy", "no tokenizer named"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, capsys, first, second, message):
    made = {"one": stage1(), "wide": stage1(40), "proxy": proxy(), "projected": proxy(quant_conv=True)}
    for name in {first, second} - {"none"}:
        hub.save(made[name], tmp_path / name)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / first), str(tmp_path / second), str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
