"""Sphinx: the notebooks from their stored outputs, README and the library's docstrings."""

import json
import os
import re
import tomllib
from pathlib import Path

ROOT = Path(os.environ["VIXLIB_CHECKOUT"])
NOTE = json.loads((ROOT / "site" / "node_modules" / "mathjax" / "package.json").read_text())
_project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_address = _project["urls"]["Repository"]

project, author, copyright = "vixlib", "The vixlib authors", "the vixlib authors; MIT licence"
version = release = _project["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}
nb_execution_mode = "off"  # outputs are those that are committed
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "sphinx_book_theme"
html_title = "vixlib"
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}  # its menu would load more
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if not _address.endswith(".invalid/vixlib"):  # `make address` has been called
    html_theme_options |= {
        "repository_url": _address,
        "path_to_docs": "",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }


def setup(app):
    """Docstrings are plain text: a norm |x| and *arguments are no markup."""

    def escape(app, what, name, thing, options, lines):
        lines[:] = [re.sub(r"([|*])", r"\\\1", line) for line in lines]

    app.connect("autodoc-process-docstring", escape)
