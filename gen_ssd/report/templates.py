"""The templates of the pages."""

from pathlib import Path

import jinja2
from markupsafe import Markup
from markupsafe import escape

from gen_ssd.report import figures


def template(name: str) -> jinja2.Template:
  """The template NAME.html.jinja of this folder. It escapes what it is given but Markup."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["fixed"] = figures.fixed
  environment.filters["breakable"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))
  environment.globals["mark"] = figures.mark
  return environment.get_template(f"{name}.html.jinja")
