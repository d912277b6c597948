"""Audio discriminators: the published logits, feature maps, losses and gradients, and published sizes."""

import re

import pytest
import torch
from golden_losses import batch_of, folders, load_golden, near, recon_of

from mmtok.discriminators import (
    BandedSTFT,
    MultiMagnitude,
    MultiPeriod,
    MultiResolution,
    MultiScale,
    MultiScaleSTFT,
    Panel,
)
from mmtok.losses import Adversarial, FeatureMatching, GANLoss, Hinge, LeastSquares
from mmtok.nn.spectrum import Spectrum
from mmtok.nn.weight_norm import fold_weight_norm
from mmtok.training.steps import frozen


def fill(network, weights, places):
    """Loads published weights; `places` maps patterns of their keys to our modules. Folded, whatever they were."""
    norm = {key.removesuffix("_g") for key in weights if key.endswith("weight_g")}
    state = {key: value for key, value in weights.items() if not key.endswith(("_g", "_v"))}
    for key in norm:
        v = weights[f"{key}_v"]
        state[key] = torch._weight_norm(v, weights[f"{key}_g"], 0)
    filled = set()
    for key, value in state.items():
        for pattern, place in places.items():
            if match := re.fullmatch(pattern + r"\.(weight|bias)", key):
                module = network.get_submodule(match.expand(place))
                with torch.no_grad():
                    if match[match.lastindex] == "bias":
                        module.bias.copy_(value)
                    else:
                        module.weight = value if hasattr(module, "parametrizations") else torch.nn.Parameter(value)
                filled.add(key)
    ignored = {key for key in state if key.endswith((".window", ".emb.weight"))}
    assert set(state) == filled | ignored
    return network


def rows(maps):
    """(mean, mean absolute value, count) of every map."""
    return torch.tensor([[float(m.detach().mean()), float(m.detach().abs().mean()), m.numel()] for m in maps])


def same_logits(verdict, io, name):
    assert len(verdict.logits) == sum(key.startswith(f"{name}.") for key in io)
    for index, logits in enumerate(verdict.logits):
        torch.testing.assert_close(logits.flatten(1), io[f"{name}.{index}"].flatten(1), atol=1e-4, rtol=1e-4)


def same_maps(verdict, io, name):
    for index, maps in enumerate(verdict.maps):
        torch.testing.assert_close(rows(maps), io[f"{name}.{index}"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", folders("dac_discriminator"), ids=lambda f: f.parents[1].name)
def test_dac(folder):
    config, weights, io = load_golden(folder)
    sizes = {"level": True, "maps": "hidden"}
    periods = MultiPeriod(config["periods"], config["mpd"]["channels"], always_pad=True, **sizes)
    bands = [tuple(band) for band in config["mrd"]["bands"]]
    spectra = BandedSTFT(config["fft_sizes"], bands, config["mrd"]["channels"])
    network, first = Panel([periods, spectra]), len(config["periods"])
    places = {}
    for index in range(first):
        places[rf"discriminators\.{index}\.convs\.(\d+)\.0"] = rf"networks.0.stacks.{index}.layers.\1"
        places[rf"discriminators\.{index}\.conv_post"] = (
            f"networks.0.stacks.{index}.layers.{len(config['mpd']['channels'])}"
        )
    for index in range(len(config["fft_sizes"])):
        at = rf"discriminators\.{first + index}"
        places[at + r"\.band_convs\.(\d+)\.(\d+)\.0"] = rf"networks.1.bands.{index}.\1.\2"
        places[at + r"\.conv_post"] = f"networks.1.last.{index}"
    fill(network, weights, places)
    real, fake = network(io["real"]), network(io["fake"])
    same_logits(real, io, "logits_real")
    same_logits(fake, io, "logits_fake")
    same_maps(real, io, "maps_real")

    term = Adversarial(network, LeastSquares(), features=FeatureMatching("sum"), across="sum")
    leaf = io["fake"].clone().requires_grad_()
    terms = term(recon_of(leaf), batch_of(io["real"]), 0)
    disc = term.discriminator(recon_of(leaf), batch_of(io["real"]), 0)["disc"]
    for value, name in ((terms[""], "adversarial"), (terms["features"], "feature"), (disc, "discriminator")):
        torch.testing.assert_close(value.detach(), io[f"loss_{name}"].view(()), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(terms[""] + 2 * terms["features"], leaf)
    near(gradient, io["grad_fake"], 1e-4)


@pytest.mark.parametrize("folder", folders("encodec_discriminator"), ids=lambda f: f.parents[1].name)
def test_encodec(folder):
    config, weights, io = load_golden(folder)
    network = MultiScaleSTFT(
        config["channels"], config["filters"], config["n_ffts"], config["dilations"], config["leaky_slope"]
    )
    last = len(config["dilations"]) + 2
    fill(network, weights, {
        r"discriminators\.(\d+)\.convs\.(\d+)\.conv": r"stacks.\1.layers.\2",
        r"discriminators\.(\d+)\.conv_post\.conv": rf"stacks.\1.layers.{last}",
    })
    for name in ("real", "fake"):
        verdict = network(io[name])
        same_logits(verdict, io, f"logits_{name}")
        same_maps(verdict, io, f"maps_{name}")


@pytest.mark.parametrize("folder", folders("vocos_discriminator"), ids=lambda f: f.parents[1].name)
def test_vocos(folder):
    """The published projection of a condition row is a convolution's centre tap, so it is folded into the last one."""
    config, weights, io = load_golden(folder)
    row = config["condition_row"]
    for key in [key for key in weights if key.endswith("conv_post.weight_g")]:
        at = key.removesuffix("conv_post.weight_g")
        full = torch._weight_norm(weights[at + "conv_post.weight_v"], weights.pop(key), 0)
        weights.pop(at + "conv_post.weight_v")
        full[0, :, full.shape[2] // 2, full.shape[3] // 2] += weights[at + "emb.weight"][row]
        weights[at + "conv_post.weight"] = full
    mpd, mrd = config["mpd"], config["mrd"]
    periods = MultiPeriod(config["periods"], mpd["channels"], maps="vocos")
    bands = [tuple(band) for band in mrd["bands"]]
    spectra = BandedSTFT(config["fft_sizes"], bands, mrd["channels"], match_stride=False, maps="vocos")
    families = {"mpd": (periods, "multiperioddisc"), "mrd": (spectra, "multiresddisc")}
    fill(torch.nn.ModuleDict({name: network for name, (network, _) in families.items()}), weights, {
        r"multiperioddisc\.discriminators\.(\d+)\.convs\.(\d+)": r"mpd.stacks.\1.layers.\2",
        r"multiperioddisc\.discriminators\.(\d+)\.conv_post": rf"mpd.stacks.\1.layers.{len(mpd['channels'])}",
        r"multiresddisc\.discriminators\.(\d+)\.band_convs\.(\d+)\.(\d+)": r"mrd.bands.\1.\2.\3",
        r"multiresddisc\.discriminators\.(\d+)\.conv_post": r"mrd.last.\1",
    })
    real, leaf = io["real"][:, None], io["fake"][:, None].clone().requires_grad_()
    total = torch.zeros(())
    for name, (network, _) in families.items():
        same_logits(network(real), io, f"{name}.logits_real")
        same_logits(network(leaf), io, f"{name}.logits_fake")
        same_maps(network(real), io, f"{name}.maps_real")
        term = Adversarial(network, Hinge(halves=1, bounded=True), features=FeatureMatching("per_discriminator"))
        terms = term(recon_of(leaf), batch_of(real), 0)
        disc = term.discriminator(recon_of(leaf), batch_of(real), 0)["disc"]
        for value, loss in ((terms[""], "adversarial"), (terms["features"], "feature"), (disc, "discriminator")):
            torch.testing.assert_close(value.detach(), io[f"{name}.loss_{loss}"].view(()), rtol=1e-5, atol=0)
        total = total + terms[""] + terms["features"]
    (gradient,) = torch.autograd.grad(total, leaf)
    near(gradient[:, 0], io["grad_fake"], 1e-4)


@pytest.mark.parametrize("folder", folders("spectral_losses"), ids=lambda f: f.parents[1].name)
def test_criteria_of_audiocraft(folder):
    _, _, io = load_golden(folder)
    real, fake = io["adv.logits_real"], io["adv.logits_fake"]
    criteria: dict[str, GANLoss] = {
        "hinge": Hinge(halves=1), "hinge2": Hinge(halves=1, bounded=True), "mse": LeastSquares(),
    }
    for name, loss in criteria.items():
        both = io[f"adv.{name}.real"] + io[f"adv.{name}.fake"]
        torch.testing.assert_close(loss.discriminator(real, fake), both.view(()))
        torch.testing.assert_close(loss.generator(fake), io[f"adv.{name}.generator"].view(()))
    maps = [[[io[f"adv.map_{side}.{n}"] for n in range(3)]] for side in ("real", "fake")]
    torch.testing.assert_close(FeatureMatching("mean")(*maps), io["adv.feature_l1"].view(()))
    torch.testing.assert_close(FeatureMatching("sum")(*maps), io["adv.feature_l1_unnormalized"].view(()))
    pairs = list(zip(*[m[0] for m in maps], strict=True))
    relative = sum((f - r).abs().mean() / r.abs().mean() for r, f in pairs) / len(pairs)
    torch.testing.assert_close(FeatureMatching("relative")(*maps), relative)


def plain(network):
    """Parameters, with weight normalization folded."""
    fold_weight_norm(network)
    return sum(p.numel() for p in network.parameters())


def convs(*sizes):
    """Parameters of convolutions (inputs, outputs, taps)."""
    return sum(inputs * outputs * taps + outputs for inputs, outputs, taps in sizes)


def test_published_sizes():
    assert plain(MultiPeriod()) == 41_092_165  # HiFi-GAN, Vocos, DAC, SpeechTokenizer: counted on their code
    assert plain(MultiScale()) == 29_610_627  # HiFi-GAN, SpeechTokenizer
    assert plain(MultiScaleSTFT()) == 471_685  # audiocraft, SpeechTokenizer
    assert plain(MultiScaleSTFT(n_ffts=[1024, 2048, 512])) == 283_011  # the encodec package
    assert plain(MultiScaleSTFT(2, n_ffts=[1024, 2048, 512])) == 288_195
    assert plain(BandedSTFT()) == 1_411_587  # DAC, Vocos
    bigcodec = convs((1, 16, 5), (16, 64, 5), (64, 256, 5), (256, 512, 5), (512, 512, 5), (512, 1, 2))
    assert plain(MultiPeriod(widths=[16, 64, 256, 512, 512], last=2)) == 5 * bigcodec
    magnitude = convs((1, 32, 25), (32, 64, 25), (64, 128, 25), (128, 256, 25), (256, 512, 9), (512, 1, 9))
    assert plain(MultiMagnitude()) == 5 * magnitude  # BigCodec
    univnet = convs((1, 64, 35), (64, 64, 15), (64, 64, 15), (64, 64, 9), (64, 64, 9), (64, 1, 9))
    assert plain(MultiResolution()) == 3 * univnet


SMALL = {
    "periods": lambda: MultiPeriod([2, 3], [4, 8]),
    "periods always padded": lambda: MultiPeriod([2, 3], [4, 8], level=True, always_pad=True),
    "scales": lambda: MultiScale(2, [4, 4, 4, 8, 8, 8, 8]),
    "stft": lambda: MultiScaleSTFT(1, 4, [64, 128]),
    "banded": lambda: BandedSTFT([64, 128], width=4),
    "magnitude": lambda: MultiMagnitude([64, 128], width=4),
    "resolutions": lambda: MultiResolution([(64, 16), (128, 32)], 4),
    "logarithms": lambda: MultiResolution([(64, 16), (128, 32)], 4, log=True),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_network_serves_the_adversarial_term(name):
    """Logits and maps of any length, gradients to the sound and to the weights, padding is heard as silence."""
    torch.manual_seed(0)
    network = SMALL[name]()
    term = Adversarial(network, LeastSquares(), features=FeatureMatching("relative"), across="sum")
    assert term.parts == ("", "features") and term.discriminator_parts == ("disc",)
    x, y = torch.randn(2, 2, 1, 1201) * 0.1
    y.requires_grad_()
    with frozen([network]):
        terms = term(recon_of(y), batch_of(x), 0)
        (terms[""] + terms["features"]).backward()
    assert y.grad.abs().sum() > 0 and all(p.grad is None for p in network.parameters())
    term.discriminator(recon_of(y), batch_of(x), 0)["disc"].backward()
    assert all(p.grad is not None for p in network.parameters())
    assert len(network(x).logits) == len(network(x).maps) == 2

    network.eval()  # spectral normalization moves its estimate while training
    padded = [t.detach().clone() for t in (x, y)]
    padded[0][1, :, 900:], padded[1][1, :, 900:] = 0, 3.0
    loud = term(recon_of(padded[1]), batch_of(padded[0], [1201, 900]), 0)
    padded[1][1, :, 900:] = 0
    silent = term(recon_of(padded[1]), batch_of(padded[0], [1201, 900]), 0)
    torch.testing.assert_close(loud, silent)


def test_logarithms_let_soft_noise_be_heard():
    """A tone with noise 50 dB below: first maps differ far more than from plain magnitudes; silence is finite."""
    torch.manual_seed(0)
    tone = (0.3 * torch.arange(4000)).sin()[None, None]
    noisy = tone + 0.003 * torch.randn(1, 1, 4000)

    def change(log: bool) -> float:
        torch.manual_seed(1)
        network = MultiResolution([(256, 64)], 8, log=log)
        a, b = (network(x).maps[0][0] for x in (tone, noisy))
        return float((a - b).norm() / a.norm())

    assert change(True) > 5 * change(False)
    silent = torch.zeros(1, 1, 4000, requires_grad=True)
    sum(logits.sum() for logits in MultiResolution([(256, 64)], 8, log=True)(silent).logits).backward()
    assert silent.grad.isfinite().all()


def test_magnitudes_equal_a_plain_transform():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 800)
    ours = Spectrum(64, 16, window="ones")(x)[:, 0]
    torch.testing.assert_close(ours, torch.stft(x[:, 0], 64, 16, window=torch.ones(64), return_complex=True))


def test_stereo_channels_are_judged_alone_or_together():
    x = torch.randn(3, 2, 1000)
    apart = MultiPeriod([2], [4, 8])
    torch.testing.assert_close(apart(x).logits[0][1:2], apart(x[:1, 1:]).logits[0])
    assert MultiScaleSTFT(2, 4, [64])(x).logits[0].shape[:2] == (3, 1)


def test_mistakes_are_named():
    term = Adversarial(torch.nn.Conv1d(1, 1, 3), features=FeatureMatching())
    with pytest.raises(ValueError, match="Adversarial.features: this discriminator gives no feature maps"):
        term(recon_of(torch.zeros(1, 1, 9)), batch_of(torch.zeros(1, 1, 9)), 0)
    with pytest.raises(ValueError, match="features cannot be combined with Adversarial.adaptive"):
        Adversarial(torch.nn.Conv1d(1, 1, 3), features=FeatureMatching(), adaptive="a")
    with pytest.raises(ValueError, match="MultiScale.widths: 7 numbers, got 1"):
        MultiScale(1, [4])
