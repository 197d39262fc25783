"""All faults by name. Each takes a bed, a source of chance and how often; it says how often it was made.

A fault raises Difference where anything is not as it would be without it, CannotInject where a machine has no way to
make it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

from tests.faults import clocks, connections, disks, files, jobs, processes, rivals
from tests.faults.bed import Bed

Fault: TypeAlias = Callable[[Bed, random.Random, int], int]

FAULTS: dict[str, Fault] = {
    fault.__name__.replace("_", " "): fault
    for fault in (
        processes.worker,
        processes.stopped_worker,
        processes.coordinator,
        processes.first_start,
        processes.embedded_server,
        processes.embedded_backend,
        processes.external_server,
        processes.external_backend,
        connections.terminated,
        connections.torn,
        disks.full_database,
        disks.full_data_folder,
        files.changing_files,
        files.hanging_files,
        files.hungry_files,
        files.poisoned_file,
        rivals.two_indexers,
        rivals.two_archives,
        rivals.new_schema,
        clocks.leaping_clock,
        clocks.odd_moments,
        jobs.job,
    )
}
