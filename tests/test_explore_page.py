"""The page of features in a real browser: search, sort, fragments, keys, sixteen thousand rows. Needs Playwright and Chromium."""

import shutil

import numpy as np
import pytest

from fewer.report import explorer

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, and a Chromium, to test the page")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")

FEATURES, BAD = 16384, "<img src=x onerror=boom()>"
WORDS = [f"word{i:04}" for i in range(5000)] + [" zebra", "zebu", BAD, "\n", "        "]
ZEBRA, ZEBU, HARM, LINE, SPACES = range(5000, 5005)
DRAW = np.random.default_rng(0)
COUNT = DRAW.integers(1, 100_000, FEATURES)
MEAN, LOUDEST, FOCUS = DRAW.random((3, FEATURES))
COUNT[77] = 0


def feature(f):
    heard = [(f % 5000, float(FOCUS[f])), (HARM if f == 123 else LINE, 0.01), (SPACES, 0.005)]
    promoted = [((f * 7) % 5000, 1.5), (ZEBRA if f in (40, 9000) else SPACES, 1.0)]
    heard = [] if f == 77 else [(ZEBU, 0.9), *heard] if f in (41, 9000) else heard
    example = {
        "quantile": 1.0,
        "place": 1000 + f,
        "first": 998 + f,
        "tokens": [LINE, 1, ZEBU, 3],
        "values": [0.0, 0.5, 2.0, 0.0],
    }
    return {
        "feature": f, "count": int(COUNT[f]), "frequency": COUNT[f] / 1e6, "mean": float(MEAN[f]), "loudest": float(LOUDEST[f]),
        "histogram": [0, 1, 10, 100] * 8, "low": 0.0, "high": 2.0, "heard": heard, "promoted": promoted, "suppressed": [(7, -1.0)],
        "examples": [example, {**example, "quantile": 0.4, "place": 5}], "near": [((f + 5) % FEATURES, 0.5)],
        "together": [((f + 9) % FEATURES, 0.25, 0.3, 11)],
    }  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    explorer(path, map(feature, range(FEATURES)), lambda ids: [WORDS[i] for i in ids], {"model": "none"}, "Planted")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, file):
    """Opens the page; at the end nothing was asked of any network, and no script had failed."""
    asked, faults, contexts = [], [], []

    def go(fragment="", **settings):
        contexts.append(browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **settings}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(file + fragment)
        page.wait_for_selector("body[data-ready]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not faults and {url.partition("#")[0] for url in asked} == {file}


def numbers(page):
    """The features in the table's rows that lie in view, from the top."""
    page.wait_for_timeout(60)
    script = """() => { const box = document.getElementById("scroll").getBoundingClientRect();
      return [...document.querySelectorAll(".row")].filter(r => { const b = r.getBoundingClientRect(); return b.top >= box.top - 1 && b.bottom <= box.bottom + 1; })
        .map(r => +r.firstChild.textContent); }"""
    return page.evaluate(script)


def opened(page, f):
    page.get_by_role("heading", name=f"Feature {f}", exact=True).wait_for()


def test_sixteen_thousand_features_are_few_rows(visit):
    page = visit()
    assert page.locator("#found").inner_text() == "16,384 features, 1 never speak"
    order = np.lexsort((np.arange(FEATURES), -COUNT))
    for top, first in ((0, 0), (38 * 8000, 8000), (38 * FEATURES, None)):
        page.evaluate(f"document.getElementById('scroll').scrollTop = {top}")
        shown = numbers(page)
        start = first if first is not None else FEATURES - len(shown)
        assert len(shown) > 10 and shown == order[start : start + len(shown)].tolist()
        assert page.locator(".row").count() < 60
    assert shown[-1] == 77 and "never" in page.locator("#row77").inner_text()
    assert page.locator("#row77").get_attribute("aria-rowindex") == str(FEATURES + 1)


@pytest.mark.parametrize(("name", "values"), [("count", COUNT), ("mean", MEAN), ("loudest", LOUDEST), ("focus", FOCUS)])
def test_sort_by_a_number(visit, name, values):
    page = visit()
    # as the page computes it: float32, and its focus is that of the first token heard
    values = (
        np.array([feature(f)["heard"][0][1] if f != 77 else 0 for f in range(FEATURES)]) if name == "focus" else values
    )
    order = np.lexsort((np.arange(FEATURES), -values.astype(np.float32)))
    head = page.locator(f"#head [data-c={name}]")
    if name != "count":
        head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending" and numbers(page)[:10] == order[:10].tolist()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and numbers(page)[:10] == order[::-1][:10].tolist()


def test_sort_by_number_and_by_word(visit):
    page = visit()
    page.locator("#head [data-c=feature] button").click()
    assert numbers(page)[:3] == [0, 1, 2]
    page.locator("#head [data-c=feature] button").click()
    assert numbers(page)[:2] == [FEATURES - 1, FEATURES - 2]
    page.locator("#head [data-c=heard] button").click()
    assert numbers(page)[:5] == [0, 5000, 10000, 15000, 1]


def test_search(visit):
    page = visit()
    found, query = page.locator("#found"), page.locator("#query")
    query.fill("ZEB")
    assert found.inner_text() == "3 of 16,384 features" and sorted(numbers(page)) == [40, 41, 9000]
    assert page.locator(".row .t.hit").count() == 4
    page.locator("#where").select_option("promoted")
    assert sorted(numbers(page)) == [40, 9000]
    page.locator("#where").select_option("heard")
    assert sorted(numbers(page)) == [41, 9000]
    page.locator("#where").select_option("both")
    query.fill("zebra word4000")
    assert numbers(page) == [9000]
    for asked in ("123", "f123", "#123"):
        query.fill(asked)
        assert numbers(page)[0] == 123
    query.fill("nothing like it")
    assert page.locator("#none").is_visible() and numbers(page) == []
    query.press("Escape")
    assert query.input_value() == "" and not page.locator("#none").is_visible() and len(numbers(page)) > 10


def test_a_fragment_opens_a_feature_and_links_lead_on(visit):
    page = visit("#f123")
    opened(page, 123)
    assert page.title() == "Feature 123 · Planted" and 123 in numbers(page)
    text = page.locator("#page").inner_text()
    assert (
        page.locator("img").count() == 0
        and BAD.replace(" ", "·") in text
        and "word0861" in text
        and f"{COUNT[123]:,} of them" in text
    )
    assert [e.inner_text() for e in page.locator("#page .group h3").all()] == [
        "Loudestone stretch a window",
        "Louder than 40 %of the windows in which it speaks",
    ]
    marks = page.locator("#page .ex").first.locator("mark")
    assert [m.inner_text() for m in marks.all()] == ["word0001", "zebu"]
    assert (
        marks.nth(1).get_attribute("class") == "peak" and marks.nth(1).get_attribute("title") == "2.00 at token 1,123"
    )
    assert page.locator("svg.hist rect").count() == 24
    assert page.locator("svg.hist rect title").first.text_content() == "1 tokens from 0.0625 to 0.125"
    page.locator("#page .links a").first.click()
    opened(page, 128)
    page.locator("#page .links a").last.click()
    opened(page, 137)
    page.go_back()
    opened(page, 128)
    page.evaluate("location.hash = 'f99999'")
    page.locator("#page").wait_for(state="hidden")
    assert page.title() == "Planted"


def test_the_keyboard_goes_everywhere(visit):
    page = visit()
    order = np.lexsort((np.arange(FEATURES), -COUNT)).tolist()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    opened(page, order[2])
    page.keyboard.press("ArrowUp")
    opened(page, order[1])
    page.wait_for_url(f"**#f{order[1]}")
    page.keyboard.press("Escape")
    page.locator("#page").wait_for(state="hidden")
    page.keyboard.press("/")
    page.keyboard.type("zebu")
    assert page.locator("#query").input_value() == "zebu"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    opened(page, min((41, 9000), key=lambda f: COUNT[f]))
    assert page.evaluate("document.activeElement.id") == "grid"
    for key in ("Escape", "/", "Escape", "Escape", "End"):  # close, search, empty the field, leave it, the last row
        page.keyboard.press(key)
    assert numbers(page)[-1] == 77 and page.locator("#query").input_value() == ""
    assert page.locator("#grid").get_attribute("aria-activedescendant") == "row77"
    page.keyboard.press("PageUp")
    page.wait_for_timeout(100)  # drawn with the next frame
    assert order.index(int(page.locator(".row.here").get_attribute("id")[3:])) < FEATURES - 10


def test_the_place_in_the_table_is_kept(visit):
    page = visit()
    page.locator("#query").fill("zebra")
    page.keyboard.press("Enter")
    best = max((40, 9000), key=lambda f: COUNT[f])
    opened(page, best)
    page.locator("#query").focus()
    page.keyboard.press("Escape")
    assert best in numbers(page)


def light(color):
    """Relative luminance, as WCAG 2 has it."""
    parts = [c / 255 for c in color]
    return sum(w * (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(visit, scheme):
    page = visit("#f9000", color_scheme=scheme)
    opened(page, 9000)
    script = """name => { const probe = document.body.appendChild(document.createElement("i")); probe.style.color = `var(--${name})`;
      const found = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number); probe.remove(); return found.slice(0, 3); }"""
    color = {name: page.evaluate(script, name) for name in ("ink", "soft", "good", "paper", "tint", "pick")}
    heat, deep = page.evaluate(
        """() => { const s = getComputedStyle(document.documentElement); return [s.getPropertyValue("--heat").trim().split(" ").map(Number), +s.getPropertyValue("--deep")]; }"""
    )
    loud = [deep * h + (1 - deep) * p for h, p in zip(heat, color["paper"], strict=True)]
    assert (light(color["paper"]) > 0.8) == (scheme == "light")
    for word, ground in (("ink", color["paper"]), ("soft", color["paper"]), ("soft", color["tint"]), ("ink", color["pick"]), ("good", color["tint"]), ("ink", loud)):  # fmt: skip
        a, b = sorted((light(color[word]), light(ground)))
        assert (b + 0.05) / (a + 0.05) >= 4.5, (word, ground)


def test_a_phone_shows_the_table_or_the_feature(visit):
    page = visit(viewport={"width": 390, "height": 760})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".row").first.click()
    page.wait_for_selector("#page h2")
    assert not page.locator("#list").is_visible() and page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Close").click()
    page.locator("#page").wait_for(state="hidden")
    assert page.locator("#list").is_visible()
