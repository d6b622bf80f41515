"""A page of SVG to draw on. It has an opaque background, and colours for light and for dark, chosen by the viewer's own
setting: whatever surrounds it, text and ground come from the same set."""

import html

STYLE = """
  svg { --ground: #ffffff; --ink: #1f2430; --faint: #8a909c; --line: #d5d9e0; --dense: #c2571a; --sparse: #1f6feb;
        --light: #e3edfc; --fp8: #0f8a6a; }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #161b22; --ink: #e6e9ef; --faint: #98a0ad; --line: #363d49; --dense: #f0914f; --sparse: #6cabff;
          --light: #1d3354; --fp8: #4fcfa5; }
  }
  text { font-family: system-ui, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; font-size: 14px;
         fill: var(--ink); }
  .title { font-size: 17px; font-weight: 600; }
  .faint { fill: var(--faint); }
  .small { font-size: 12.5px; }
  .code { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13px; }
""".rstrip()


class Page:
    def __init__(self, width: int, height: int, description: str):
        self.width, self.height, self.description = width, height, description
        self.parts: list[str] = []

    def rectangle(self, x, y, width, height, fill="none", line="none", radius=3, **more):
        place = f'x="{x:.4g}" y="{y:.4g}" width="{width:.4g}" height="{height:.4g}" rx="{radius}"'
        self.parts.append(f'<rect {place} fill="{_colour(fill)}" stroke="{_colour(line)}"{_attributes(more)}/>')

    def line(self, points, colour, width=1.0, **more):
        path = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
        stroke = f'stroke="{_colour(colour)}" stroke-width="{width}" stroke-linejoin="round"'
        self.parts.append(f'<polyline points="{path}" fill="none" {stroke}{_attributes(more)}/>')

    def arrow(self, points, colour, width=1.5, **more):
        """Of horizontal and vertical lines, with a head at its end."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        head = [(x, y), (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx)]
        self.line([*points[:-1], (x - 6 * dx, y - 6 * dy)], colour, width, **more)
        path = " ".join(f"{a:.4g},{b:.4g}" for a, b in head)
        self.parts.append(f'<polygon points="{path}" fill="{_colour(colour)}"/>')

    def dot(self, x, y, colour, radius=4):
        self.parts.append(f'<circle cx="{x:.4g}" cy="{y:.4g}" r="{radius}" fill="{_colour(colour)}"/>')

    def text(self, x, y, text, style="", anchor="start", colour=None):
        fill = f' style="fill: {_colour(colour)}"' if colour else ""
        place = f'x="{x:.4g}" y="{y:.4g}" text-anchor="{anchor}" class="{style}"'
        self.parts.append(f"<text {place}{fill}>{html.escape(text)}</text>")

    def __str__(self):
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        label = html.escape(self.description)
        ground = f'<rect width="{self.width}" height="{self.height}" rx="8" fill="var(--ground)"/>'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
        return "\n".join([head, f"<style>{STYLE}\n</style>", ground, *self.parts, "</svg>", ""])


def _colour(name: str) -> str:
    return name if name == "none" else f"var(--{name})"


def _attributes(more: dict) -> str:
    return "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
