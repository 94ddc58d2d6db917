"""The pages in a browser: what they say, how they fit, whether they can be read, and their filters.

Skipped on a machine without Chromium.
"""

import re

from playwright import sync_api
import pytest

from tests.report import browser as browser_lib
from tests.report import made_pages

pytestmark = pytest.mark.skipif(not browser_lib.found(), reason="there is no Chromium")
PAGES = ("run", "hard", "sweep")


@pytest.fixture(scope="module")
def browser():
  with browser_lib.started() as it:
    yield it


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  return {
    name: getattr(made_pages, name)(tmp_path_factory.mktemp(name)) for name in (*PAGES, "many")
  }


@pytest.fixture(
  scope="module",
  params=[(name, *screen) for name in PAGES for screen in browser_lib.SCREENS],
  ids=lambda p: "-".join(map(str, p)),
)
def seen(request, browser, paths):
  """A page of which everything is unfolded, and what it said."""
  name, width, scheme = request.param
  with browser_lib.opened(browser, paths[name], width, scheme) as (page, said):
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    yield page, said


@pytest.fixture
def run(browser, paths):
  with browser_lib.opened(browser, paths["run"], 1280, "light") as (page, said):
    yield page
    assert said == []


def test_a_page_says_nothing_to_the_console_and_asks_the_network_for_nothing(seen):
  _, said = seen
  assert said == []


def test_what_a_page_says_is_noticed(browser, tmp_path):
  path = tmp_path / "page.html"
  path.write_text("<img src='http://x.invalid/a.png'><script>console.warn('w'); throw 1</script>")
  with browser_lib.opened(browser, path, 390, "light") as (page, said):
    page.wait_for_load_state("networkidle")
    assert {"request: http://x.invalid/a.png", "warning: w", "error: 1"} <= {*said}


def test_a_page_is_no_wider_than_its_window(seen):
  page, _ = seen
  assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


FIGURES = """
() => [...document.querySelectorAll('figure > svg, svg.path')].map(svg => {
  const rect = e => { const {left, top, right, bottom} = e.getBoundingClientRect();
    return [left, top, right, bottom]; };
  const texts = [...svg.querySelectorAll('text')].map(e => [e.textContent, rect(e)]);
  return [svg.querySelector('title').textContent, rect(svg), rect(svg.closest('figure') || svg), texts];
})
"""


def test_figures_have_a_size_and_their_words_are_inside_and_apart(seen):
  page, _ = seen
  figures = page.evaluate(FIGURES)
  assert len(figures) > 5
  for title, (left, top, right, bottom), (outer_left, _, outer_right, _), texts in figures:
    assert right - left > 200 and bottom - top > 50, title
    for words, box in texts:
      assert box[0] >= outer_left and box[2] <= outer_right, (title, words)
      assert box[1] >= top - 1 and box[3] <= bottom + 1, (title, words)
    for i, (one, a) in enumerate(texts):
      for other, b in texts[i + 1 :]:
        wide, high = (min(a[j + 2], b[j + 2]) - max(a[j], b[j]) for j in (0, 1))
        # A box is as high as the tallest letters of its font: those of neighbours may touch.
        assert wide <= 0 or high <= 3, (title, one, other)


CONTRASTS = """
() => {
  const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = colour => {
    const [r, g, b] = numbers(colour).map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const solid = colour => numbers(colour).length === 3;
  const behind = e => {
    for (; e; e = e.parentElement) {
      const {backgroundColor} = getComputedStyle(e);
      if (solid(backgroundColor)) return backgroundColor;
    }
  };
  const kind = e => [e, e.parentElement, e.parentElement.parentElement]
    .map(x => x.tagName + (x.getAttribute('class') || '')).join(' ');
  const found = {}, kinds = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), e = walk.currentNode.parentElement;
    if (!text || kinds.has(kind(e)) || e.closest('title, option, script, style')) continue;
    if (!e.checkVisibility()) continue;
    kinds.add(kind(e));
    const style = getComputedStyle(e), colour = e.closest('svg') ? style.fill : style.color;
    found[`${colour} on ${behind(e)}`] = [text.slice(0, 30), light(colour), light(behind(e))];
  }
  return found;
}
"""


def test_text_has_a_contrast_of_4_5_to_1(seen):  # WCAG 2.2, 1.4.3
  page, _ = seen
  found = page.evaluate(CONTRASTS)
  assert len(found) > 3
  for colours, (text, *lights) in found.items():
    low, high = sorted(lights)
    assert (high + 0.05) / (low + 0.05) >= 4.5, (colours, text)


def test_dark_pages_are_dark(seen):
  page, _ = seen
  dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
  colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
  assert (max(map(int, re.findall(r"\d+", colour))) < 60) == dark


@pytest.mark.parametrize("width,scheme", browser_lib.SCREENS)
def test_figures_of_a_sweep_fit_a_window_of_their_own(browser, paths, width, scheme):
  files = sorted(paths["sweep"].parent.glob("*.svg"))
  assert len(files) == 4
  for file in files:
    with browser_lib.opened(browser, file, width, scheme) as (page, said):
      assert page.evaluate("document.documentElement.getBoundingClientRect().width") <= width
      assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"
      assert said == []


# ---------------------------------------------------------------- filters and folds


def _shown(page, what):
  return page.locator(f"{what}:visible").count()


def test_buttons_choose_and_fold_trees(run):
  everything = _shown(run, ".tree")
  assert everything == 6 and run.locator(".tree[open]").count() == 1
  for outcome in ("right", "wrong", "pruned"):
    button = run.locator(f"[data-only={outcome}]")
    button.click()
    assert 0 < _shown(run, ".tree") == _shown(run, f".tree.{outcome}") < everything
    assert button.get_attribute("aria-pressed") == "true"
  run.get_by_role("button", name="all", exact=True).click()
  assert _shown(run, ".tree") == everything
  run.get_by_role("button", name="Unfold all").click()
  assert _shown(run, ".tree .finish") == everything
  run.get_by_role("button", name="Fold all", exact=True).click()
  assert _shown(run, ".tree .finish") == 0


def _select(page, what):
  return page.locator(f"select[data-what={what}]")


def _count(page):
  """Problems of the list: the number in its filters, which must be that of those to be seen."""
  words = page.locator(".filters output").inner_text()
  number = int(re.fullmatch(r"(\d+) problems?", words)[1])
  assert number == _shown(page, ".case")
  return number


def test_filters_show_the_traces_they_name(run):
  run.evaluate("document.querySelectorAll('.case').forEach(d => { d.open = true; })")
  everything, verdict = _count(run), _select(run, "verdict")
  verdict.select_option("wrong")
  assert 0 < _count(run) < everything
  assert _shown(run, ".side") == _shown(run, ".side[data-verdict=wrong]") > 0
  _select(run, "arm").select_option(label="gen_ssd")
  gen_ssd = _select(run, "arm").input_value()
  assert _shown(run, ".side") == _shown(run, f".side[data-arm='{gen_ssd}']") == _count(run) > 0
  _select(run, "stop").select_option("pruned")
  assert _count(run) == 0
  verdict.select_option("")
  assert _shown(run, ".side") == _shown(run, ".side[data-stop=pruned]") == _count(run) > 0


def test_two_arms_are_compared_where_their_verdicts_differ(run):
  run.evaluate("document.querySelectorAll('.case').forEach(d => { d.open = true; })")
  everything = _count(run)
  _select(run, "first").select_option(label="gen_ssd")
  assert _count(run) == everything
  _select(run, "second").select_option(label="standard_kd")
  assert 0 < _count(run) < everything and _shown(run, ".side") == 2 * _count(run)
  for case in run.locator(".case:visible").all():
    one, other = (
      side.get_attribute("data-verdict") for side in case.locator(".side:visible").all()
    )
    assert one != other


def test_a_folded_problem_names_the_verdict_of_every_arm_and_opens(run):
  case = run.locator(".case:not([open])").first
  assert case.locator(".tally").count() == 4 and case.locator(".title").is_visible()
  assert not case.locator(".sides").is_visible()
  case.locator("summary").first.click()
  opened = run.locator(".case[open]").nth(3)
  assert opened.locator(".sides").is_visible() and not opened.locator(".title").is_visible()


def test_a_page_of_10_000_traces_opens_and_filters(browser, paths):
  with browser_lib.opened(browser, paths["many"], 390, "light") as (page, said):
    assert "of 10,000 traces" in page.locator("main").inner_text()
    everything = _count(page)
    _select(page, "verdict").select_option("wrong")
    sync_api.expect(page.locator(".filters output")).not_to_have_text(
      f"{everything} problems", timeout=5000
    )
    assert 0 < _count(page) < everything and said == []
