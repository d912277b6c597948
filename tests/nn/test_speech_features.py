"""Frozen speech models compute what transformers and torchaudio compute."""

import pytest
import torch

from mmtok.nn.speech_features import HubertFeatures, hubert_key, hubert_sizes, hubert_state
from mmtok.nn.w2v_bert import FilterBank, W2vBertFeatures

transformers = pytest.importorskip("transformers")


def sound(samples):
    time = torch.arange(samples) / 16000
    noise = torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))
    return 0.3 * torch.sin(2 * torch.pi * 200 * time * (1 + time)) + 0.01 * noise


@torch.no_grad()
def test_hubert_is_the_mean_of_all_hidden_states(speech_model):
    theirs = transformers.HubertModel.from_pretrained(speech_model).eval()
    state = theirs.state_dict()
    ours = HubertFeatures(**hubert_sizes(state), heads=2).eval()
    ours.trunk.load_state_dict(hubert_state(state))
    x = sound(6400)
    hidden = theirs(torch.nn.functional.pad(x[:, 0], (160, 160)), output_hidden_states=True).hidden_states
    assert ours(x).shape == (2, 20, 16)
    assert torch.allclose(ours(x), torch.stack(hidden).mean(0), atol=1e-5)
    assert not any(p.requires_grad for p in ours.parameters())
    with pytest.raises(ValueError, match="no part of HuBERT base"):
        hubert_key("encoder.layers.0.attention.gru_rel_pos_linear.weight")


@torch.no_grad()
def test_filter_bank_is_that_of_kaldi():
    kaldi = pytest.importorskip("torchaudio").compliance.kaldi
    x = sound(8000)
    ours = FilterBank(80)(x)
    for index in range(2):
        theirs = kaldi.fbank(
            x[index] * 2**15, num_mel_bins=80, frame_length=25, frame_shift=10, dither=0, low_freq=20, high_freq=8000,
            window_type="povey", use_energy=False,
        )
        theirs = (theirs - theirs.mean(0)) / (theirs.var(0, unbiased=True) + 1e-7).sqrt()
        theirs = theirs[: len(theirs) // 2 * 2].reshape(-1, 160)
        assert ours[index].shape == theirs.shape and torch.allclose(ours[index], theirs, atol=2e-3)


@torch.no_grad()
def test_w2v_bert_with_its_filter_bank():
    """The whole way from samples, against transformers' network on torchaudio's features."""
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_depthwise_kernel_size=5,
        left_max_position_embeddings=6, right_max_position_embeddings=2,
    )
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2BertModel(config).eval()
    ours = W2vBertFeatures(32, 2, 2, 48, left=6, right=2, kernel=5).eval()
    ours.trunk.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "masked_spec_embed"})
    x = sound(6400)
    bank = ours.bank(torch.nn.functional.pad(x, (160, 160)))
    assert ours(x).shape == (2, 20, 32)
    assert torch.allclose(ours(x), theirs(bank).last_hidden_state, atol=1e-5)
