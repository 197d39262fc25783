"""What can be wrong with what an evaluation is given."""

from __future__ import annotations


class EvaluationError(ValueError):
    """An evaluation that cannot be made.

    EvaluationError
    ├── TaskError         the task file cannot be read, or asks for nothing
    ├── QueryListError    the query list cannot be read
    ├── ReferencesError   the CTM or RTTM file cannot be read, or is of other recordings
    ├── ReportError       the report's folder cannot be written
    └── PlotsMissing      plots are wanted, and matplotlib is not installed
    """

    code = "evaluation_failed"


class TaskError(EvaluationError):
    """A task file that cannot be read, or asks for nothing."""

    code = "task_invalid"


class QueryListError(EvaluationError):
    """A query list that cannot be read."""

    code = "queries_invalid"


class ReferencesError(EvaluationError):
    """A CTM or RTTM file that cannot be read, or is of other recordings than the archive's."""

    code = "references_invalid"


class ReportError(EvaluationError):
    """A report that cannot be written."""

    code = "report_unwritable"


class PlotsMissing(EvaluationError):
    """Plots are wanted, and matplotlib is not installed."""

    code = "evaluate_extra_missing"
