"""How Sphinx builds the documentation: `make docs`.

Pages are Markdown that also reads well in a repository browser. What the code knows better than a page (options,
arguments, docstrings, schemas) is not written down twice: a comment `<!-- generated: PART ... -->` stands where
`generated.py` puts it.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import fate_gym

sys.path.insert(0, str(Path(__file__).parent))

import generated

project = "fate-gym"
author = "The fate-gym developers"
copyright = "The fate-gym developers, MIT licence"
version = release = fate_gym.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["schemas"]

myst_heading_anchors = 4
# Notebooks are committed without outputs; a real kernel runs them whenever the site is built.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_execution_raise_on_error = True
# Pages load nothing from elsewhere: without this a notebook would ask a content network for widgets.
nb_ipywidgets_js = {}

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
# Docstrings write code as Markdown does, between single backticks.
default_role = "literal"

html_theme = "furo"
html_theme_options = {name: {"code-font-size": "75%"} for name in ("light_css_variables", "dark_css_variables")}
html_title = f"fate-gym {release}"
html_copy_source = False
html_show_sphinx = False
# Summaries of hits would be fetched, which a browser refuses for pages on disk.
html_show_search_summary = False
copybutton_exclude = ".linenos, .gp"


def setup(app: Sphinx) -> None:
    """Puts generated parts into pages, and makes docstrings what Sphinx expects, before Sphinx reads either."""
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, generated.expand(source[0], name)))
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _escape, priority=400)


def _escape(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Escapes what is markup to Sphinx outside of code: authors of docstrings need not know it."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
        lines[number] = "`".join(parts)
