"""How the page looks: paper, ink and one accent; the pictures are what shines. No font or script is
fetched."""

from __future__ import annotations

from typing import Any

HEADER = """
<header class="masthead">
  <span class="mark" aria-hidden="true"></span><h1>atomdiff</h1>
  <p>A few kilobytes teach it your subject.</p>
  <button id="theme-switch" type="button" title="Light or dark" aria-label="Light or dark">◐</button>
</header>
"""

# Ctrl-Enter draws; small pictures are shown as crisp pixels; the choice of light or dark is remembered.
HEAD = """
<meta name="color-scheme" content="light dark">
<script>
(() => {
  const key = "atomdiff-theme";
  const paint = () => {
    const chosen = localStorage.getItem(key);
    if (chosen) document.body.classList.toggle("dark", chosen === "dark");
  };
  document.addEventListener("DOMContentLoaded", () => { paint(); setTimeout(paint, 300); });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#theme-switch")) return;
    localStorage.setItem(key, document.body.classList.contains("dark") ? "light" : "dark");
    paint();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const shown = [...document.querySelectorAll("button.go")].find((button) => button.offsetParent);
    if (shown) { event.preventDefault(); event.target.blur?.(); setTimeout(() => shown.click(), 60); }
  }, true);
  document.addEventListener("click", (event) => {  // a concept's name takes its colour into the brush
    const name = event.target.closest("#where-legend button");
    if (!name) return;
    const canvas = document.querySelector("#where-canvas"), names = [...name.parentNode.children];
    const palette = canvas.querySelector('[aria-label="Color"]');
    names.forEach((one) => one.classList.toggle("chosen", one === name));
    canvas.querySelector('[aria-label="Brush"]').click();
    if (!canvas.querySelector(".swatch")) palette.click();
    setTimeout(() => {
      canvas.querySelectorAll(".swatch .color")[names.indexOf(name)].click();
      palette.click();
    }, 60);
  });
  document.addEventListener("click", (event) => {  // on a phone the pictures are below the settings
    const bench = innerWidth <= 820 && event.target.closest("button.go")?.closest(".workbench");
    const pictures = bench && bench.querySelector(".stage-side");
    if (pictures) setTimeout(() => pictures.scrollIntoView({ behavior: "smooth" }), 200);
  });
})();
</script>
"""


def theme() -> Any:
    """Gradio's base theme in our colours, with the system's own fonts."""
    import gradio as gr

    colours = gr.themes.colors
    system = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Helvetica", "Arial", "sans-serif"]
    return gr.themes.Base(
        primary_hue=colours.teal,
        secondary_hue=colours.teal,
        neutral_hue=colours.stone,
        radius_size=gr.themes.sizes.radius_lg,
        spacing_size=gr.themes.sizes.spacing_lg,
        text_size=gr.themes.sizes.text_md,
        font=system,
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill="#faf9f7",
        body_background_fill_dark="#161412",
        body_text_color="#3c3a38",
        body_text_color_dark="#e7e4e0",
        body_text_color_subdued="#78716c",
        body_text_color_subdued_dark="#a8a29e",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#211f1c",
        background_fill_secondary="#f5f3f0",
        background_fill_secondary_dark="#1b1917",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="#57534e",
        block_label_text_color_dark="#d6d3d1",
        block_title_text_color="#57534e",
        block_title_text_color_dark="#d6d3d1",
        block_title_text_size="0.84rem",
        block_title_text_weight="500",
        border_color_primary="#e3dfd9",
        border_color_primary_dark="#37332f",
        input_background_fill="#ffffff",
        input_background_fill_dark="#211f1c",
        input_border_width="1px",
        input_border_color="#d9d4cd",
        input_border_color_dark="#3f3b36",
        input_border_color_focus="#0f766e",
        input_border_color_focus_dark="#2dd4bf",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#2dd4bf",
        button_primary_background_fill_hover_dark="#5eead4",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#10221f",
        button_secondary_background_fill="#efece8",
        button_secondary_background_fill_hover="#e5e1db",
        button_secondary_background_fill_dark="#2b2825",
        button_secondary_background_fill_hover_dark="#38342f",
        button_large_text_weight="600",
        button_border_width="0px",
        block_info_text_color="#78716c",
        block_info_text_color_dark="#a8a29e",
        slider_color="#0f766e",
        slider_color_dark="#2dd4bf",
    )
