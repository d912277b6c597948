"""The codec page in a real browser: sounds decode and play, the slider changes them, nothing is requested."""

import pytest
from chromium import complaints, requests

pytestmark = pytest.mark.chromium

OURS = "Array.from(document.querySelectorAll('.ours audio'), a => a.src)"
# seconds and loudness as decoded: proof that the browser reads the sound
DECODED = """(async () => { const context = new OfflineAudioContext(1, 16000, 16000); const out = [];
  for (const a of document.querySelectorAll('.row audio')) {
    const bytes = Uint8Array.from(atob(a.src.split(',')[1]), c => c.charCodeAt(0));
    const sound = await context.decodeAudioData(bytes.buffer);
    out.push([sound.duration, Math.hypot(...sound.getChannelData(0).slice(0, 20000))]); }
  return out; })()"""
PLAY = """(async () => { const a = document.querySelectorAll('.row audio')[%d]; a.muted = true; await a.play();
  await new Promise(r => setTimeout(r, 300)); const t = a.currentTime; return [t, a.paused, a.duration]; })()"""


@pytest.fixture
def page(open_report, sounds):
    return open_report(sounds)


def test_every_sound_decodes_at_every_rate(browser, page, sounds):
    shown = []
    for step in range(len(sounds.lengths)):
        browser.run(f"(() => {{ const s = document.getElementById('length'); s.value = {step};"
                    " s.dispatchEvent(new Event('input')); })()")
        assert sounds.lengths[step].label in browser.run("document.getElementById('state').textContent")
        shown.append(tuple(browser.run(OURS)))
        decoded = browser.run(DECODED)
        assert len(decoded) == 2 * 4  # original, ours, Opus, Codec 2
        assert all(abs(seconds - 1.5) < 0.01 and loudness > 1 for seconds, loudness in decoded)
    assert len(set(shown)) == len(sounds.lengths)
    assert browser.run("document.querySelector('tr.on th').textContent") == sounds.lengths[-1].label
    assert complaints(browser) == [] and requests(browser) == [page]


def test_one_sound_plays_at_a_time_and_goes_on_when_the_rate_changes(browser, page):
    time, paused, duration = browser.run(PLAY % 0)
    assert time > 0 and not paused and abs(duration - 1.5) < 0.01
    browser.run(PLAY % 1)
    assert browser.run("document.querySelectorAll('.row audio')[0].paused")
    browser.run("document.getElementById('length').focus()")
    before = browser.run("document.querySelectorAll('.row audio')[1].currentTime")
    browser.key("Home")
    after = browser.run(
        "new Promise(r => setTimeout(() => { const a = document.querySelectorAll('.row audio')[1];"
        " r([a.currentTime, a.paused]); }, 250))"
    )
    assert after[0] >= before and not after[1]
    assert complaints(browser) == []


def test_pictures_and_players_are_named_and_captions_follow(browser, page, sounds):
    assert browser.run("Array.from(document.images).every(i => i.alt.length > 5 && i.complete && i.naturalWidth > 0)")
    assert browser.run("Array.from(document.querySelectorAll('audio')).every(a => a.getAttribute('aria-label'))")
    browser.run("document.getElementById('length').focus()")
    browser.key("End")
    text = browser.run("document.querySelector('.row').textContent")
    assert "kbps" in text and "DistillMOS" in text and "Opus" in text and "Codec 2" in text


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_phones(browser, page, width):
    browser.shape(width, 800)
    assert browser.run("document.documentElement.scrollWidth") <= width
