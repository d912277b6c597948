"""Validation of codecs: per utterance on its true length, every depth, the keys of `mmtok eval`."""

import pytest
import torch

from mmtok.keep import Prefix
from mmtok.metrics.audio.spectral import DACMelDistance
from mmtok.models.audio.codec import WaveCodec
from mmtok.nn.seanet import SEANetDecoder, SEANetEncoder
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail
from mmtok.training import AudioValidation
from mmtok.types import Batch


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    sizes = {"dim": 8, "n_filters": 2, "ratios": [8, 5], "lstm": 0, "causal": False, "channels": 2}
    quantizer = Residual([VQ(8, 16) for _ in range(3)], through=True)
    parts = SEANetEncoder(**sizes), quantizer, SEANetDecoder(**sizes)
    return WaveCodec(*parts, 16000, UniformTail(Prefix(1)), end="layers").eval()


def test_means_over_utterances_of_unequal_length(codec):
    torch.manual_seed(0)
    x, lengths = torch.randn(2, 2, 4000) * 0.1, [4000, 3100]
    x[1, :, 3100:] = 0.7  # padding that must not be heard
    rate, counts = torch.full((2,), 16000.0).double(), torch.tensor(lengths)
    batch = Batch(x, ("a", "b"), counts[:, None], rate, counts)
    validation = AudioValidation(16000, [1], ["mel", "si_sdr"])
    validation.update(codec, batch)
    found = validation.compute()
    assert set(found) == {"val/mel_dac", "val/si_sdr", "val/mel_dac_n1", "val/si_sdr_n1"}
    scorer, expected = DACMelDistance(16000), []
    for index, count in enumerate(lengths):
        clip = x[index : index + 1, :, :count]
        back = codec.decode(codec.encode(clip, num_quantizers=1))
        expected.append(scorer.score(clip[0].mean(0), back[0].mean(0))["mel_dac"])
    assert found["val/mel_dac_n1"] == pytest.approx(sum(expected) / 2, rel=1e-4)
    validation.restart()
    validation.update(codec, Batch.of(x[:1], ("a",)))
    assert validation.compute()["val/mel_dac_n1"] == pytest.approx(expected[0], rel=1e-4)


def test_failures_are_counted_and_a_stop_gives_no_number(codec):
    validation = AudioValidation(16000, [], ["mel", "si_sdr"])
    validation.update(codec, Batch.of(torch.zeros(1, 2, 2000), ("silence",)))
    found = validation.compute()
    assert found["val/si_sdr_failed"] == 1 and "val/si_sdr" not in found and "val/mel_dac" in found
    validation.restart()
    validation.update(codec, Batch.of(torch.randn(1, 2, 2000) * 0.1, ("noise",)))
    validation.cut = True
    assert validation.compute() == {}
    with pytest.raises(ValueError, match="metrics: expected some of"):
        AudioValidation(16000, metrics=["mos"])
