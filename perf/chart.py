"""Drawings of results as SVG, by hand, in colours for light and dark pages, without background."""

import html
import math

TEXT = "#7d8590"
COLOURS = ["#3b82f6", "#e07b39", "#2ea36b", "#b05cc9"]
MET, MISSED, NEUTRAL = "#2ea36b", "#d9534f", "#3b82f6"


def escaped(text):
    return html.escape(str(text), quote=True)


def document(width, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" '
            f'fill="{TEXT}">\n' + "\n".join(parts) + "\n</svg>\n")


def text(x, y, content, anchor="start", **attributes):
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escaped(content)}</text>'


def line(x1, y1, x2, y2, width=1, opacity=0.35):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{TEXT}" '
            f'stroke-width="{width}" stroke-opacity="{opacity}"/>')


def decades(low, high):
    """The powers of ten, or of two where those are too few, that enclose a range."""
    base = 10 if high / low > 30 else 2
    first = math.floor(math.log(low, base) + 1e-9)
    last = math.ceil(math.log(high, base) - 1e-9)
    return [float(base) ** exponent for exponent in range(first, max(last, first + 1) + 1)]


def short(value):
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def bars(title, panels):
    """Panels of horizontal bars on a logarithmic scale that starts at 1. A panel is a caption and
    rows of label, ratio, target or None, whether it is met or None."""
    label_width, plot_width, row_height, y = 330, 480, 20, 28
    parts = [text(10, y, title, font_size="15", font_weight="bold")]
    for caption, rows in panels:
        if not rows:
            continue
        values = [v for _, ratio, target, _ in rows for v in (ratio, target) if v]
        marks = decades(min(1, *values), max(2, *values))
        def place(value, low=math.log(marks[0]), high=math.log(marks[-1])):
            return label_width + plot_width * (math.log(value) - low) / (high - low)
        y += 30
        parts.append(text(10, y, caption, font_weight="bold"))
        y += 10
        bottom = y + len(rows) * row_height
        for mark in marks:
            parts.append(line(place(mark), y, place(mark), bottom, width=2 if mark == 1 else 1))
            parts.append(text(place(mark), bottom + 14, f"{mark:g}", "middle", font_size="11"))
        for label, ratio, target, met in rows:
            colour = NEUTRAL if met is None else MET if met else MISSED
            start, end = sorted((place(1), place(ratio)))
            parts.append(text(label_width - 8, y + 14, label, "end"))
            parts.append(f'<rect x="{start:.1f}" y="{y + 4}" width="{max(end - start, 1):.1f}" '
                         f'height="{row_height - 8}" fill="{colour}"/>')
            after = max(end, place(1))
            if target:
                at = place(target)
                parts.append(line(at, y + 1, at, y + row_height - 1, 3, 1))
                after = at if after < at < after + 50 else after
            parts.append(text(after + 6, y + 14, f"{ratio:.3g}x"))
            y += row_height
        y += 20
    y += 18
    parts.append(text(10, y, "Upright marks are targets; green meets its target, red does not, "
                      "blue has none.", font_size="11"))
    return document(label_width + plot_width + 90, y + 12, parts)


def plot(left, top, caption, across, series):
    """One plot with logarithmic scales; `series` is a name and its points, of each."""
    width, height = 330, 190
    points = [point for _, line_points in series for point in line_points]
    if not points:
        return [text(left, top, f"{caption}: nothing was measured")]
    xs = decades(min(x for x, _ in points), max(x for x, _ in points))
    ys = decades(min(y for _, y in points), max(y for _, y in points))
    def at(value, marks, length):
        return length * math.log(value / marks[0]) / math.log(marks[-1] / marks[0])
    parts = [text(left, top, caption, font_weight="bold")]
    x0, y0 = left + 44, top + 14 + height
    for mark in xs:
        x = x0 + at(mark, xs, width)
        parts.append(line(x, y0, x, y0 - height))
        if xs.index(mark) % max(1, len(xs) // 6) == 0:
            parts.append(text(x, y0 + 14, short(mark), "middle", font_size="11"))
    for mark in ys:
        y = y0 - at(mark, ys, height)
        parts += [line(x0, y, x0 + width, y), text(x0 - 5, y + 4, short(mark), "end",
                                                   font_size="11")]
    parts.append(text(x0 + width, y0 + 28, across, "end", font_size="11"))
    for index, ((name, line_points), colour) in enumerate(zip(series, COLOURS)):
        path = [(x0 + at(x, xs, width), y0 - at(y, ys, height)) for x, y in line_points]
        parts.append('<polyline fill="none" stroke="{}" stroke-width="2" points="{}"/>'.format(
            colour, " ".join(f"{x:.1f},{y:.1f}" for x, y in path)))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in path]
        parts.append(text(x0 + index * 120, y0 + 28, name, fill=colour, font_size="11"))
    return parts


def plots(title, panels):
    """Plots in two columns; a panel is a caption, the name of the horizontal axis, and series."""
    parts = [text(10, 24, title, font_size="15", font_weight="bold")]
    for index, (caption, across, series) in enumerate(panels):
        parts += plot(10 + index % 2 * 410, 60 + index // 2 * 270, caption, across, series)
    return document(830, 60 + (len(panels) + 1) // 2 * 270, parts)


def flames(title, folded):
    """A flame graph. `folded` maps stacks, tuples of (frame, kind) from the root, to samples."""
    width, frame_height, total = 1200, 17, sum(folded.values())
    colours = {"kernel": "#7f9fc9", "user": "#e09a5a", "thread": "#9aa3ab"}
    depth = max(map(len, folded), default=1)
    height = 60 + depth * frame_height
    parts = [text(10, 22, f"{title}, {total} samples", font_size="15", font_weight="bold"),
             text(10, 40, "Blue runs in the kernel, orange in the program. Point at a frame for "
                  "its name and share.", font_size="11")]

    def draw(stacks, level, left):
        children = {}
        for stack, count in stacks:
            if len(stack) > level:
                children.setdefault(stack[level], []).append((stack, count))
        for (name, kind), inside in sorted(children.items()):
            count = sum(count for _, count in inside)
            wide = width * count / total
            if wide >= 0.4:
                y = height - (level + 1) * frame_height
                shown = escaped(name if len(name) * 6.2 < wide else name[:int(wide / 6.2)])
                label = (f'<text x="{left + 3:.1f}" y="{y + 12}" font-size="10" fill="#1c1c1c">'
                         f'{shown}</text>') if wide > 24 else ""
                parts.append(
                    f'<g><title>{escaped(name)}: {count} samples, {100 * count / total:.1f} %'
                    f'</title><rect x="{left:.1f}" y="{y}" width="{wide:.2f}" '
                    f'height="{frame_height - 1}" fill="{colours[kind]}"/>{label}</g>')
                draw(inside, level + 1, left)
            left += wide
    if total:
        draw(list(folded.items()), 0, 0.0)
    return document(width, height + 6, parts)
