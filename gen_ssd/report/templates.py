"""The templates of the pages."""

from pathlib import Path
import re

import jinja2
from markupsafe import Markup
from markupsafe import escape

from gen_ssd.report import figures
from gen_ssd.report import latex

BREAKS = re.compile(r"([_,=])")  # a long name may be broken after one of these


def template(name: str, formulas: str = "text") -> jinja2.Template:
  """The template NAME.html.jinja of this folder. It escapes what it is given but Markup.

  `formulas` says how its filter of that name shows LaTeX: as text or as mathml.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["fixed"] = figures.fixed
  environment.filters["breakable"] = lambda name: Markup(BREAKS.sub(r"\1<wbr>", str(escape(name))))
  environment.filters["formulas"] = latex.drawn if formulas == "mathml" else escape
  environment.globals["mark"] = figures.mark
  return environment.get_template(f"{name}.html.jinja")
