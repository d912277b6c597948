"""The page of a codec without a browser: self-contained, escaped, complete, inside its size, playable."""

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmtok.report.audio_result import Clip, Sound
from mmtok.report.labels import label
from mmtok.report.page import render, write_report
from mmtok.report.plots import write_plots
from mmtok.report.sounds import audio_uri, listening
from mmtok.report.table import print_table


def data_of(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found[1])


def test_the_page_is_one_file_that_asks_for_nothing(sounds, tmp_path):
    page = write_report(tmp_path / "report", sounds)
    text = page.read_text("utf-8")
    assert page.stat().st_size < 7_000_000 and "media-src data:" in text and "default-src 'none'" in text
    assert not re.search(r"https?://|<link (?!rel=\"icon\" href=\"data:)|<script src|@import|url\(", text)
    assert "{{" not in text and "nan" not in text.partition('<script type="application/json"')[0].lower()
    assert sorted(p.name for p in page.parent.iterdir()) == ["index.html", "metrics.json"]


def test_names_are_escaped_and_numbers_rates_and_failures_are_there(sounds):
    text = render(sounds)
    body = text.partition('<script type="application/json"')[0]
    assert "blocks &amp; toy" in body and "<voice" not in text and "shelf/&lt;text&gt;: reading: unsupported" in body
    for row in (sounds.original, *sounds.lengths, *sounds.anchors):
        assert row.label in body and label("distillmos").text(row.values["distillmos"]) in body
    assert "file kbps" in body and "packets alone" in body and "3 utterances, 4 s at 16 kHz" in body
    assert f"originals: {label('distillmos').text(sounds.original.values['distillmos'])}" in body  # line of the chart
    assert 'class="curve codec2"' in body and 'class="curve opus"' in body
    assert render(sounds) == text


def test_sounds_are_stored_without_loss_and_codecs_are_the_nearest_in_bytes(sounds):
    data = data_of(render(sounds))
    assert len(data["samples"]) == 2 and [step["label"] for step in data["steps"]] == [r.label for r in sounds.lengths]
    for entry, clip in zip(data["samples"], sounds.clips, strict=True):
        assert entry["key"] == clip.key
        for stored, sound in zip([entry["original"], *entry["lengths"]], [clip.original, *clip.lengths], strict=True):
            head, payload = stored["src"].split(",")
            assert head == "data:audio/flac;base64"
            wave, rate = soundfile.read(io.BytesIO(base64.b64decode(payload)), dtype="float32")
            assert rate == 16000 and np.abs(wave - sound.wave.numpy()).max() <= 1 / 32000
            picture = np.array(Image.open(io.BytesIO(base64.b64decode(stored["image"].split(",")[1]))))
            assert picture.shape[0] == 80 and 200 < picture.shape[1] < 800
        for anchor in entry["anchors"]:
            versions = {sound.label: sound.values["bytes"] for sound in clip.anchors[anchor["codec"]]}
            for ours, pick in zip(entry["lengths"], anchor["pick"], strict=True):
                shown, size = anchor["sounds"][pick]["values"]["bytes"], ours["values"]["bytes"]
                assert all(abs(np.log(shown / size)) <= abs(np.log(v / size)) for v in versions.values())


def test_a_spectrogram_shows_low_below_and_all_versions_on_one_scale():
    t = torch.arange(16000) / 16000
    low, high = (0.5 * torch.sin(2 * torch.pi * hertz * t) for hertz in (300, 5000))
    versions = tuple(Sound(str(i), wave, {"bytes": 9.0}) for i, wave in enumerate((high, 0.001 * low)))
    clip = Clip("a", 16000, Sound("original", low, {}), versions)
    entry = listening([clip], 10_000_000)[0][0]

    def picture(sound):
        return np.array(Image.open(io.BytesIO(base64.b64decode(sound["image"].split(",")[1])))).sum(2).mean(1)

    rows = [picture(sound) for sound in (entry["original"], *entry["lengths"])]
    assert rows[0].argmax() > 50 > 30 > rows[1].argmax()  # the first row of a picture is its top
    assert rows[2].max() < rows[0].max() / 2


def test_clips_are_shortened_to_fit_and_the_page_says_so():
    noise = torch.rand(4, 160000, generator=torch.Generator().manual_seed(0)) - 0.5
    sounds = [Sound("any", wave, {"bytes": 9.0}) for wave in noise]
    clips = [Clip(str(i), 16000, sound, (sound,)) for i, sound in enumerate(sounds)]
    entries, text = listening(clips, 1 << 30)
    assert len(entries) == 4 and text == "stored without loss, the first 8 s"
    one = len(audio_uri(noise[0, :48000], 16000))
    entries, text = listening(clips, 5 * one)
    assert len(entries) == 2 and "first 3 s; 2 of 4 are here" in text
    assert listening(clips, 100) == ([], "stored without loss; 0 of 4 are here")


def test_plots_and_table(sounds, tmp_path, capsys, monkeypatch):
    files = write_plots(tmp_path, sounds)
    assert [p.name for p in files if p.suffix == ".svg"] == [
        "rate_distillmos.svg", "rate_stoi.svg", "rate_mel_dac.svg"
    ]
    monkeypatch.setenv("COLUMNS", "240")
    print_table(sounds)
    out = capsys.readouterr().out
    assert "3 utterances of shelf" in out and all(r.label in out for r in (sounds.original, *sounds.anchors))


@pytest.mark.parametrize("missing", ["clips", "anchors"])
def test_a_page_without_clips_or_codecs(sounds, missing):
    from dataclasses import replace

    text = render(replace(sounds, **{missing: []}))
    assert ("Codecs on the same utterances" in text) == (missing != "anchors")
