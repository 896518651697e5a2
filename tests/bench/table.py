"""What was found, as Markdown and as a picture."""

from html import escape

from lab import OURS, PROFILED

PALETTE = {OURS: "#1a7f37", PROFILED: "#4ac26b", "nginx": "#57606a", "haproxy": "#8c959f"}
OTHER_COLOUR = "#d0d7de"
BAR, GAP, LEFT, WIDTH = 14, 22, 120, 420
# Ratios beyond this leave the picture; the figure stands beside the bar.
MOST_SHOWN = 2.0


def verdict(goal):
    """How near a figure came."""
    if goal.reached is None:
        return "not measured"
    if goal.reached <= goal.aim:
        return "aim"
    return "must" if goal.reached <= goal.must else "**missed**"


def summary(one):
    """What a row found, for whoever watches: goals, or figures where there are none."""
    lines = [f"    {goal.what}: {reached_by(goal)} ({verdict(goal)})" for goal in one.goals]
    for title, column in one.figures.items():
        lines.append(f"    {title}: " + ", ".join(f"{name} {figure(number)}" for name, number in column.items()))
    return "\n".join(lines)


def reached_by(goal):
    """The figure with its unit."""
    return "-" if goal.reached is None else figure(goal.reached) + goal.unit


def goals_table(found):
    """What must be reached, what to aim for, and what was."""
    lines = ["| | must | aim | reached | |", "|---|---|---|---|---|"]
    for goal in (goal for one in found.values() for goal in one.goals):
        must, aim = (figure(most) + goal.unit for most in (goal.must, goal.aim))
        lines.append(f"| {goal.what} | {must} | {aim} | {reached_by(goal)} | {verdict(goal)} |")
    return "\n".join(lines)


def figures_table(found):
    """Every proxy's figures; behind those of processor time the ratio to nginx."""
    columns = {title: (column, one.ratios.get(title, {})) for one in found.values() for title, column in one.figures.items()}
    names = list(dict.fromkeys(name for column, _ in columns.values() for name in column))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for title, (column, ratios) in columns.items():
        cells = []
        for name in names:
            cell = figure(column[name]) if name in column else ""
            if ratios.get(name) is not None:
                cell += f" ({ratios[name]:.2f})"
            cells.append(cell)
        unit = " (µs a request; ratio to nginx)" if ratios else ""
        lines.append(f"| {title}{unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(number):
    """A number with three digits that say something."""
    if number == int(number):
        return f"{int(number):,}"
    return f"{number:.2f}" if abs(number) < 10 else f"{number:.1f}"


def markdown(found, circumstances):
    """The whole of results.md."""
    parts = [
        "# What a request costs",
        f"Written by `tests/bench/run table`. {circumstances}",
        "## What must be reached",
        goals_table(found),
        "## Beside the others",
        "`cnblogs-proxy` is `cargo build --release`, `profiled` the program of releases, by `deploy/release/build`. "
        "Medians of the rounds, of three times as many in the rows 500/s and 20/s; ratios are medians of the ratios round "
        "by round. `large` is with buffers of 64 to 128 KiB.",
        figures_table(found),
    ]
    return "\n\n".join(parts) + "\n"


def picture(found):
    """Processor time a request, as bars beside nginx = 1."""
    drawn, y = [], 30
    for title, ratios in ((title, ratios) for one in found.values() for title, ratios in one.ratios.items()):
        shown = {name: value for name, value in ratios.items() if value is not None}
        if not shown:
            continue
        y += BAR
        drawn.append(text(12, y - 3, title, "start", "600"))
        for name, value in shown.items():
            drawn.append(bar(y, name, value))
            y += BAR + 2
        y += GAP - BAR
    one = LEFT + WIDTH / MOST_SHOWN
    drawn.append(f'<line x1="{one}" y1="24" x2="{one}" y2="{y}" stroke="#57606a" stroke-dasharray="3 3"/>')
    heading = text(12, 16, "Processor time a request, nginx = 1 (less is better)", "start", "600")
    size = f'width="{LEFT + WIDTH + 60}" height="{y + 10}"'
    style = 'font-family="sans-serif" font-size="11"'
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    body = "\n".join([background, heading, *drawn])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{body}\n</svg>\n'


def bar(y, name, value):
    """One proxy in one row."""
    length = min(value, MOST_SHOWN) / MOST_SHOWN * WIDTH
    colour = PALETTE.get(name, OTHER_COLOUR)
    return "\n".join([
        text(LEFT - 6, y + BAR - 3, name, "end", "400"),
        f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
        text(LEFT + length + 5, y + BAR - 3, f"{value:.2f}", "start", "400"),
    ])


def text(x, y, words, anchor, weight):
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
