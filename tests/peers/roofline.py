"""The roofline of Kimi Delta Attention's prefill, as docs/kda-roofline.svg.

    python3 tests/peers/roofline.py

Reads tests/results: h100.json (ours), h100-peers.json (peers, and the two roofs: the rate of a copy, the best rate of
cuBLAS in bf16), h100-kda-kernels.json (the two kernels alone, from a profiler). Needs the standard library only.

FLOP are those that `lab bench` counts, for T tokens of H heads of D, whoever computes them and however:
2·T·H·(3·D² + 2·64·D): what is read of the state at k and at q and written into it (D² each), and in chunks of 64 the
lower triangles of A and P (64·D together) and the product with P (64·D). A and P are kda_chunk's, the rest kda_state's;
the inverse and what it is multiplied with are not counted. Bytes are the least: for the whole the inputs, outputs and states, each once; for a
kernel also what the two hand over through memory.
"""
import json
import math
import re
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 64
OURS = 32  # tokens in a chunk of our kernels, which matter for what they hand over
WIDTH, HEIGHT = 800, 470
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 20, 52
X, Y = (4, 1000), (8, 1200)  # FLOP/byte, TFLOP/s

STYLE = """
  svg { --ink: #1f2328; --muted: #59636e; --grid: #d1d9e0; --ours: #0969da; --peer: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6edf3; --muted: #9198a1; --grid: #3d444d; --ours: #58a6ff; --peer: #f0883e; }
  }
  text { font: 13px system-ui, sans-serif; fill: var(--ink); }
  .muted { fill: var(--muted); }
  .grid { stroke: var(--grid); stroke-width: 1; }
  .roof { stroke: var(--ink); stroke-width: 2; fill: none; }
  .ours { fill: var(--ours); }
  .peer { fill: var(--peer); }
"""


def read(name):
    return json.loads((ROOT / "tests/results" / name).read_text())


def kernels(case, flops):
    """(FLOP, bytes) of each kernel; with activations of 2 bytes."""
    t, h, d = map(int, re.search(r"_b1_t(\d+)_h(\d+)_d(\d+)$", case).groups())
    activation, handed_over = 2 * t * h * d, 2 * t * h * (3 * d + OURS) + 4 * t // OURS * h * (d + 2 * OURS)
    chunk = 2 * t * h * CHUNK * d
    return {
        "kda_chunk": (chunk, 3 * activation + 2 * t * h + handed_over),
        "kda_state": (flops - chunk, 2 * activation + handed_over + 8 * h * d * d),
    }


def x_at(intensity):
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log(intensity / X[0]) / math.log(X[1] / X[0])


def y_at(rate):
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(rate / Y[0]) / math.log(Y[1] / Y[0])


def ticks(low, high):
    return [n for e in range(5) for m in (1, 2, 5) if low <= (n := m * 10**e) <= high]


def text(x, y, words, anchor="start", kind=""):
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def axes():
    for n in ticks(*X):
        x = x_at(n)
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>'
        yield text(x, HEIGHT - BOTTOM + 18, str(n), "middle", "muted")
    for n in ticks(*Y):
        y = y_at(n)
        yield f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
        yield text(LEFT - 8, y + 4, str(n), "end", "muted")
    yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "arithmetic intensity, FLOP per byte; percentages are of the roof above a point", "middle", "muted")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield f'<g transform="rotate(-90 16 {middle})">' + text(16, middle, "TFLOP/s", "middle", "muted") + "</g>"


def roofs(memory, tensor):
    """memory in TB/s, tensor in TFLOP/s."""
    ridge = tensor / memory
    low = max(X[0], Y[0] / memory)
    points = [(low, low * memory), (ridge, tensor), (X[1], tensor)]
    yield '<polyline class="roof" points="' + " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points) + '"/>'
    yield text(WIDTH - RIGHT - 4, y_at(tensor) - 8, f"tensor cores, cuBLAS bf16: {tensor:.0f} TFLOP/s", "end")
    x, y = x_at(14), y_at(14 * memory)
    slope = math.degrees(math.atan2(y_at(10 * memory) - y_at(100 * memory), x_at(100) - x_at(10)))
    yield f'<g transform="rotate({-slope:.1f} {x:.1f} {y:.1f})">'
    yield text(x, y - 8, f"memory, a copy: {memory:.2f} TB/s") + "</g>"


def point(name, us, flops, moved, kind, memory, tensor):
    rate, intensity = flops / us / 1e6, flops / moved
    share = rate / min(tensor, intensity * memory)
    x, y = x_at(intensity), y_at(rate)
    words = f"{name}: {us:,.0f} µs, {rate:.0f} TFLOP/s, {100 * share:.0f} %"
    if kind == "ours":
        yield f'<circle class="ours" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        yield text(x + 10, y + 4.5, words)
    else:
        yield f'<path class="peer" d="M{x:.1f},{y - 6:.1f}l6,6l-6,6l-6,-6z"/>'
        yield text(x - 10, y + 4.5, words, "end")


def main():
    ours, peers, alone = read("h100.json")["rows"], read("h100-peers.json")["rows"], read("h100-kda-kernels.json")
    memory = max(r["bytes"] / r["us"] for r in peers if r["case"].startswith("copy/")) / 1e6
    tensor = max(r["flops"] / r["us"] for r in peers if r["case"].startswith("gemm/bf16")) / 1e6
    case = alone["case"]
    whole = next(r for r in ours if r["case"] == case)
    counts = kernels(case, whole["flops"])
    dots = [("the whole prefill", whole["us"], whole["flops"], whole["bytes"], "ours")]
    dots += [(r["kernel"], r["us"], *counts[r["kernel"]], "ours") for r in alone["rows"]]
    for r in peers:
        # FlashKDA has the bounded gate only.
        if (r["peer"], r["case"]) in [("fla", case), ("flash_kda", case.replace("softplus", "bounded"))]:
            name = {"fla": "fla", "flash_kda": "FlashKDA"}[r["peer"]]
            dots.append((name, r["us"], r["flops"], r["bytes"], "peer"))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>Roofline of {escape(case)} on one H100</title>",
        f"<style>{STYLE}</style>",
        *axes(),
        *roofs(memory, tensor),
        *(line for dot in dots for line in point(*dot, memory, tensor)),
        "</svg>",
    ]
    (ROOT / "docs/kda-roofline.svg").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
