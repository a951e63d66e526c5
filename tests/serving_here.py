"""The service on a tiny base, behind a real socket, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_concepts import concept

from atomdiff.files.safetensors_file import to_bytes
from atomdiff.serving.app import listen, server
from atomdiff.serving.limits import Limits
from atomdiff.serving.service import Options, Service

TOKEN, OTHER = "a-token-of-ours", "a-token-of-theirs"


def service_of(base: Any, folder: Path, tokens: tuple[str, ...] = (), **limits: Any) -> Service:
    """A service with two concepts, `dog` (sks) and `cat` (zwx)."""
    options = Options(
        lambda name: base, "tiny", folder / "concepts", folder / "out", tokens=tokens, limits=Limits(**limits)
    )
    service = Service(options)
    for seed, (name, trigger) in enumerate({"dog": "sks", "cat": "zwx"}.items()):
        made = concept(base, trigger=trigger, seed=seed, name=name, class_word=name)
        service.library.add(to_bytes(made, "int8"))
    return service


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Within: the service answers there, http://127.0.0.1:PORT; it is closed as by SIGTERM."""
    listening = listen("127.0.0.1", 0)
    running = server(service)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()
        listening.close()
