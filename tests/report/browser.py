"""Pages in a headless Chromium, at the widths and in the colours that readers have.

python -m tests.report.browser FOLDER [PAGE ...] draws pages as pictures: those of made_pages.py, or
the files that are named. A picture is at most 1500 pixels high; their numbers go down the page.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil
import sys
import tempfile

from playwright import sync_api

from tests.report import made_pages

NAMES = ("chromium", "chromium-browser", "google-chrome")
SCREENS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
HEIGHT = 1500  # of a picture


def found() -> str | None:
  """The path of the machine's Chromium, if it has one."""
  return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def started() -> Iterator[sync_api.Browser]:
  """The machine's Chromium, without a window."""
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=found())
    yield browser
    browser.close()


@contextlib.contextmanager
def opened(
  browser: sync_api.Browser, path: pathlib.Path, width: int, scheme: str
) -> Iterator[tuple[sync_api.Page, list[str]]]:
  """A file in a window of its own, and what it says to the console or asks the network for."""
  context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
  context.set_default_timeout(10_000)
  page, said = context.new_page(), []
  page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
  page.on("pageerror", lambda error: said.append(f"error: {error}"))
  page.on("request", lambda request: said.append(f"request: {request.url}"))
  page.goto(path.resolve().as_uri())
  said.remove(f"request: {path.resolve().as_uri()}")
  yield page, said
  context.close()


def _pictures(folder, paths):
  with started() as browser:
    for path in paths:
      for width, scheme in SCREENS:
        with opened(browser, path, width, scheme) as (page, said):
          page.set_viewport_size({"width": width, "height": HEIGHT})
          height = page.evaluate("document.documentElement.scrollHeight")
          for number, top in enumerate(range(0, height, HEIGHT)):
            page.evaluate(f"scrollTo(0, {top})")
            page.screenshot(path=folder / f"{path.stem}-{width}-{scheme}-{number:02d}.png")
          print(f"{path.name} {width} {scheme}: {number + 1} pictures", *said, sep="\n  ")


def main() -> None:
  """The command."""
  if len(sys.argv) < 2 or not found():
    sys.exit(__doc__ if found() else f"There is no Chromium: none of {', '.join(NAMES)}")
  out, *paths = map(pathlib.Path, sys.argv[1:])
  out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as home:
    if not paths:
      makers = (made_pages.run, made_pages.hard, made_pages.sweep)
      for make in makers:
        (folder := pathlib.Path(home) / make.__name__).mkdir()
        paths.append(make(folder).rename(folder / f"{make.__name__}.html"))
      paths += sorted(pathlib.Path(home).glob("sweep/*.svg"))
    _pictures(out, paths)


if __name__ == "__main__":
  main()
