"""The viewer as one HTML file, which needs no network and forbids itself any."""

import html
import json
from importlib.resources import files
from typing import Any

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(data: dict[str, Any]) -> str:
    """Return the HTML page for the data of `Content.data`. Text of the data never becomes markup."""
    library = f"<script>{structure_library()}</script>\n" if data["structure"] else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(data["title"])}</title>
<style>{asset("viewer.css")}</style>
{library}</head>
<body>
<main></main>
<script type="application/json" id="attention">{_escaped(data)}</script>
<script type="module">
{asset("viewer.js")}
mount(document.querySelector("main"), JSON.parse(document.getElementById("attention").textContent));
</script>
</body>
</html>
"""


def asset(name: str) -> str:
    """Return the text of one of the viewer's files."""
    return (files("protein_lm.viewer") / name).read_text(encoding="utf-8")


def structure_library() -> str:
    """Return 3Dmol.js, with its licence."""
    return f"/*\n{asset('3Dmol-LICENSE.txt')}*/\n{asset('3Dmol-min.js')}"


def _escaped(data: dict[str, Any]) -> str:
    """Return JSON that no HTML parser reads as markup."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
