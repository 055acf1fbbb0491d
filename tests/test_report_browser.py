"""The report in a browser: headless Chromium, driven by a script in a copy of the page.

The script measures, and writes what it finds into the page, which Chromium prints at
the end. Skipped where there is no Chromium or Chrome.
"""

import html
import json
import re
import shutil
import subprocess

import pytest
from finished_runs import write_run

from invariance_jax import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
POLICY = "default-src 'none'"
FLAGS = """
    headless no-sandbox disable-gpu disable-dev-shm-usage hide-scrollbars dump-dom
    allow-file-access-from-files enable-logging=stderr virtual-time-budget=20000
"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed"
)

SCRIPT = """
addEventListener('load', () => {
  for (const folded of document.querySelectorAll('details')) folded.open = true;
  const root = document.documentElement, style = getComputedStyle(document.body);
  const wide = [...document.body.querySelectorAll('*')]
    .filter(box => box.closest('.scroll, pre') === null)
    .filter(box => box.getBoundingClientRect().right > root.clientWidth + 1);
  const canvas = document.createElement('canvas').getContext(
    '2d', {willReadFrequently: true});
  const pixel = image => {  // the first of a figure is its background
    canvas.drawImage(image, 0, 0);
    return [...canvas.getImageData(1, 1, 1, 1).data];
  };
  const found = {
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    images: [...document.images].map(image => [image.naturalWidth, pixel(image)[0]]),
    shrunk: [...document.images].map(image => image.width / image.naturalWidth),
    overflow: root.scrollWidth - root.clientWidth,
    width: root.clientWidth,
    wide: wide.map(box => box.tagName),
    loaded: performance.getEntriesByType('resource').map(entry => entry.name)
      .filter(name => !name.startsWith('data:')),
    colors: [style.color, style.backgroundColor],
    faint: [...document.querySelectorAll('p, .faint')].map(
      box => getComputedStyle(box).color),
  };
  const box = document.createElement('pre');
  box.id = 'findings';
  box.textContent = JSON.stringify(found);
  document.body.append(box);
});
"""


def look(page, folder, *, dark, width, policy):
    """Opens a copy of a page with the script; returns findings and console."""
    text = page.read_text(encoding="utf-8").replace(POLICY, policy)
    # A window of a headless browser is never as narrow as a phone.
    frame = f"<iframe style='border: 0' width={width} height=900 src=inner.html>"
    script = SCRIPT.replace("document.body.append", "top.document.body.append")
    (folder / "inner.html").write_text(
        text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
    )
    (folder / "outer.html").write_text(f"<!DOCTYPE html><body>{frame}</iframe>")
    done = subprocess.run(
        [
            str(BROWSER),
            *(f"--{flag}" for flag in FLAGS.split()),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={width + 100},1000",
            (folder / "outer.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    findings = re.search(r'<pre id="findings">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = json.loads(html.unescape(findings.group(1))) if findings else None
    return found, console


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    first = write_run(root / ("a_run_whose_name_is_long_" * 4), seeds=2)
    return report.run([first, write_run(root / "second", kind="images")], root / "out")


def contrast(*colors):
    """As WCAG 2 defines it, of two colours `rgb(r, g, b)`."""
    levels = []
    for color in colors:
        channels = [int(number) / 255 for number in re.findall(r"\d+", color)[:3]]
        linear = [
            c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
        ]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(levels) + 0.05) / (min(levels) + 0.05)


@pytest.mark.parametrize(("dark", "width"), [(True, 1280), (False, 360)])
def test_page_fits_the_screen_and_follows_the_colour_scheme(
    page, tmp_path, dark, width
):
    policy = f"{POLICY}; script-src 'unsafe-inline'"
    found, console = look(page, tmp_path, dark=dark, width=width, policy=policy)
    assert found and console == [] and found["loaded"] == []
    assert found["dark"] == dark and found["width"] == width
    assert found["overflow"] <= 0 and found["wide"] == []
    assert len(found["images"]) > 10
    for natural, red in found["images"]:
        assert natural > 100 and red == (0x17 if dark else 0xFE)
    # Letters of 12 pixels stay legible; a figure that is too wide scrolls in its box.
    assert min(found["shrunk"]) > 0.7
    assert contrast(*found["colors"]) > 7
    assert all(contrast(color, found["colors"][1]) > 4.5 for color in found["faint"])


def test_policy_of_the_page_stops_every_script(page, tmp_path):
    found, console = look(page, tmp_path, dark=False, width=800, policy=POLICY)
    assert found is None and any("Content Security Policy" in line for line in console)
