"""A query, what should be found, and an answer, worked through by hand in the tests."""

from service.evaluation.judging import Ranked
from service.evaluation.tasks import Place, TaskQuery

QUERY = TaskQuery(
    clip="q.flac",
    source=Place("own.opus", 1.0, 1.5),
    exclude=frozenset({"own.opus"}),
    relevant=(Place("a.opus", 2.0, 2.5), Place("a.opus", 7.0, 7.4), Place("b.opus", 0.2, 0.6)),
    oov=False,
    term="term",
)
HITS = [
    Ranked("own.opus", 1.0, 1.5, 0.99),  # the query's own source never counts
    Ranked("a.opus", 2.1, 2.6, 0.9),
    Ranked("c.opus", 0.0, 0.5, 0.8),
    Ranked("a.opus", 2.0, 2.4, 0.7),  # the same place again
    Ranked("a.opus", 7.3, 8.6, 0.6),  # its middle lies 0.55 s after the end
    Ranked("b.opus", 0.7, 1.4, 0.5),  # its middle lies 0.45 s after the end
]
