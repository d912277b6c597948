"""The report in a real browser: the slider changes the pictures, nothing is requested, nothing is complained about."""

import pytest
from chromium import complaints, requests

pytestmark = pytest.mark.chromium

OURS = "Array.from(document.querySelectorAll('.ours img'), i => i.src)"
# the mean colour as drawn: proof that the browser decoded the data URI
PIXELS = """(async () => { const out = []; for (const i of document.querySelectorAll('.row img')) { await i.decode();
  const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
  const g = c.getContext('2d'); g.drawImage(i, 0, 0); out.push(Array.from(g.getImageData(0, 0, c.width, c.height).data)
  .reduce((a, b) => a + b, 0)); } return out; })()"""


@pytest.fixture
def page(open_report, result):
    return open_report(result)


def test_the_slider_changes_pictures_by_mouse_and_keyboard(browser, page, result):
    shown = [browser.run(OURS)]
    numbers = [browser.run(PIXELS)]
    for step in range(len(result.lengths)):
        browser.run(f"(() => {{ const s = document.getElementById('length'); s.value = {step};"
                    " s.dispatchEvent(new Event('input')); })()")
        assert result.lengths[step].label in browser.run("document.getElementById('state').textContent")
        shown.append(browser.run(OURS))
        numbers.append(browser.run(PIXELS))
    assert len({tuple(s) for s in shown[1:]}) == len(result.lengths) and len(shown[1]) == len(result.samples)
    assert len({tuple(n) for n in numbers[1:]}) == len(result.lengths)
    # the keyboard
    browser.run("document.getElementById('length').focus()")
    browser.key("Home")
    assert browser.run(OURS) == shown[1] and browser.run("location.hash") == "#length=0"
    browser.key("ArrowRight")
    assert browser.run(OURS) == shown[2]
    assert result.lengths[1].label in browser.run("document.getElementById('length').getAttribute('aria-valuetext')")
    browser.key("End")
    assert browser.run(OURS) == shown[-1]
    # the point of the chosen length is marked in every curve, and its row in the table
    assert browser.run("document.querySelectorAll('circle.on').length") >= 3
    assert browser.run("document.querySelector('tr.on th').textContent") == result.lengths[-1].label
    assert complaints(browser) == [] and requests(browser) == [page]


def test_the_address_chooses_a_length(browser, page, result):
    browser.run("location.hash = '#length=0'")
    assert result.lengths[0].label in browser.run("new Promise(r => setTimeout(() => r(state.textContent), 50))")
    browser.run("location.hash = '#length=999'")
    assert result.lengths[-1].label in browser.run("new Promise(r => setTimeout(() => r(state.textContent), 50))")
    assert complaints(browser) == []


def test_every_picture_has_a_text_and_codecs_change_with_the_length(browser, page, result):
    assert browser.run("Array.from(document.images).every(i => i.alt.length > 5 && i.complete && i.naturalWidth > 0)")
    assert browser.run("document.images.length") == len(result.samples) * 4
    captions = "document.querySelector('.row').textContent"
    browser.key("Home")
    assert "bytes" in browser.run(captions) and "WebP" in browser.run(captions) and "dB" in browser.run(captions)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_phones_and_follows_light_and_dark(browser, page, width, dark):
    browser.shape(width, 800, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    style = "getComputedStyle(document.body)"
    ground, ink = (browser.run(f"{style}.{name}.match(/\\d+/g).map(Number)") for name in ("backgroundColor", "color"))
    assert (sum(ground) < sum(ink)) == dark and abs(sum(ground) - sum(ink)) > 450
