"""People who search, look around, add and delete recordings, as locust sees them; `bench.load` starts them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from uuid import uuid4

from locust import HttpUser, between, task

import service

DEMO = Path(service.__file__).parent / "demo"
CLIPS = [path.read_bytes() for path in sorted((DEMO / "queries").rglob("*.opus"))]
SOUNDS = [path.read_bytes() for path in sorted((DEMO / "archive").rglob("*.opus"))]
ARCHIVES = ("standing", "changing")  # one that nobody changes, and one that everybody does


class Person(HttpUser):
    """Waits a moment between two things that they do."""

    wait_time = between(0.2, 1.0)

    @task(20)
    def search(self) -> None:
        """By a clip, in either archive."""
        archive = random.choice(ARCHIVES)
        form = {"archive": archive, "limit": 20}
        with self.client.post(
            "/v1/search", files={"file": random.choice(CLIPS)}, data=form, name=f"search {archive}", catch_response=True
        ) as answer:
            if answer.status_code == 409 and archive == "changing":
                answer.success()  # everything in it has just been deleted

    @task(4)
    def listen(self) -> None:
        """To a second of a recording of the standing archive."""
        page = self.client.get("/v1/recordings", params={"archive": "standing", "limit": 50}, name="list").json()
        one = random.choice(page["recordings"])
        self.client.get(f"/v1/recordings/{one['id']}/clip", params={"start": 1, "end": 2}, name="clip")

    @task(1)
    def add(self) -> None:
        """A recording to the changing archive."""
        name = f"{uuid4().hex}.opus"
        about = json.dumps([{"name": name, "metadata": {"by": "load"}}])
        form = {"archive": "changing", "about": about}
        self.client.post("/v1/recordings", files={"file": (name, random.choice(SOUNDS))}, data=form, name="upload")

    @task(1)
    def remove(self) -> None:
        """A recording of the changing archive, which somebody else may have removed first."""
        page = self.client.get("/v1/recordings", params={"archive": "changing", "limit": 50}, name="list").json()
        if page["recordings"]:
            number = random.choice(page["recordings"])["id"]
            with self.client.delete(f"/v1/recordings/{number}", name="delete", catch_response=True) as answer:
                if answer.status_code == 404:
                    answer.success()
