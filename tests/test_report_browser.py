"""The report in a browser: headless Chromium, driven by a script in a copy of the page.

The script clicks and measures, and writes what it finds into the page, which Chromium
prints at the end. Skipped where there is no Chromium or Chrome.
"""

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from finished_runs import write_run
from made_up_experiments import LABELS, add, experiments

from invariance_jax import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed"
)

SCRIPT = """
addEventListener('load', () => {
  for (const folded of document.querySelectorAll('details')) folded.open = true;
  const images = [...document.images];
  const column = (table, index) =>
    [...table.tBodies[0].rows].map(row => row.cells[index].dataset.value);
  const sorted = [];
  for (const head of document.querySelectorAll('thead th')) {
    const table = head.closest('table'), index = head.cellIndex;
    const before = column(table, index), each = [];
    for (const direction of [0, 1]) {
      head.querySelector('button').click();
      each.push([head.getAttribute('aria-sort'), column(table, index)]);
    }
    sorted.push([head.textContent, before, ...each]);
  }
  const root = document.documentElement, style = getComputedStyle(document.body);
  const inside = box => box.closest('.scroll, pre, nav') === null;
  const wide = [...document.body.querySelectorAll('*')].filter(inside)
    .filter(box => box.getBoundingClientRect().right > root.clientWidth + 1);
  const found = {
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    images: images.map(image => [image.naturalWidth, image.currentSrc.slice(0, 22)]),
    shown: images.map(image => image.currentSrc.slice(-200)),
    sorted,
    overflow: root.scrollWidth - root.clientWidth,
    width: root.clientWidth,
    wide: wide.map(box => box.tagName),
    loaded: performance.getEntriesByType('resource').map(entry => entry.name)
      .filter(name => !name.startsWith('data:')),
    colors: [style.color, style.backgroundColor],
    faint: [...document.querySelectorAll('td.faint')].map(
      cell => getComputedStyle(cell).color),
  };
  const box = document.createElement('pre');
  box.id = 'findings';
  box.textContent = JSON.stringify(found);
  document.body.append(box);
});
"""


class Seen(NamedTuple):
    """What the script found, and the lines that the page wrote to the console."""

    found: dict[str, Any]
    console: list[str]


def look(page: Path, folder: Path, *, dark: bool, width: int) -> Seen:
    """Opens a copy of a page, without a network."""
    copy = folder / "copy.html"
    text = page.read_text()
    assert text.count("</body>") == 1
    copy.write_text(text.replace("</body>", f"<script>{SCRIPT}</script></body>"))
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={width},900",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    findings = re.search(r'<pre id="findings">(.*?)</pre>', done.stdout, re.DOTALL)
    assert findings, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(json.loads(html.unescape(findings.group(1))), console)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("single")
    found = experiments(2)
    for study in {*LABELS} - {"limits"}:
        del found[study]
    run = add(write_run(root / "run", seeds=2), found)
    return report.run([run], root / "out")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    found = experiments(2)
    kept = {name: found[name] for name in ("linearization", "limits")}
    long = "a_run_whose_name_is_long_" * 4
    first = add(write_run(root / long, seeds=2), kept)
    return report.run([first, write_run(root / "second", weight=0.0)], root / "out")


@pytest.fixture(scope="module", params=[True, False], ids=["dark", "light"])
def seen(
    request: pytest.FixtureRequest,
    single: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Seen:
    width = 1280 if request.param else 600
    folder = tmp_path_factory.mktemp("browser")
    found = look(single, folder, dark=request.param, width=width)
    assert found.found["dark"] == request.param
    return found


def luminance(color: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2 defines it."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", color)[:3]]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_the_console_stays_empty_and_nothing_is_loaded(seen: Seen) -> None:
    assert seen.console == []
    assert seen.found["loaded"] == []


def test_every_image_is_shown(seen: Seen) -> None:
    images = seen.found["images"]
    assert len(images) == 14
    assert all(
        width > 100 and source.startswith("data:image/png;base64")
        for width, source in images
    )


def test_images_follow_the_colour_scheme(seen: Seen, single: Path) -> None:
    text = single.read_text()
    attribute = "srcset" if seen.found["dark"] else "src"
    ends = re.findall(rf' {attribute}="data:[^"]*([^"]{{200}})"', text)
    assert seen.found["shown"] == ends


def as_number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def test_a_click_sorts_numbers_as_numbers_in_both_directions(seen: Seen) -> None:
    numeric = 0
    for head, before, first, second in seen.found["sorted"]:
        for (direction, values), sign in ((first, 1), (second, -1)):
            assert direction == ("ascending" if sign > 0 else "descending")
            assert sorted(values) == sorted(before), head
            filled = [value for value in values if value != ""]
            assert values == filled + [""] * (len(values) - len(filled)), head
            numbers = [as_number(value) for value in filled]
            if numbers and not any(map(math.isnan, numbers)):
                numeric += 1
                assert numbers == sorted(numbers, key=lambda x: sign * x), head
        texts = [[v for v in values if v != ""] for _, values in (first, second)]
        if len({*texts[0]}) == len(texts[0]):
            assert texts[0] == texts[1][::-1], head
    assert numeric > 100


def test_text_can_be_read(seen: Seen) -> None:
    text, background = seen.found["colors"]
    assert contrast(text, background) > 7
    assert (luminance(text) > luminance(background)) == seen.found["dark"]
    assert seen.found["faint"]
    assert all(contrast(color, background) > 4.5 for color in seen.found["faint"])


def test_nothing_is_wider_than_the_window(seen: Seen) -> None:
    assert seen.found["overflow"] <= 0
    assert seen.found["wide"] == []


@pytest.mark.parametrize("width", [600, 1600])
def test_a_comparison_with_a_long_name_fits_too(
    several: Path, tmp_path: Path, width: int
) -> None:
    found, console = look(several, tmp_path, dark=False, width=width)
    assert console == [] and found["overflow"] <= 0 and found["wide"] == []
    assert found["width"] > 0.9 * width
    assert all(natural > 100 for natural, _ in found["images"])
