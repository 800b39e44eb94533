"""Take the pictures of the web page that the documentation shows.

Starts `clinstack serve --ui` on the stacks that are named, visits it in the Chromium of this machine, predicts and asks
as a person would, and writes serving-page.png and serving-page-narrow.png::

    python scripts/screenshot_page.py runs/demo/finetune --label clinical-frozen+lora \
        --name instruct=runs/demo-instruct/instruct --out docs/images
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import running_browser, visiting

if TYPE_CHECKING:
    from browser import Visit

SECONDS = 180_000  # milliseconds of a browser's wait: a base may have to be loaded first


@contextmanager
def served(arguments: list[str], token: str) -> Iterator[str]:
    """Run the command on a free port; yields its address."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "clinstack", "serve", *arguments, "--ui", "--port", "0", "--state", state]
        environment = os.environ | {"CLINSTACK_TOKEN": token}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                print(line, end="", file=sys.stderr)
                if found := re.search(r"http://[\d.]+:\d+", line):
                    yield found.group()
                    return
            sys.exit("The server ended before it took requests.")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def use(visit: Visit, sample: str, question: int) -> None:
    """Choose a sample, ask the stack one of its questions, and predict."""
    page = visit.page
    page.wait_for_selector("#samples button", timeout=SECONDS)
    page.wait_for_selector("#workplace:not([hidden])", timeout=SECONDS)
    page.get_by_role("button", name=sample).click()
    if page.locator("#questions").is_visible():
        page.locator("#suggestions button").nth(question).click()
        page.locator("#ask").click()
        page.get_by_text("tokens read").nth(1).wait_for(timeout=SECONDS)
    if page.locator("#actions").is_visible():
        page.locator("#predict").click()
        page.wait_for_selector(".scores", timeout=SECONDS)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)


def main() -> None:
    """Read the command line and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="Stacks, Runs, or folders of Runs")
    parser.add_argument("--name", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--label", action="append", default=[], help="only Runs of this label")
    parser.add_argument("--sample", default="Pneumonia, ventilated")
    parser.add_argument("--question", type=int, default=1, help="which of its questions, from 0")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    token = secrets.token_urlsafe(32)
    arguments = [*options.folders]
    for key, values in (("--name", options.name), ("--stack", options.label)):
        for value in values:
            arguments += [key, value]
    with served(arguments, token) as address, running_browser() as browser:
        for width, scheme, name in ((1440, "light", "serving-page"), (360, "dark", "serving-page-narrow")):
            with visiting(browser, address, token, width=width, scheme=scheme) as visit:
                use(visit, options.sample, options.question)
                picture = options.out / f"{name}.png"
                if name == "serving-page":
                    visit.page.screenshot(path=picture, full_page=True)
                else:  # a phone shows the whole page in several screens; the predictions are one of them
                    visit.page.locator("#predictions").screenshot(path=picture)
                print(picture, *visit.complaints)


if __name__ == "__main__":
    main()
