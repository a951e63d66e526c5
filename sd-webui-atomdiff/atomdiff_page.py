# atomdiff for A1111 and Forge. Copyright (C) the atomdiff authors. AGPL-3.0-or-later, see LICENSE.
"""The library's concepts as cards among the web UI's extra networks."""

from modules import ui_extra_networks

from atomdiff.errors import AtomdiffError
from atomdiff.library import Library


def quoted(text):
    """As a string of JavaScript, which is what a card's prompt is."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class ConceptsPage(ui_extra_networks.ExtraNetworksPage):
    """A card a concept: clicking it writes `<atom:dog:1> sks dog` into the prompt."""

    def __init__(self):
        super().__init__("Concepts")

    def refresh(self):
        Library().scan()

    def create_item(self, name, index=None, enable_filter=True):
        """What the page shows of the concept with this name, or id."""
        try:
            entry = Library().named(name)
        except AtomdiffError:
            return None
        said = quoted(f"> {entry.trigger} {entry.class_word}".rstrip())
        item = {
            "name": name,
            "filename": str(entry.path),
            "shorthash": entry.id[:12],
            "preview": self.link_preview(str(entry.thumbnail)) if entry.thumbnail else None,
            "description": f"for {entry.base}, {entry.size:,} bytes",
            "search_terms": [" ".join((entry.title, entry.trigger, entry.class_word, *entry.tags))],
            "local_preview": str(entry.thumbnail or entry.path.with_suffix(".png")),
            "metadata": {"trigger": entry.trigger, "base": entry.base, "sha256": entry.id},
            "sort_keys": {"default": index, **self.get_sort_keys(str(entry.path))},
            "prompt": f"{quoted(f'<atom:{name}:')} + opts.extra_networks_default_multiplier + {said}",
            "negative_prompt": quoted(""),
        }
        self.read_user_metadata(item)
        return item

    def list_items(self):
        entries = Library().find()
        titles = [entry.title for entry in entries]
        for index, entry in enumerate(entries):
            alone = titles.count(entry.title) == 1 and not set(entry.title) & set(":<>")
            item = self.create_item(entry.title if alone else entry.id[:12], index)
            if item is not None:
                yield item

    def allowed_directories_for_previews(self):
        return [str(Library().folder)]
