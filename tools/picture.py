"""Makes docs/assets/report.png: the first screen of a run's report, from headless Chromium.

python tools/picture.py RUN_FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from selenium import webdriver

OUT = Path(__file__).resolve().parent.parent / "docs" / "assets" / "report.png"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--hide-scrollbars", "--window-size=1280,1560",
)  # fmt: skip


def main(run: Path) -> None:
    """Writes the picture."""
    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            browser.get((run / "report.html").resolve().as_uri())
            OUT.parent.mkdir(parents=True, exist_ok=True)
            browser.save_screenshot(str(OUT))
        finally:
            browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
