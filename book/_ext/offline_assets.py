"""Sphinx extension: a page of the book asks nothing outside the machine.

Sphinx and MyST-NB point at CDNs for MathJax, require.js, the widget manager and anywidget. Here they come from
node_modules, whose versions the lock file pins, and from anywidget's own Python package. They are staged outside
book/_static because Jupyter Book puts every script found there into every page. A missing file stops the build: a
page that works only with a network would look right to whoever builds it.
"""

import shutil
from pathlib import Path

import anywidget
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

NODE_MODULES = Path(__file__).parents[2] / "node_modules"
HTML_MANAGER = "@jupyter-widgets/html-manager/dist"

ANYWIDGET = Path(anywidget.__file__).parent / "nbextension" / "index.js"

# From node_modules (files, folders or patterns) → folder under _static/vendor.
ASSETS = {
    "mathjax/es5/tex-mml-chtml.js": "mathjax",
    "mathjax/es5/input/tex/extensions": "mathjax/input/tex",
    "mathjax/es5/output/chtml/fonts": "mathjax/output/chtml",
    "requirejs/require.js": "",
    f"{HTML_MANAGER}/embed-amd.js": "html-manager",
    f"{HTML_MANAGER}/*.woff2": "html-manager",
}

# The widget manager's fonts are relative to its modules; ipywidgets still speaks to MathJax 2's Hub.
REQUIRE_CONFIG = """\
const vendor = (document.documentElement.dataset.content_root || "./") + "_static/vendor/";
requirejs.config({paths: {
  "@jupyter-widgets/html-manager": vendor + "html-manager/index",
  "@jupyter-widgets/html-manager/dist": vendor + "html-manager",
  "anywidget": vendor + "anywidget/index",
}});
window.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && !MathJax.Hub)
    MathJax.Hub = {Queue: (call) => call && call[2] && MathJax.typesetPromise?.([call[2]])};
});
"""


def stage(folder: Path) -> None:
    """Copy the assets to `folder`/vendor, afresh."""
    shutil.rmtree(folder, ignore_errors=True)
    vendor = folder / "vendor"
    for pattern, target in ASSETS.items():
        sources = sorted(NODE_MODULES.glob(pattern))
        if not sources:
            raise ExtensionError(f"node_modules/{pattern} is missing; fetch it with: .venv/bin/npm ci")
        (vendor / target).mkdir(parents=True, exist_ok=True)
        for source in sources:
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, vendor / target / source.name)
    (vendor / "anywidget").mkdir()
    shutil.copy(ANYWIDGET, vendor / "anywidget")
    (vendor / "require-config.js").write_text(REQUIRE_CONFIG, encoding="utf8")


def use_staged_assets(app: Sphinx, config: Config) -> None:
    staged = Path(app.outdir).parent / "offline_static"
    stage(staged)
    config.html_static_path.append(str(staged))
    config.mathjax_path = "vendor/mathjax/tex-mml-chtml.js"
    config.nb_ipywidgets_js = {
        "vendor/require.js": {},
        "vendor/require-config.js": {},
        # A widget whose code is not staged must fail here, not be fetched from a CDN.
        "vendor/html-manager/embed-amd.js": {"data-jupyter-widgets-cdn": "/_static/vendor/missing/"},
    }


def drop_thebe(app, pagename, templatename, context, doctree) -> None:
    """Jupyter Book always loads sphinx-thebe, whose script comes from a CDN and is not used here."""

    def is_thebe(script) -> bool:
        text = f"{script.filename or ''} {script.attributes.get('body') or ''}"
        return "thebe" in text.lower()

    scripts = context.get("script_files", [])
    context["script_files"] = [script for script in scripts if not is_thebe(script)]


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", use_staged_assets, priority=900)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
