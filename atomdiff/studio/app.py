"""The page as a Gradio app: the tabs in their order, who may come in, and how errors are told."""

from __future__ import annotations

import html
import logging
import os
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it reads it then

import gradio as gr
from starlette.middleware import Middleware

from atomdiff.errors import SettingsError, sentence_of
from atomdiff.serving.log_limits import limit_logs
from atomdiff.serving.security import HostCheck
from atomdiff.studio import theme
from atomdiff.studio.api import add_endpoints
from atomdiff.studio.identity import VisitorCookie
from atomdiff.studio.security import RequestFilter
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs.compare import compare_tab
from atomdiff.studio.tabs.concepts import concepts_tab
from atomdiff.studio.tabs.draw import draw_tab
from atomdiff.studio.tabs.history import history_tab
from atomdiff.studio.tabs.inspect import inspect_tab
from atomdiff.studio.tabs.png_info import png_info_tab
from atomdiff.studio.tabs.train import train_tab
from atomdiff.studio.training_api import add_training_endpoints

MAX_UPLOAD = "400mb"  # LoRAs of SDXL are the largest
MAX_QUEUE = 200
TAKES_FILES = "async_move_resource_to_block_cache"  # of Gradio's components: from a path or an address
DEFECT = "This was not understood, or broke down; the terminal that the studio runs in shows which."
WRONG_KIND = (AttributeError, KeyError, OverflowError, TypeError, ValueError)

log = logging.getLogger(__name__)


class Blocks(gr.Blocks):
    """Gradio's, but whatever goes wrong in an action is told to its caller in a sentence, as a toast on the
    page; defects are told to the terminal too, which Gradio would fill with a traceback for every junk
    request."""

    async def process_api(self, block_fn: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return await super().process_api(block_fn, *args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            if sentence := sentence_of(error):
                raise _toast(sentence) from None
            action = self.fns.get(block_fn) if isinstance(block_fn, int) else block_fn
            if isinstance(error, WRONG_KIND) and getattr(action, "api_visibility", "") == "public":
                what = str(error).strip().partition("\n")[0]
                raise _toast(
                    f"A value is of the wrong kind ({what}): see the types of this endpoint."
                ) from None
            log.warning("an action of the page broke down", exc_info=error)
            raise _toast(DEFECT) from None


def build(studio: Studio) -> gr.Blocks:
    """The whole page for a studio."""
    with Blocks(
        title="atomdiff", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as page:
        add_endpoints(studio)  # first: the names that they take are the public ones
        add_training_endpoints(studio)
        public = set(page.fns)
        gr.HTML(theme.HEADER, elem_id="masthead")
        with warnings.catch_warnings(), gr.Tabs(elem_id="tabs") as tabs:
            warnings.filterwarnings("ignore", r"gr\.Tabs\(\) can only contain")  # `_only_tabs` sees to it
            draw = draw_tab(studio, page, tabs)
            concepts = concepts_tab(studio, page, tabs, draw)
            train_tab(studio, page, draw, concepts)
            inspect_tab(studio, tabs, draw, concepts)
            compare_tab(studio, tabs, draw)
            history = history_tab(studio, draw)
            png_info_tab(studio, tabs, draw, concepts, history)
        _only_tabs(tabs, page)
        for number, action in page.fns.items():
            if number not in public:
                action.api_visibility, action.show_progress = "private", "hidden"
    _no_fetching(page)
    return page


def launch(studio: Studio) -> gr.Blocks:
    """Serves the page, and returns at once. Raises SettingsError if the address cannot be had."""
    options = studio.options
    cache = studio.history.folder / "cache"
    cache.mkdir(exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    page = build(studio)
    page.queue(max_size=MAX_QUEUE, default_concurrency_limit=None)  # the device has a queue of its own
    limit_logs()
    hosts = [*options.allowed_hosts, *(["*.gradio.live"] if options.share else [])]
    try:
        page.launch(
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
            app_kwargs={
                "middleware": [
                    Middleware(HostCheck, bound=options.host, allowed=hosts),
                    Middleware(VisitorCookie),
                    Middleware(RequestFilter),
                ]
            },
            theme=theme.theme(),
            css_paths=[Path(__file__).with_name("style.css")],
            head=theme.HEAD,
            favicon_path=str(Path(__file__).with_name("icon.svg")),
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        where = f"{options.host}:{options.port}" if options.port else options.host
        raise SettingsError(f"The studio cannot open at {where} ({error}): choose another --port.") from error
    return page


def _toast(sentence: str) -> gr.Error:
    return gr.Error(
        html.escape(sentence, quote=False), duration=20, title="That did not work", print_exception=False
    )


def _only_tabs(tabs: gr.Tabs, page: gr.Blocks) -> None:
    """Moves what a tab made beside itself (a gr.State, say) to the page: Gradio counts it as a tab."""
    for other in [child for child in tabs.children if not isinstance(child, gr.Tab)]:
        tabs.children.remove(other)
        page.children.append(other)
        other.parent = page


def _no_fetching(page: gr.Blocks) -> None:
    """A visitor's file is one that was uploaded: Gradio would fetch any address given in its place."""

    def guarded(keep: Callable[[str], Awaitable[str | None]]) -> Callable[[str], Awaitable[str | None]]:
        async def kept(path: str) -> str | None:
            if "://" in str(path):
                raise SettingsError("A file is uploaded, not given by its address.")
            return await keep(path)

        return kept

    for part in page.blocks.values():
        keep = getattr(part, TAKES_FILES, None)
        if keep is not None:
            setattr(part, TAKES_FILES, guarded(keep))
