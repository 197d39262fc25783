"""What an application counts and measures, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from model.declaration import TokenizerInfo
from service.replica import ReplicaSeen
from service.requestlog import Handled
from service.search.answer import STAGES, Answer
from service.surroundings import DatabaseSeen, FolderSeen
from service.workers import Workers

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # set where several processes answer together
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # others are counted as one
REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The metrics of one application; of several, where processes share a folder. Threads may share one."""

    def __init__(self) -> None:
        folder = os.environ.get(FOLDER_VARIABLE)
        self._workers = None if folder is None else Workers(Path(folder))
        if self._workers is not None:
            with self._workers.living():
                pass  # those that have died before are buried also where nobody ever asks for metrics
        self._registry = CollectorRegistry()
        own = self._registry if folder is None else None
        self._requests = Counter(
            "sayagain_requests", "Requests that have ended.", ("route", "method", "status"), registry=own
        )
        self._request_s = Histogram(
            "sayagain_request_seconds", "From a request's first line to the last byte of its answer.", ("route",),
            registry=own, buckets=REQUEST_BUCKETS_S,
        )  # fmt: skip
        self._search_s = Histogram(
            "sayagain_search_seconds", "All stages of a search.", registry=own, buckets=STAGE_BUCKETS_S
        )
        self._stage_s = Histogram(
            "sayagain_search_stage_seconds", "A stage of a search, where it had anything to do.", ("stage",),
            registry=own, buckets=STAGE_BUCKETS_S,
        )  # fmt: skip
        if folder is not None:
            self._registry.register(cast(Collector, MultiProcessCollector(None, folder)))

    def request(self, handled: Handled) -> None:
        """Count a request that has ended."""
        method = handled.method if handled.method in METHODS else "other"
        self._requests.labels(handled.route, method, str(handled.status)).inc()
        self._request_s.labels(handled.route).observe(handled.seconds)

    def search(self, answer: Answer) -> None:
        """Measure a search's stages by its answer."""
        self._search_s.observe(answer.timing_ms.total / 1e3)
        for stage in STAGES:
            ms = getattr(answer.timing_ms, stage)
            if ms > 0:
                self._stage_s.labels(stage).observe(ms / 1e3)

    def text(self, gauges: Iterable[Metric]) -> bytes:
        """All of it in Prometheus's text format, with `gauges` as they are now, and of each process what it uses."""
        with ExitStack() as held:
            pids = [os.getpid()] if self._workers is None else held.enter_context(self._workers.living())
            return generate_latest(_Together(self._registry, [*gauges, *_processes(pids)]))


def gauges_of(seen: DatabaseSeen | None, folder: FolderSeen | None, tokenizer: TokenizerInfo) -> list[Metric]:
    """What is read when it is asked for; None stands for what did not answer in time."""
    found = None if seen is None else seen.overview
    out = [
        _gauge("sayagain_info", "The version that runs.", {"version": metadata.version("sayagain")}),
        _gauge(
            "sayagain_tokenizer_info", "The service's own tokenizer.",
            {"name": tokenizer.name, "version": tokenizer.version, "sha256": tokenizer.sha256},
        ),
        _gauge("sayagain_database_up", "Whether the database answers, with the schema that is needed.",
               value=float(found is not None)),
    ]  # fmt: skip
    if folder is not None:
        out.append(_gauge("sayagain_data_free_bytes", "Free space in the data folder.", value=folder.free_bytes))
    if found is None:
        return out
    recordings = GaugeMetricFamily("sayagain_archive_recordings", "Recordings of an archive.", labels=["archive"])
    hours = GaugeMetricFamily("sayagain_archive_hours", "Hours of an archive.", labels=["archive"])
    for archive in found.archives:
        recordings.add_metric([archive.name], archive.recordings)
        hours.add_metric([archive.name], archive.hours)
    jobs = GaugeMetricFamily("sayagain_jobs", "Jobs by state.", labels=["state"])
    for state, number in found.jobs.items():
        jobs.add_metric([state], number)
    waited = _gauge(
        "sayagain_oldest_job_seconds", "How long the oldest queued job has waited.", value=found.oldest_job_s
    )
    return [*out, _gauge("sayagain_archives", "Archives.", value=found.archive_count), recordings, hours, jobs, waited]


def gauges_of_replica(seen: ReplicaSeen | None) -> list[Metric]:
    """Whether a replica that is set answers, and how far it is behind."""
    up = seen is not None and seen.problem is None
    out = [_gauge("sayagain_replica_up", "Whether the read replica answers, and is one.", value=float(up))]
    if seen is not None and up:
        out.append(_gauge("sayagain_replica_lag_seconds", "How far the replica is behind.", value=seen.lag_s))
    return out


def _gauge(name: str, about: str, labels: dict[str, str] | None = None, value: float = 1.0) -> Metric:
    family = GaugeMetricFamily(name, about, labels=list(labels or {}))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _processes(pids: Sequence[int]) -> list[Metric]:
    """Memory, processor time and open files of each process, by its pid."""
    families: dict[str, Metric] = {}
    for pid in pids:
        for found in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {"pid": str(pid)}, sample.value)
    return list(families.values())


class _Together(Collector):
    """A registry and more."""

    def __init__(self, registry: CollectorRegistry, more: Sequence[Metric]) -> None:
        self._registry, self._more = registry, more

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        yield from self._registry.collect()
        yield from self._more
