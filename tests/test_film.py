"""The page with the whole model: its length, its drawings, and its film."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import dataflow  # noqa: E402
import film  # noqa: E402

FILM = (ROOT / "nbs/images/film.js").read_text(encoding="utf-8")
DATA = json.loads(re.search(r"const DATA = (\{.*\});\n", FILM).group(1))


def cells(page: str) -> list[dict]:
    return json.loads((ROOT / f"nbs/{page}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_the_page_shows_less_than_200_lines_of_code():
    shown, folded = [], False  # a callout that is closed at first holds an exercise's answer
    for cell in cells("gmvae_200"):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            folded = [folded, *re.findall(r'(?m)^:::(.*collapse="true")?', text)][-1]
        elif not folded and "code-fold: true" not in text:
            shown += text.split("\n")
    assert 100 < len(shown) < 200


def test_the_drawing_is_what_its_script_draws():
    assert dataflow.TARGET.read_text(encoding="utf-8") == dataflow.picture()


def test_formulas_and_drawing_share_their_colours():
    text = "".join("".join(c["source"]) for c in cells("gmvae_200"))
    used = set(re.findall(r"\\textcolor\{(#\w+)\}", text))
    assert used and used <= set(dataflow.COLOURS.values())


def test_the_site_colours_the_letters_of_other_pages_alike():
    script = (ROOT / "nbs/after_body.html").read_text(encoding="utf-8")
    letters = re.findall(r'(\w): "(#\w+)"', script)
    of = dataflow.COLOURS | dict(γ=dataflow.COLOURS["z"], μ=dataflow.COLOURS["p"])
    of["σ"] = of["μ"]
    assert {letter for letter, _ in letters} == set("xwzyγμσ")
    assert all(colour == of[letter] for letter, colour in letters)


def test_the_film_is_small_and_asks_for_nothing():
    assert len(FILM.encode()) < 1e6
    player = FILM.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|fetch\(|XMLHttp|import\(|@import|url\(", player)
    assert FILM.isascii()  # whatever the page says of its encoding


def test_film_and_figures_have_one_palette():
    assert len(set(film.COLOURS)) == 8
    assert f"const COLOURS = {json.dumps(film.COLOURS)};" in FILM
    drawn = set(re.findall(r"#[0-9a-f]{6}", film.PICTURE.read_text(encoding="utf-8")))
    assert set(film.COLOURS[:6]) <= drawn


def test_every_setting_of_the_switches_has_a_film_of_real_runs():
    of_film = [s for s in film.plan() if s[0] == 0 and s[6] == 2]
    assert set(DATA["films"]) == {"/".join(map(str, s[1:6])) for s in of_film}
    assert set(DATA["story"]) <= set(DATA["films"])
    with film.CSV.open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == len(film.plan())
    for row in rows:
        if (row["seed"], row["n"]) == ("0", "2"):
            lam = "0" if row["lam"] == "0" else "1"
            key = "/".join([row["K"], row["reach"], row["start"], row["bound"], lam])
            half, *frames = DATA["films"][key]
            assert half > 0 and len(frames) == len(DATA["steps"])
            # all cells at draws there, a thousand at their means here, one step earlier
            assert abs(frames[-1][2] - float(row["K_eff"])) < 0.35 * float(row["K"])


def test_a_frame_is_packed_without_loss_but_for_rounding():
    frame = dict(
        x=[[0.5, -1.0], [1.0, 0.25]],
        own=[3, 15],
        means=[[0.5, -0.5]],
        inner=[[0.1, 0.2]],
        outer=[[0.3, 0.4]],
        K_eff=2.345,
        ari=0.678,
    )
    half, (of_cells, parts, usage, ari) = film.packed([frame])
    assert (usage, ari, len(of_cells), len(parts)) == (2.3, 0.68, 6, 12)

    def whole(text: str) -> int:
        value = 0
        for digit in text:
            value = 64 * value + film.DIGITS.index(digit)
        return value

    for i, (place, own) in enumerate(zip(frame["x"], frame["own"])):
        bits = whole(of_cells[3 * i : 3 * i + 3])
        assert bits & 15 == own
        for v, packed in zip(place, (bits >> 11, bits >> 4 & 127)):
            assert abs((packed / 127 - 0.5) * 2 * half - v) <= half / 127
    numbers = [whole(parts[i : i + 2]) / 4095 for i in range(0, 12, 2)]
    assert numbers[0] == pytest.approx(0.5 + 0.5 / half / 4, abs=1e-3)
    assert numbers[2] == pytest.approx(0.1 / half / 2, abs=1e-3)


# enough of a document for the player, which then runs as in a browser
DOCUMENT = """
class E {
  constructor(name) {
    Object.assign(this, { name, children: [], on: {}, at: {}, classList: { add() {} } });
  }
  setAttribute(k, v) { this.at[k] = String(v); }
  append(...c) { this.children.push(...c); }
  replaceChildren(...c) { this.children = c; }
  addEventListener(k, f) { this.on[k] = f; }
}
const root = new E("div");
const all = (e) => [e].concat(...(e.children || []).map(all)).filter((e) => e.name);
globalThis.document = { readyState: "complete", querySelectorAll: () => [root],
  createElement: (n) => new E(n), createElementNS: (_, n) => new E(n) };
let next = null; // the frame that was asked for
globalThis.requestAnimationFrame = (f) => { next = f; return 1; };
globalThis.cancelAnimationFrame = () => { next = null; };
globalThis.matchMedia = () => ({ matches: false });
"""
PLAYED = """
const find = (name) => all(root).filter((e) => e.name === name);
const said = () => find("output")[0].textContent;
const out = [said()];
const steps = find("button").filter((b) => "aria-pressed" in b.at);
steps[5].on.click(); out.push(said());
const slider = find("input")[0];
slider.value = "0"; slider.on.input(); out.push(said(), slider.at["aria-valuetext"]);
const menu = find("select").find((s) => s.at.name === "bound");
menu.value = "paper"; menu.on.change(); out.push(said());
const play = find("button").find((b) => !("aria-pressed" in b.at));
play.on.click();
let milliseconds = 0;
for (; next && milliseconds < 60000; milliseconds += 100) {
  const f = next;
  next = null;
  f(milliseconds);
}
out.push(said(), String(milliseconds));
out.push(String(find("circle").length), String(steps.length));
console.log(JSON.stringify(out));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_film_is_operated():
    run = subprocess.run(
        ["node", "-"], input=DOCUMENT + FILM + PLAYED, capture_output=True, text=True, check=True
    )
    first, cured, start, when, changed, played, milliseconds, *rest = json.loads(run.stdout)
    assert first.startswith("1 the recipe, after 319 mini-batches")
    assert cured.startswith("6 no w at all, after 319 mini-batches")
    usage = [float(re.search(r"components ([\d.]+) of 8", text)[1]) for text in (first, cured)]
    assert usage[0] < 6 < usage[1]
    assert "after 0 mini-batches" in start and when == "after 0 mini-batches"
    assert changed.startswith("your own settings")
    assert "after 319 mini-batches" in played and 5000 < int(milliseconds) < 9000
    assert rest == [str(160 * 7), "6"]


def test_links_into_the_glossary_find_their_entry():
    text = "".join("".join(c["source"]) for c in cells("glossary"))
    anchors = {
        re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))
        for title in re.findall(r"(?m)^### (.+)$", text)
    }
    pages = [p.stem for p in (ROOT / "nbs").glob("*.ipynb")]
    asked = {
        anchor
        for page in pages
        for cell in cells(page)
        for anchor in re.findall(r"\]\(glossary\.ipynb#([\w-]+)\)", "".join(cell["source"]))
    }
    assert len(asked) > 10 and asked <= anchors
