"""How metric keys are shown to people: title, unit, digits, direction."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Label:
    """title may carry the protocol; better is "higher" or "lower", "" where neither is better."""

    title: str
    digits: int
    better: str = ""
    unit: str = ""

    @property
    def heading(self) -> str:
        """Title and unit: "PSNR, dB"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def text(self, value: float) -> str:
        """The number alone, for tables."""
        return f"{value:,.{self.digits}f}"

    def sentence(self, value: float) -> str:
        """Title, number and unit: "PSNR 23.41 dB"."""
        return f"{self.title} {self.text(value)} {self.unit}".rstrip()


_KNOWN = {
    "tokens": Label("tokens sent", 0), "bytes_file": Label("file bytes", 1, "lower"),
    "bpp_file": Label("file bpp", 4, "lower"), "bits_nominal": Label("nominal bits", 1, "lower"),
    "bpp_nominal": Label("nominal bpp", 4, "lower"), "bits_entropy": Label("entropy bits", 1, "lower"),
    "bpp_entropy": Label("entropy bpp", 4, "lower"), "bits_side": Label("of them side bits", 1, "lower"),
    "psnr": Label("PSNR", 2, "higher", "dB"),
    "flicker_psnr": Label("PSNR of frame differences", 2, "higher", "dB"), "ssim": Label("SSIM", 3, "higher"),
    "lpips_alex": Label("LPIPS alex", 3, "lower"), "lpips_vgg": Label("LPIPS vgg", 3, "lower"),
    "codebook_usage": Label("codebook used", 3, "higher"), "codebook_perplexity": Label("perplexity", 1, "higher"),
    "codebook_entropy_bits": Label("code entropy bits", 2, "higher"),
    "tokens_per_second": Label("tokens/s", 0), "kbps_file": Label("file kbps", 2, "lower"),
    "kbps_payload": Label("packets alone, kbps", 2, "lower"), "kbps_nominal": Label("nominal kbps", 2, "lower"),
    "kbps_entropy": Label("entropy kbps", 2, "lower"),
    "distillmos": Label("DistillMOS", 2, "higher"), "utmos22_strong": Label("UTMOS22", 2, "higher"),
    "dnsmos_ovrl": Label("DNSMOS OVRL", 2, "higher"), "dnsmos_sig": Label("DNSMOS SIG", 2, "higher"),
    "dnsmos_bak": Label("DNSMOS BAK", 2, "higher"), "dnsmos_p808": Label("DNSMOS P808", 2, "higher"),
    "pesq_wb": Label("PESQ-wb", 2, "higher"), "stoi": Label("STOI", 3, "higher"), "estoi": Label("ESTOI", 3, "higher"),
    "si_sdr": Label("SI-SDR", 1, "higher", "dB"), "mel_dac": Label("mel distance, DAC", 2, "lower"),
    "mel80_16k": Label("mel distance, 80 bands", 3, "lower"), "stft_dac": Label("STFT distance, DAC", 2, "lower"),
    "f0_yin_rmse_cents": Label("F0 error", 0, "lower", "cents"), "vuv_yin_error": Label("voicing error", 3, "lower"),
    "inception_score_1split": Label("IS (1 split)", 2, "higher"),
}
_NETWORKS = {"dwer_": Label("dWER", 3, "lower"), "speaker_": Label("speaker similarity", 3, "higher")}
_PREFIXES = {"rfid_": "rFID", "fd_vgg16_": "FD VGG16", "rfvd_": "rFVD"}
RATE_KEYS = (
    "tokens", "tokens_per_second", "kbps_file", "kbps_payload", "kbps_nominal", "kbps_entropy", "bytes_file",
    "bpp_file", "bits_nominal", "bits_entropy",
)
USAGE_KEYS = ("codebook_usage", "codebook_perplexity")


def label(key: str) -> Label:
    """The label of a metric key; unknown keys show themselves."""
    if key in _KNOWN:
        return _KNOWN[key]
    for prefix, found in _NETWORKS.items():
        if key.startswith(prefix):
            return replace(found, title=f"{found.title}, {key.removeprefix(prefix)}")
    for prefix, title in _PREFIXES.items():
        if key.startswith(prefix):
            count = key.removeprefix(prefix)
            return Label(f"{title}, n={count.removesuffix('_floor')}", 2, "lower")
    return Label(key, 4)


def quality_keys(values: dict[str, float]) -> list[str]:
    """Keys of quality metrics in the order they were measured, without rates and usage."""
    known = (
        "psnr", "flicker_", "ssim", "lpips_", "rfid_", "fd_", "inception_", "distillmos", "utmos", "dnsmos_", "pesq_",
        "stoi", "estoi", "si_sdr", "mel", "stft_", "f0_", "vuv_", "dwer_", "speaker_",
    )
    return [key for key in values if key.startswith(known)]
