"""Train the models of the film on nbs/gmvae_200.ipynb, and pack what they did.

python tools/film.py           trains (some ten minutes of one core), then packs
python tools/film.py --pack    packs again what was trained

A run that is finished is not done again; a second process may begin at the end (--last-first).

The code of the page itself is run, up to its training loop. Every setting of the film's switches
is trained from seed 0 in two dimensions; the story and the sizes are trained from three seeds.
Runs are kept in _runs/film; final values of all go to nbs/film.csv, the frames to
nbs/images/film.js, and the ends of the story to nbs/images/film.svg.
"""

import csv
import json
import math
import sys
from itertools import product
from pathlib import Path

from matplotlib import rc_params_from_file

ROOT = Path(__file__).parents[1]
PAGE, CSV = ROOT / "nbs/gmvae_200.ipynb", ROOT / "nbs/film.csv"
RUNS, PLAYER = ROOT / "_runs/film", ROOT / "tools/film_player.js"
FILM, PICTURE = ROOT / "nbs/images/film.js", ROOT / "nbs/images/film.svg"
LAST_CELL = "g200-usage"  # of the page's code that the film needs

FAR = math.sqrt(80 / 2)  # two components are as far apart as in 80 dimensions
KS, BOUNDS, LAMS = (8, 16, 4), ("paper", "exact"), (0, 1)  # lambda: 0, or log K
REACH = {"far": FAR, "near": 1.0, "offsets": 0.01, "off": 0.0}
START = {
    "random": {},
    "data": dict(place_at=0),
    "warm-up": dict(place_at=2, warm_up=4),
}
STORY = [  # reach, start, bound: one more ingredient each
    ("far", "random", "paper"),
    ("far", "data", "paper"),
    ("far", "data", "exact"),
    ("far", "warm-up", "exact"),
    ("offsets", "warm-up", "exact"),
    ("off", "warm-up", "exact"),
]
NAMES = [
    "1 the recipe",
    "2 + centres from the data",
    "3 + exact bound",
    "4 + warm-up",
    "5 + small offsets for w",
    "6 no w at all",
]
LOOK = rc_params_from_file(ROOT / "nbs/matplotlibrc", use_default_template=False)
COLOURS = [c.lower() for c in LOOK["axes.prop_cycle"].by_key()["color"]]
SIZES, SEEDS = (2, 10, 30, 80), (0, 1, 2)
STEPS = (0, 10, 30, 62, 100, 160, 230, 319)  # mini-batches before each frame
SHOWN, WATCHED = 160, 1000  # cells that are drawn, and that are counted


def page_code() -> dict:
    "The names that the page defines up to its training loop."
    names: dict = {}
    for cell in json.loads(PAGE.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and "check" not in cell["id"]:
            exec("".join(cell["source"]), names)
        if cell["id"] == LAST_CELL:
            return names
    raise ValueError(f"{PAGE.name} has no cell {LAST_CELL}")


class Camera:
    "Takes a frame of a model at each of STEPS."

    def __init__(self, page: dict):
        torch = self.torch = page["torch"]
        order = torch.randperm(page["N"], generator=torch.Generator().manual_seed(0))
        self.cells = order[:WATCHED]
        self.y, self.size = page["y"][self.cells], page["size"][self.cells]
        self.types = page["adata"].obs["cell_type"].to_numpy()[self.cells]
        self.page, self.step, self.frames = page, 0, []

    def __call__(self, model):
        if self.step in STEPS:
            with self.torch.no_grad():
                self.frames.append(self.frame(model))
        self.step += 1

    def frame(self, model) -> dict:
        "At the means of q(x|y) and q(w|y): cells, their components, and where those are."
        torch, page = self.torch, self.page
        x, _, w, _ = model.encode(self.y, self.size)
        means, log_stds = model.components(w)  # (cells, K, 2)
        gamma = page["log_normal"](x.unsqueeze(-2), means, log_stds).softmax(-1)
        own = gamma.argmax(-1)
        inner = log_stds.mean(0).exp()
        outer = (inner**2 + means.var(0)).sqrt()  # and where w takes it
        usage = torch.special.entr(gamma.mean(0)).sum().exp().item()
        return dict(
            x=x[:SHOWN].tolist(),
            own=own[:SHOWN].tolist(),
            means=means.mean(0).tolist(),
            inner=inner.tolist(),
            outer=outer.tolist(),
            K_eff=usage,
            ari=page["adjusted_rand_score"](self.types, own),
        )


def run(page: dict, seed: int, K: int, reach: str, start: str, bound: str, lam: int, n: int):
    "One training: its row of film.csv, and its frames if it is of the film."
    camera = Camera(page) if seed == 0 and n == 2 else None
    settings = dict(K=K, reach=REACH[reach], bound=bound, lam=lam * math.log(K), **START[start])
    model = page["train"](seed=seed, watch=camera, n_x=n, n_w=n, **settings)
    row = dict(n=n, K=K, reach=reach, start=start, bound=bound, lam=["0", "log K"][lam], seed=seed)
    row |= {name: round(v, 4) for name, v in page["look"](model, bound).items()}
    return row, camera.frames if camera else None


def plan() -> list[tuple]:
    "Settings of every run: the story and the sizes first, then the film, one K after the other."
    near = [("near", "random", "paper"), ("near", "warm-up", "exact")]
    runs = [(seed, 8, *of, 0, 2) for seed in SEEDS for of in STORY]
    runs += [(seed, 8, *of, 0, n) for seed in SEEDS for of in near for n in SIZES]
    films = product(KS, REACH, START, BOUNDS, LAMS)
    return list(dict.fromkeys(runs + [(0, K, r, s, b, lam, 2) for K, r, s, b, lam in films]))


def train_all(last_first: bool) -> None:
    "Every run that has no file in _runs/film yet; another process may work from the other end."
    page, runs = page_code(), plan()
    RUNS.mkdir(parents=True, exist_ok=True)
    for number, settings in enumerate(reversed(runs) if last_first else runs):
        file = RUNS / ("-".join(map(str, settings)) + ".json")
        if file.exists():
            continue
        row, frames = run(page, *settings)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(dict(row=row, frames=frames)))
        part.replace(file)
        print(f"{number + 1} of {len(runs)}", row, flush=True)
    camera = Camera(page)
    about = dict(
        types=list(camera.types[:SHOWN]), batch=page["batch"][camera.cells][:SHOWN].tolist()
    )
    (RUNS / "cells.json").write_text(json.dumps(about))


# --- the frames as text ---------------------------------------------------------------------------
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def digits(value: float, n: int) -> str:
    "A number from 0 to 1 as n digits of base 64; what is outside is moved to the border."
    top = 64**n - 1
    whole = min(max(round(value * top), 0), top)
    return "".join(DIGITS[whole // 64**i % 64] for i in reversed(range(n)))


def packed(frames: list[dict]) -> list:
    "Half the width of the view, and of each frame: cells, components, K_eff, ARI."
    import numpy as np

    places = np.abs(np.array([f["x"] for f in frames]))  # (frames, cells, 2)
    half = 1.1 * max(np.quantile(p, 0.99) for p in places)
    out = [round(float(half), 3)]
    for f in frames:
        cells = ""
        for (x, y), k in zip(f["x"], f["own"]):  # 3 digits: 7 bits of x and y, 4 of k
            bits = [round(127 * min(max(0.5 + v / half / 2, 0), 1)) for v in (x, y)]
            whole = (bits[0] * 128 + bits[1]) * 16 + k
            cells += "".join(DIGITS[whole // 64**i % 64] for i in (2, 1, 0))
        parts = ""
        for mean, inner, outer in zip(f["means"], f["inner"], f["outer"]):
            parts += "".join(digits(0.5 + v / half / 4, 2) for v in mean)  # up to twice the view
            parts += "".join(digits(v / half / 2, 2) for v in (*inner, *outer))
        out.append([cells, parts, round(f["K_eff"], 1), round(f["ari"], 2)])
    return out


def drawing(ends: list[list[dict]]) -> str:
    "The last frames of the story as SVG, three by two: what is seen where no script runs."
    side, parts = 150, []
    for i, (name, frames) in enumerate(zip(NAMES, ends)):
        last, half = frames[-1], packed(frames)[0]
        scale = side / 2 / half
        left, top = 10 + i % 3 * (side + 10), 26 + i // 3 * (side + 40)
        shapes = []
        for k, (mean, std) in enumerate(zip(last["means"], last["inner"])):
            c = COLOURS[k % 8] if k in last["own"] else "#bbbbbb"
            x, y, rx, ry = (scale * v for v in (*mean, 1.5 * std[0], 1.5 * std[1]))
            shapes.append(
                f'<ellipse cx="{x:.1f}" cy="{-y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}" '
                f'fill="{c}" fill-opacity=".1" stroke="{c}"/>'
            )
        for (x, y), k in zip(last["x"], last["own"]):
            at = f'cx="{x * scale:.1f}" cy="{-y * scale:.1f}" r="1.8"'
            shapes.append(f'<circle {at} fill="{COLOURS[k % 8]}"/>')
        score = f"K_eff {last['K_eff']:.1f}, ARI {last['ari']:.2f}"
        parts.append(
            f'<g transform="translate({left} {top})"><text x="0" y="-8">{name}</text>'
            f'<text x="0" y="{side + 13}" fill="#555555">{score}</text>'
            f'<svg width="{side}" height="{side}" viewBox="{-side / 2} {-side / 2} {side} {side}">'
            f'{"".join(shapes)}</svg><rect width="{side}" height="{side}" fill="none" '
            'stroke="#aaaaaa"/></g>'
        )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 490 400" width="612" height="500" '
        'font-family="sans-serif" font-size="11" fill="#222222">'
        f'<rect width="490" height="400" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def pack() -> None:
    "nbs/film.csv; nbs/images/film.js: the data, then the player; nbs/images/film.svg."
    rows, films, ends = [], {}, {}
    for settings in plan():
        done = json.loads((RUNS / ("-".join(map(str, settings)) + ".json")).read_text())
        rows.append(done["row"])
        if done["frames"]:
            films["/".join(map(str, settings[1:6]))] = packed(done["frames"])
            ends[settings[1:6]] = done["frames"]
    with CSV.open("w", newline="", encoding="utf-8") as f:
        table = csv.DictWriter(f, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    about = json.loads((RUNS / "cells.json").read_text(encoding="utf-8"))
    names = sorted(set(about["types"]))
    data = dict(
        Ks=sorted(KS),
        steps=STEPS,
        names=names,
        types="".join(str(names.index(t)) for t in about["types"]),
        batch="".join(map(str, about["batch"])),
        story=["/".join(map(str, (8, *of, 0))) for of in STORY],
        films=films,
    )
    PICTURE.write_text(drawing([ends[8, *of, 0] for of in STORY]), encoding="utf-8")
    text = json.dumps(data, separators=(",", ":"))
    head = "// made by tools/film.py from real runs: do not edit\n"
    player = PLAYER.read_text(encoding="utf-8")
    FILM.write_text(f"{head}(() => {{\nconst DATA = {text};\n{player}}})();\n", encoding="utf-8")
    print(f"{FILM.relative_to(ROOT)}: {FILM.stat().st_size / 1024:.0f} kB")


def main(words: list[str]) -> None:
    if words != ["--pack"]:
        train_all(words == ["--last-first"])
    pack()


if __name__ == "__main__":
    main(sys.argv[1:])
