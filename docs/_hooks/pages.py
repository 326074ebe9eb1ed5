"""Pages that are made when the site is built: notebooks become Markdown with their outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page of Markdown in the place of each notebook."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            text = as_markdown(json.loads(Path(file.abs_src_path or "").read_text("utf-8")))
            files.remove(file)
            name = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to notebooks, which lead to the files elsewhere, lead to their pages."""
    return re.sub(r"(\]\([\w./-]+)\.ipynb\)", r"\1.md)", markdown)


def as_markdown(notebook: dict[str, Any]) -> str:
    """Return the cells of a notebook, and what they have shown, as Markdown."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.strip():
            parts.append(f"```python\n{source}\n```")
            parts += [_output(each) for each in cell["outputs"]]
    return "\n\n".join(part for part in parts if part) + "\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _text("".join(output["text"]))
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        image = f'<img alt="figure" src="data:image/png;base64,{picture}">'
        return f'<div class="nb-output">{image}</div>'
    html = "".join(data.get("text/html", ""))
    # xarray's own page of styles does not agree with the theme's.
    if html and "xr-wrap" not in html:
        # Markdown ends a block of HTML at an empty line.
        html = "\n".join(line for line in html.split("\n") if line.strip())
        return f'<div class="nb-output">{html}</div>'
    return _text("".join(data.get("text/plain", "")))


def _text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
