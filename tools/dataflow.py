"""Draw nbs/images/dataflow.svg: how a cell's counts become the four terms of its loss.

python tools/dataflow.py

Each symbol has the colour that it keeps in the formulas of nbs/gmvae_200.ipynb (COLOURS). The
picture is 380 wide, so that its text is still read on a telephone.
"""

from html import escape
from pathlib import Path

TARGET = Path(__file__).parents[1] / "nbs/images/dataflow.svg"
COLOURS = dict(x="#1f77d0", w="#c26a00", z="#008a5e", p="#c9488f", y="#8a63c9", n="#666666")
WIDTH, HEIGHT = 380, 560
TITLE = "Data flow of the GMVAE"
TEXT = (
    "The counts y go through the encoder to q(x|y) and q(w|y). Draws of w go through the prior "
    "network to K components. Draws of x meet the components and give the responsibilities gamma. "
    "Draws of x and the batch b go through the decoder to the parameters of the counts. The four "
    "terms are rec from the decoder and the counts, KL_z from gamma, cond from gamma, q(x|y) and "
    "the components, KL_w from q(w|y)."
)


def sub(text: str) -> str:
    "Text with _k as a subscript."
    parts = escape(text).split("_")
    low = "".join(
        f'<tspan dy="3" font-size="75%">{p[:1]}</tspan><tspan dy="-3">{p[1:] or "&#8203;"}</tspan>'
        for p in parts[1:]
    )
    return parts[0] + low


def box(x: int, y: int, w: int, name: str, shape: str, colour: str, net: bool = False) -> str:
    "A tensor (round, in its colour) or a network (square, grey) around the point x, y."
    c = COLOURS[colour]
    h = 40 if shape else 26
    face = (
        'fill="#f2f2f2" stroke="#999999"' if net else f'fill="{c}" fill-opacity=".1" stroke="{c}"'
    )
    corner = 2 if net else 10
    rect = (
        f'<rect x="{x - w // 2}" y="{y - h // 2}" width="{w}" height="{h}" rx="{corner}" {face}/>'
    )
    at = y - 3 if shape else y + 4
    style = 'font-style="italic"' if not net else ""
    text = f'<text x="{x}" y="{at}" fill="{c}" font-size="14" {style}>{sub(name)}</text>'
    if shape:
        text += f'<text x="{x}" y="{y + 13}" fill="#555555" font-size="11">{sub(shape)}</text>'
    return rect + text


def arrow(path: str, colour: str = "n", dashed: bool = False) -> str:
    c, dash = COLOURS[colour], ' stroke-dasharray="4 3"' if dashed else ""
    line = f'fill="none" stroke="{c}" stroke-width="1.6"{dash} marker-end="url(#h{colour})"'
    return f'<path d="{path}" {line}/>'


def note(x: int, y: int, text: str, anchor: str = "middle") -> str:
    style = f'fill="#555555" font-size="11" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {style}>{sub(text)}</text>'


def picture() -> str:
    heads = "".join(
        f'<marker id="h{k}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{c}"/></marker>'
        for k, c in COLOURS.items()
    )
    parts = [
        # arrows below boxes
        arrow("M190 48V70", "y"),
        arrow("M150 96L108 122", "x"),
        arrow("M230 96L272 122", "w"),
        arrow("M100 164V196", "x"),
        arrow("M282 164V196", "w"),
        arrow("M282 238V262", "w"),
        arrow("M282 288V312", "p"),
        arrow("M88 238V302", "x"),
        arrow("M30 285V300Q30 315 44 315", "n"),
        arrow("M74 328V362", "n"),
        arrow("M118 238C150 262 178 300 184 362", "x"),
        arrow("M236 340C212 346 204 352 198 362", "p"),
        arrow("M130 30H22Q10 30 10 42V452Q10 464 22 470L28 474", "y"),
        arrow("M74 404V470", "n"),
        arrow("M182 404L160 470", "z"),
        arrow("M204 404L234 470", "z"),
        arrow("M282 354C282 400 262 430 254 470", "p"),
        arrow("M336 143H356Q368 143 368 155V440Q368 452 352 470", "w"),
        # boxes
        box(190, 28, 120, "y", "counts (N, G)", "y"),
        box(190, 84, 130, "encoder", "", "n", net=True),
        box(100, 143, 112, "q(x|y)", "2 × (N, n_x)", "x"),
        box(282, 143, 108, "q(w|y)", "2 × (N, n_w)", "w"),
        box(100, 217, 112, "x", "(M, N, n_x)", "x"),
        box(282, 217, 108, "w", "(M, N, n_w)", "w"),
        box(282, 276, 116, "prior network", "", "n", net=True),
        box(282, 333, 118, "μ_k(w), σ_k(w)", "(M, N, K, n_x)", "p"),
        box(36, 271, 40, "b", "", "n"),
        box(88, 315, 84, "decoder", "", "n", net=True),
        box(74, 383, 96, "r, l", "(M, N, G)", "n"),
        box(190, 383, 96, "γ_k", "(M, N, K)", "z"),
        box(58, 491, 84, "rec", "log P(y)", "y"),
        box(150, 491, 84, "KL_z", "γ and 1/K", "z"),
        box(242, 491, 84, "cond", "γ, q(x), μ, σ", "p"),
        box(334, 491, 84, "KL_w", "q(w), N(0, I)", "w"),
        note(191, 184, "+ noise"),
        note(150, 354, "Bayes"),
        note(190, 545, "rec + KL_z + cond + KL_w = −ELBO, nats per cell"),
        '<path d="M16 518V524H364V518" fill="none" stroke="#999999"/>',
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH * 5 // 4}" height="{HEIGHT * 5 // 4}" role="img" aria-labelledby="t d" '
        'font-family="Georgia, \'DejaVu Serif\', serif" text-anchor="middle">'
        f'<title id="t">{TITLE}</title><desc id="d">{TEXT}</desc><defs>{heads}</defs>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
    print(TARGET.name, len(picture()) // 1024 + 1, "kB")
