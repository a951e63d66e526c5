"""What a user of `benchmarks.serve_load` does, for locust: asks for pictures, and looks whether they came."""

import json
import os
import random
from typing import Any

from locust import HttpUser, task

PROMPTS = ("on the beach", "in the snow", "in the city", "in the forest")


class Visitor(HttpUser):
    """Draws with one of the concepts of the service, or with none."""

    def on_start(self) -> None:
        self.random = random.Random()
        self.client.headers["authorization"] = f"Bearer {os.environ['ATOMDIFF_TOKEN']}"
        concepts = int(os.environ["CONCEPTS"])
        self.names = ["", *(f"c{i}" for i in range(concepts))]

    @task
    def draw(self) -> None:
        name, seed = self.random.choice(self.names), self.random.randrange(2**31)
        prompt = f"a sks dog {self.random.choice(PROMPTS)}"
        strength = round(self.random.uniform(0.3, 1), 2)
        called = f" <atom:{name}:{strength}>" if name else ""
        body: dict[str, Any] = {"prompt": prompt + called, "seed": seed, "steps": int(os.environ["STEPS"])}
        with self.client.post("/sdapi/v1/txt2img", json=body, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
                return
            text = json.loads(answer.json()["info"])["infotexts"][0]
            wanted = [prompt, f"Seed: {seed},"] + ([f"{name}:{strength:g}:"] if name else [])
            if len(answer.json()["images"]) != 1 or not all(part in text for part in wanted):
                answer.failure("another picture than was asked for")
