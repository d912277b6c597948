"""Keys and shapes of published audio codecs; see layouts.py."""

import math

from layouts import affine, linear, under


def conv1d(name, out, into, kernel, bias=True, norm="plain", transposed=False):
    """norm: "plain", "old" (weight_g, weight_v) or "new" (parametrizations), torch's two ways of weight norm."""
    shape = (into, out, kernel) if transposed else (out, into, kernel)
    found = {f"{name}.bias": (out,)} if bias else {}
    if norm == "plain":
        return found | {f"{name}.weight": shape}
    gain, direction = {
        "old": ("weight_g", "weight_v"),
        "new": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    }[norm]
    return found | {f"{name}.{gain}": (shape[0], 1, 1), f"{name}.{direction}": shape}


def lstm(name, width, layers, bidirectional=False):
    found = {}
    for i in range(layers):
        into = width * (2 if bidirectional and i else 1)
        for way in ("", "_reverse") if bidirectional else ("",):
            found |= {f"{name}.lstm.weight_ih_l{i}{way}": (4 * width, into)}
            found |= {f"{name}.lstm.weight_hh_l{i}{way}": (4 * width, width)}
            found |= {f"{name}.lstm.bias_{part}_l{i}{way}": (4 * width,) for part in ("ih", "hh")}
    return found


def codebooks(name, count, codes, dim):
    """EnCodec's running means."""
    found = {}
    for i in range(count):
        at = f"{name}.layers.{i}._codebook"
        found |= {f"{at}.embed": (codes, dim), f"{at}.embed_avg": (codes, dim), f"{at}.cluster_size": (codes,)}
        found |= {f"{at}.inited": (1,)}
    return found


class SEANet:
    """EnCodec's networks: one flat list of layers each. norm: "old", "group" or "plain"."""

    def __init__(
        self, ratios, width=32, dim=128, channels=1, kernel=7, last=7, lstm=2, norm="old", shortcut=True, snake=False,
        bidirectional=False,
    ):
        self.ratios, self.width, self.dim, self.channels = ratios, width, dim, channels
        self.kernel, self.last, self.layers, self.norm = kernel, last, lstm, norm
        self.shortcut, self.snake, self.bidirectional = shortcut, snake, bidirectional

    def conv(self, name, out, into, kernel, kind="conv"):
        norm = "old" if self.norm == "old" else "plain"
        found = conv1d(f"{name}.{kind}.{kind}", out, into, kernel, norm=norm, transposed=kind == "convtr")
        return found | (affine(f"{name}.{kind}.norm", out) if self.norm == "group" else {})

    def act(self, name, width):
        return {f"{name}.alpha": (1, width, 1)} if self.snake else {}

    def block(self, name, width):
        hidden = width // 2
        found = self.act(f"{name}.block.0", width) | self.conv(f"{name}.block.1", hidden, width, 3)
        found |= self.act(f"{name}.block.2", hidden) | self.conv(f"{name}.block.3", width, hidden, 1)
        return found | (self.conv(f"{name}.shortcut", width, width, 1) if self.shortcut else {})

    def encoder(self, name="encoder.model"):
        width, at = self.width, 1
        found = self.conv(f"{name}.0", width, self.channels, self.kernel)
        for ratio in reversed(self.ratios):
            found |= self.block(f"{name}.{at}", width) | self.act(f"{name}.{at + 1}", width)
            found |= self.conv(f"{name}.{at + 2}", 2 * width, width, 2 * ratio)
            width, at = 2 * width, at + 3
        both = 1
        if self.layers:
            found |= lstm(f"{name}.{at}", width, self.layers, self.bidirectional)
            both, at = 1 + self.bidirectional, at + 1
        found |= self.act(f"{name}.{at}", both * width)
        return found | self.conv(f"{name}.{at + 1}", self.dim, both * width, self.last)

    def decoder(self, name="decoder.model", ratios=None, layers=None):
        ratios, layers = ratios or self.ratios, self.layers if layers is None else layers
        width, at = self.width * 2 ** len(ratios), 1
        found = self.conv(f"{name}.0", width, self.dim, self.kernel)
        if layers:
            found, at = found | lstm(f"{name}.{at}", width, layers), at + 1
        for ratio in ratios:
            found |= self.act(f"{name}.{at}", width)
            found |= self.conv(f"{name}.{at + 1}", width // 2, width, 2 * ratio, "convtr")
            width //= 2
            found, at = found | self.block(f"{name}.{at + 2}", width), at + 3
        found |= self.act(f"{name}.{at}", width)
        return found | self.conv(f"{name}.{at + 1}", self.channels, width, self.last)


def encodec(net, count, codes=1024):
    return net.encoder() | net.decoder() | codebooks("quantizer.vq", count, codes, net.dim)


def speechtokenizer(net, count=8, codes=1024, semantic=768):
    found = encodec(net, count, codes)
    return found if semantic == net.dim else found | linear("transform", semantic, net.dim)


def mimi(
    ratios=(8, 6, 5, 4), width=64, dim=512, layers=8, hidden=2048, count=32, codes=2048, inner=256, kernel=4
):
    """moshi's names."""
    net = SEANet(ratios, width, dim, last=3, lstm=0, norm="plain", shortcut=False)
    found = net.encoder() | net.decoder() | {"downsample.conv.conv.conv.weight": (dim, dim, kernel)}
    found |= {"upsample.convtr.convtr.convtr.weight": (dim, 1, kernel)}
    for side in ("encoder", "decoder"):
        for i in range(layers):
            at = f"{side}_transformer.transformer.layers.{i}"
            found |= affine(f"{at}.norm1", dim) | affine(f"{at}.norm2", dim)
            found |= {f"{at}.layer_scale_{n}.scale": (dim,) for n in (1, 2)}
            found |= linear(f"{at}.linear1", hidden, dim, False) | linear(f"{at}.linear2", dim, hidden, False)
            found |= linear(f"{at}.self_attn.in_projs.0", 3 * dim, dim, False)
            found |= linear(f"{at}.self_attn.out_projs.0", dim, dim, False)
    for name, books in (("rvq_first", 1), ("rvq_rest", count - 1)):
        found |= {f"quantizer.{name}.input_proj.weight": (inner, dim, 1)}
        found |= {f"quantizer.{name}.output_proj.weight": (dim, inner, 1)}
        for i in range(books):
            at = f"quantizer.{name}.vq.layers.{i}._codebook"
            found |= {f"{at}.embedding_sum": (codes, inner), f"{at}.cluster_usage": (codes,)}
            found |= {f"{at}._initialized": (1,)}
    return found


def _snake(name, width):
    return {f"{name}.alpha": (1, width, 1)}


def _anti_aliased(name, width):
    """SnakeBeta between resampling filters (BigVGAN)."""
    found = {f"{name}.act.alpha": (width,), f"{name}.act.beta": (width,)}
    return found | {f"{name}.downsample.lowpass.filter": (1, 1, 12), f"{name}.upsample.filter": (1, 1, 12)}


def dac_networks(width, strides, latent, decoder_width, decoder_strides, norm="old", act=_snake, names=None, **more):
    """DAC's encoder and decoder and what grew from them.

    more: noise, depthwise, window (SNAC); recurrent (layers of BigCodec's LSTM), first and last layers by flags
    """
    noise, depthwise, window = (more.get(name, False) for name in ("noise", "depthwise", "window"))
    recurrent, units = more.get("recurrent", 0), more.get("units", 3)
    enc, dec = names or ("encoder.block", "decoder.model")

    def unit(name, wide):
        found = act(f"{name}.block.0", wide) | act(f"{name}.block.2", wide)
        found |= conv1d(f"{name}.block.1", wide, 1 if depthwise else wide, 7, norm=norm)
        return found | conv1d(f"{name}.block.3", wide, wide, 1, norm=norm)

    def attention(name, wide):
        found = affine(f"{name}.norm", wide) | linear(f"{name}.to_qkv", 3 * wide, wide, False)
        return found | linear(f"{name}.to_out", wide, wide, False) | {f"{name}.rel_pos.inv_freq": (32,)}

    found, wide, at = conv1d(f"{enc}.0", width, 1, 7, norm=norm), width, 1
    for stride in strides:
        for j in range(units):
            found |= unit(f"{enc}.{at}.block.{j}", wide)
        found |= act(f"{enc}.{at}.block.{units}", wide)
        found |= conv1d(f"{enc}.{at}.block.{units + 1}", 2 * wide, wide, 2 * stride, norm=norm)
        wide, at = 2 * wide, at + 1
    if recurrent:
        found, at = found | lstm(f"{enc}.{at}", wide, recurrent), at + 1
    if window:
        found, at = found | attention(f"{enc}.{at}", wide), at + 1
    if depthwise:
        found |= conv1d(f"{enc}.{at}", wide, 1, 7, norm=norm)
    else:
        found |= act(f"{enc}.{at}", wide) | conv1d(f"{enc}.{at + 1}", latent, wide, 3, norm=norm)

    wide, at = decoder_width, 1
    if depthwise:
        found |= conv1d(f"{dec}.0", latent, 1, 7, norm=norm) | conv1d(f"{dec}.1", wide, latent, 1, norm=norm)
        at = 2
    else:
        found |= conv1d(f"{dec}.0", wide, latent, 7, norm=norm)
    if recurrent:
        found, at = found | lstm(f"{dec}.{at}", wide, recurrent), at + 1
    if window:
        found, at = found | attention(f"{dec}.{at}", wide), at + 1
    for stride in decoder_strides:
        found |= act(f"{dec}.{at}.block.0", wide)
        found |= conv1d(f"{dec}.{at}.block.1", wide // 2, wide, 2 * stride, norm=norm, transposed=True)
        wide //= 2
        if noise:
            found |= conv1d(f"{dec}.{at}.block.2.linear", wide, wide, 1, False, norm)
        for j in range(units):
            found |= unit(f"{dec}.{at}.block.{2 + noise + j}", wide)
        at += 1
    return found | act(f"{dec}.{at}", wide) | conv1d(f"{dec}.{at + 1}", 1, wide, 7, norm=norm)


def factorised(count, codes, dim, latent, norm="old"):
    found = {}
    for i in range(count):
        at = f"quantizer.quantizers.{i}"
        found |= {f"{at}.codebook.weight": (codes, dim)} | conv1d(f"{at}.in_proj", dim, latent, 1, norm=norm)
        found |= conv1d(f"{at}.out_proj", latent, dim, 1, norm=norm)
    return found


def dac(width=64, strides=(2, 4, 8, 8), latent=1024, decoder_width=1536, count=9, codes=1024, dim=8):
    found = dac_networks(width, strides, latent, decoder_width, tuple(reversed(strides)))
    return found | factorised(count, codes, dim, latent)


def snac(
    width=48, strides=(2, 4, 8, 8), decoder_width=1024, decoder_strides=(8, 8, 4, 2), levels=3, codes=4096, dim=8,
    window=False,
):
    latent = width * 2 ** len(strides)
    found = dac_networks(
        width, strides, latent, decoder_width, decoder_strides, "new", noise=True, depthwise=True, window=window
    )
    return found | factorised(levels, codes, dim, latent, "new")


def bigcodec(width=48, strides=(2, 2, 2, 5, 5), latent=1024, decoder_width=1536, codes=8192, dim=8, recurrent=2):
    found = dac_networks(
        width, strides, latent, decoder_width, tuple(reversed(strides)), act=_anti_aliased,
        names=("CodecEnc.block", "generator.model"), recurrent=recurrent,
    )
    at = "generator.quantizer.layers.0"
    found |= {f"{at}._codebook.weight": (codes, dim)}
    for name, out, into in (("in_proj", dim, latent), ("out_proj", latent, dim)):
        found |= {f"{at}.{name}.weight_g": (out, 1), f"{at}.{name}.weight_v": (out, into), f"{at}.{name}.bias": (out,)}
    return found


def vocos(into, width, hidden, layers, n_fft, conditions=None, position=False):
    """Backbone and head; conditions: rows of the adaptive norms."""

    def norm(name):
        if conditions is None:
            return affine(name, width)
        return {f"{name}.{leaf}.weight": (conditions, width) for leaf in ("scale", "shift")}

    def block(name):
        found = affine(f"{name}.norm1", width) | affine(f"{name}.norm2", width)
        return found | conv1d(f"{name}.conv1", width, width, 3) | conv1d(f"{name}.conv2", width, width, 3)

    found = conv1d("backbone.embed", width, into, 7) | norm("backbone.norm")
    found |= affine("backbone.final_layer_norm", width)
    for i in range(layers):
        at = f"backbone.convnext.{i}"
        found |= conv1d(f"{at}.dwconv", width, 1, 7) | norm(f"{at}.norm") | {f"{at}.gamma": (width,)}
        found |= linear(f"{at}.pwconv1", hidden, width) | linear(f"{at}.pwconv2", width, hidden)
    if position:
        for i in (0, 1, 3, 4):
            found |= block(f"backbone.pos_net.{i}")
        found |= affine("backbone.pos_net.2.norm", width) | affine("backbone.pos_net.5", width)
        for part in ("q", "k", "v", "proj_out"):
            found |= conv1d(f"backbone.pos_net.2.{part}", width, width, 1)
    return found | linear("head.out", n_fft + 2, width) | {"head.istft.window": (n_fft,)}


def wavtokenizer(net, codes, backbone, unused=None):
    """backbone: arguments of `vocos`; unused: ratios and LSTM layers of the decoder that is saved all the same."""
    ratios, layers = unused or (net.ratios, net.layers)
    root = "feature_extractor.encodec."
    other = SEANet(ratios, net.width, net.dim, lstm=layers)
    found = under(root, net.encoder() | other.decoder() | codebooks("quantizer.vq", 1, codes, net.dim))
    return found | vocos(net.dim, *backbone, 4, True)


def vocos_encodec(net, books, used, codes, backbone, rows):
    """The published decoder with EnCodec's file beside it; used: codebooks of the widest bandwidth."""
    found = under("feature_extractor.encodec.", encodec(net, books, codes))
    found["feature_extractor.codebook_weights"] = (used * codes, net.dim)
    return found | vocos(net.dim, *backbone, rows)


def adapter(name, width, mirrored=False):
    """X-Codec's convolutions around the speech features."""
    found = conv1d(f"{name}.{'conv1' if mirrored else 'conv'}.conv", width, width, 3, False)
    if mirrored:
        found |= conv1d(f"{name}.conv2.conv", width, width, 3, False)
    for i in range(2):
        at = f"{name}.conv_blocks.{i}"
        found |= conv1d(f"{at}.conv.conv", width, width, 3)
        for j in range(2):
            found |= conv1d(f"{at}.res_units.{j}.conv1.conv", width, width, 3, False)
            found |= conv1d(f"{at}.res_units.{j}.conv2", width, width, 1, False)
    return found


def xcodec(
    teacher, width=64, strides=(8, 5, 4, 2), sound=256, decoder_width=1024, semantic=768, dim=1024, count=8, codes=1024
):
    """The authors' file; teacher: keys and shapes of the speech model."""
    found = dac_networks(width, strides, sound, decoder_width, strides, names=("encoder.block", "decoder_2.model"))
    found |= adapter("encoder_semantic", semantic) | adapter("decoder_semantic", semantic, True)
    found |= linear("fc_prior", dim, sound + semantic) | linear("fc_post1", semantic, dim)
    found |= linear("fc_post2", sound, dim) | codebooks("quantizer.vq", count, codes, dim)
    return found | under("semantic_model.", teacher)


def xcodec2(
    width=48, strides=(2, 2, 4, 4, 5), sound=1024, semantic=1024, latent=2048, decoder=1024, layers=12, levels=8,
    teacher=None,
):
    """The authors' Lightning file; teacher: keys and shapes of the speech model, where it was saved too."""
    n_fft = 4 * math.prod(strides)
    found = dac_networks(width, strides, sound, 0, (), act=_anti_aliased, names=("CodecEnc.conv_blocks", "-"))
    found = {key: shape for key, shape in found.items() if not key.startswith("-")}
    last = len(strides) + 1
    final = {f"CodecEnc.conv_blocks.{last}": "CodecEnc.conv_final_block.0",
             f"CodecEnc.conv_blocks.{last + 1}": "CodecEnc.conv_final_block.1"}  # fmt: skip
    for theirs, ours in final.items():
        found = {key.replace(f"{theirs}.", f"{ours}."): shape for key, shape in found.items()}
    for side in ("Encoder", "Decoder"):
        at = f"Semantic{side}_module"
        found |= conv1d(f"{at}.initial_conv", semantic, semantic, 3, False)
        found |= conv1d(f"{at}.final_conv", semantic, semantic, 3, False)
        for i in (1, 3):
            found |= conv1d(f"{at}.residual_blocks.{i}", semantic, semantic, 3)
    found |= linear("fc_prior", latent, sound + semantic) | linear("fc_post_a", decoder, latent)
    found |= linear("fc_post_s", semantic, latent)
    found |= linear("generator.quantizer.project_in", levels, latent)
    found |= linear("generator.quantizer.project_out", latent, levels)
    root = "generator.backbone"
    found |= conv1d(f"{root}.embed", decoder, decoder, 7) | affine(f"{root}.final_layer_norm", decoder)
    for net in ("prior_net", "post_net"):
        for i in range(2):
            at = f"{root}.{net}.{i}"
            found |= affine(f"{at}.norm1", decoder) | affine(f"{at}.norm2", decoder)
            found |= conv1d(f"{at}.conv1", decoder, decoder, 3) | conv1d(f"{at}.conv2", decoder, decoder, 3)
    for i in range(layers):
        at = f"{root}.transformers.{i}"
        found |= {f"{at}.att_norm.weight": (decoder,), f"{at}.ffn_norm.weight": (decoder,)}
        found |= linear(f"{at}.att.c_attn", 3 * decoder, decoder, False)
        found |= linear(f"{at}.att.c_proj", decoder, decoder, False)
        found |= linear(f"{at}.mlp.fc1", 4 * decoder, decoder, False)
        found |= linear(f"{at}.mlp.fc2", decoder, 4 * decoder, False)
    found |= linear("generator.head.out", n_fft + 2, decoder) | {"generator.head.istft.window": (n_fft,)}
    return found | under("semantic_model.", teacher or {})


def glm(
    width=1280, mels=128, layers=16, hidden=5120, codes=16384, places=1500, pool=4, running=True
):
    """The encoder of Whisper-large-v3 up to the quantizer; running: the codebook's means are there too."""
    found = conv1d("conv1", width, mels, 3) | conv1d("conv2", width, width, 3) | {"codebook.weight": (codes, width)}
    found |= {"embed_positions.weight": (places, width), "embed_positions2.weight": (places // pool, width)}
    if running:
        found |= {"ema_count": (codes,), "ema_weight": (codes, width)}
    for i in range(layers):
        at = f"layers.{i}"
        found |= affine(f"{at}.self_attn_layer_norm", width) | affine(f"{at}.final_layer_norm", width)
        found |= linear(f"{at}.fc1", hidden, width) | linear(f"{at}.fc2", width, hidden)
        for part in ("q", "k", "v", "out"):
            found |= linear(f"{at}.self_attn.{part}_proj", width, width, part != "k")
    return found
