# atomdiff for A1111 and Forge. Copyright (C) the atomdiff authors. AGPL-3.0-or-later, see LICENSE.
"""Where the web UI meets the extension: it loads the scripts of an extension by itself."""

import atomdiff_network
import atomdiff_page
from modules import extra_networks, script_callbacks, scripts, ui_extra_networks

network = atomdiff_network.ExtraNetworkAtom()
is_forge = atomdiff_network.register_patch()


def before_ui():
    ui_extra_networks.register_page(atomdiff_page.ConceptsPage())
    extra_networks.register_extra_network(network)


class Atoms(scripts.Script):
    """Puts concepts into the weights at the moment that suits the host."""

    def title(self):
        return "atomdiff"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process_before_every_sampling(self, p, *args, **kwargs):
        if is_forge:
            network.patch_forge(p)

    def after_extra_networks_activate(self, p, *args, **kwargs):
        if not is_forge:
            network.join_loras(p)


script_callbacks.on_before_ui(before_ui)
