"""The page: the house that the tabs stand in.

A tab is a module of `atomdiff.studio.tabs` with `build(page)`, which lays it out, and perhaps
`wire(page)`, which connects it with the other tabs once all are there. TABS lists them in the order in
which they are shown.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it reads it then

import gradio as gr

from atomdiff.errors import SettingsError
from atomdiff.studio import defects, endpoints, looks, making
from atomdiff.studio.gate import Gate
from atomdiff.studio.house import Studio
from atomdiff.studio.people import Visitors
from atomdiff.studio.tabs import catching, compare, concepts, draw, history, learned, picture, train

TABS = (draw, concepts, train, learned, compare, history, picture, catching)
MAX_UPLOAD = "80mb"
MAX_QUEUE = 200
TAKES_FILES = "async_move_resource_to_block_cache"  # of Gradio's components: from a path or an address
DEFECT = "This was not understood, or broke down; the terminal that the studio runs in shows which."

log = logging.getLogger(__name__)


@dataclass
class Page:
    """What the tabs share while the page is built."""

    studio: Studio
    tabs: gr.Tabs
    form: dict[str, Any] = field(default_factory=dict)
    """The settings of Draw, by name, in the order of `form.FIELDS`."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Components that one tab hands to another, as "tab.what"."""
    blocks: Any = None


class Blocks(gr.Blocks):
    """Gradio's, but what breaks down in an action is told to its caller in a sentence, and to the terminal
    sparingly: Gradio prints a traceback for every junk request."""

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            log.warning("an action of the page broke down", exc_info=error)
            raise gr.Error(DEFECT, print_exception=False) from None


def build(studio: Studio) -> gr.Blocks:
    """The whole page for a studio."""
    with Blocks(
        title="atomdiff", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as blocks:
        endpoints.offer(studio)  # first: the names that it takes are the public ones
        making.offer(studio)
        gr.HTML(looks.HEADER, elem_id="masthead")
        with warnings.catch_warnings(), gr.Tabs(elem_id="tabs") as tabs:
            warnings.filterwarnings("ignore", r"gr\.Tabs\(\) can only contain")  # `_only_tabs` sees to it
            page = Page(studio, tabs, blocks=blocks)
            for tab in TABS:
                tab.build(page)
        _only_tabs(tabs, blocks)
        for tab in TABS:
            if hasattr(tab, "wire"):
                tab.wire(page)
    _no_fetching(blocks)
    return blocks


def _only_tabs(tabs: gr.Tabs, blocks: gr.Blocks) -> None:
    """Moves what a tab made beside itself (a gr.State, say) to the page: Gradio counts it as a tab."""
    for other in [child for child in tabs.children if not isinstance(child, gr.Tab)]:
        tabs.children.remove(other)
        blocks.children.append(other)
        other.parent = blocks


def launch(studio: Studio) -> gr.Blocks:
    """Serves the page, and returns at once. Raises SettingsError if the address cannot be had."""
    options = studio.options
    cache = studio.history.folder / "cache"
    cache.mkdir(exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    blocks = build(studio)
    blocks.queue(max_size=MAX_QUEUE, default_concurrency_limit=8)
    defects.spare_the_terminal()
    try:
        _serve(blocks, studio)
    except OSError as error:
        where = f"{options.host}:{options.port}" if options.port else options.host
        raise SettingsError(f"The studio cannot open at {where} ({error}): choose another --port.") from error
    return blocks


def _serve(blocks: gr.Blocks, studio: Studio) -> None:
    options = studio.options
    blocks.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=list(options.auth) or None,
        allowed_paths=[str(studio.history.pictures), str(studio.trainings.folder)],
        max_file_size=MAX_UPLOAD,
        show_error=False,  # a defect is for the terminal; gr.Error is shown all the same
        ssr_mode=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        app_kwargs={"middleware": _middleware()},
        theme=looks.theme(),
        css=looks.css(),
        head=looks.HEAD,
        favicon_path=str(Path(__file__).with_name("icon.svg")),
        quiet=True,
        prevent_thread_lock=True,
    )


def _middleware() -> list[Any]:
    from starlette.middleware import Middleware

    return [Middleware(Visitors), Middleware(Gate)]


def _no_fetching(blocks: gr.Blocks) -> None:
    """A visitor's file is one that was uploaded: Gradio would fetch any address given in its place."""

    def guarded(keep: Callable[[str], Awaitable[str | None]]) -> Callable[[str], Awaitable[str | None]]:
        async def kept(path: str) -> str | None:
            if "://" in str(path):
                raise gr.Error("A file is uploaded, not given by its address.", print_exception=False)
            return await keep(path)

        return kept

    for part in blocks.blocks.values():
        keep = getattr(part, TAKES_FILES, None)
        if keep is not None:
            setattr(part, TAKES_FILES, guarded(keep))
