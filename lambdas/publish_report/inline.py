"""Put an SVG plot into an HTML page: its colours become the page's, its ids its own.

Pure text; written for what matplotlib writes, not for SVG of unknown origin.
"""

import re

from markupsafe import Markup, escape

from contract.aggregation import Mode
from lambdas.publish_report.style import INK, LOOKS, PAPER, QUIET, RULE

_VARIABLES = {
    INK: "--ink",
    QUIET: "--quiet",
    RULE: "--rule",
    PAPER: "--paper",
    LOOKS[Mode.SYNC].colour: "--sync",
    LOOKS[Mode.ASYNC].colour: "--async",
}
"""Colours of the plots → the page's custom properties, which differ between light and dark."""


def inline_svg(plot: bytes, name: str, label: str) -> Markup:
    """The plot as an `<svg>` element that says `label` to screen readers; `name` is unique in the page."""
    text = plot.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = text.replace("; font-family: 'DejaVu Sans', sans-serif", "")
    opening = re.compile(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>")
    text = opening.sub(rf'<svg \1 role="img" aria-label="{escape(label)}">', text, count=1)
    return Markup(text.strip())  # noqa: S704 - made by our own plots; the label is escaped
