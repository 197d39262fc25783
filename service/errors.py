"""Every error that a user can meet, with its stable code, its HTTP status and its exit code.

SayagainError subclasses are the service's own; errors of the lower rooms are known here by their `code`.
"""

from __future__ import annotations

from model.audio import AudioError

EXIT_FAILED, EXIT_PARTLY = 1, 3  # 2, bad usage, is the command line parser's own
INTERNAL = "internal_error"

# code -> HTTP status; whatever is not here is a fault of ours: 500, "internal_error".
STATUS = {
    "audio_empty": 400,
    "audio_unreadable": 400,
    "audio_undecodable": 400,
    "decoder_failed": 400,
    "no_speech": 422,
    "query_too_long": 413,
    "upload_too_large": 413,
    "request_timeout": 408,
    "bad_stretch": 422,
    "too_many_clips": 422,
    "invalid_request": 422,
    "archive_not_found": 404,
    "recording_not_found": 404,
    "retokenize_failed": 409,
    "nothing_kept": 409,
    "segment_damaged": 409,
    "not_found": 404,
    "method_not_allowed": 405,
    "tokenizer_mismatch": 409,
    "archive_not_ready": 409,
    "archive_busy": 409,
    "archive_name_taken": 409,
    "audio_gone": 410,
    "external_id_taken": 409,
    "recording_name_taken": 409,
    "job_not_found": 404,
    "job_finished": 409,
    "folder_forbidden": 403,
    "storage_full": 507,
    "watch_not_found": 404,
    "watch_name_taken": 409,
    "webhook_forbidden": 422,
    "key_missing": 401,
    "key_forbidden": 403,
    "key_not_found": 404,
    "too_many_requests": 429,
    "too_busy": 429,
    "deep_unavailable": 409,
    "codebook_in_force": 409,
    "codebook_fixed": 409,
    "pairalign_part_invalid": 503,
    "archive_name_invalid": 422,
    "tokenizer_invalid": 503,
    "schema_outdated": 503,
    "database_unavailable": 503,
}


class SayagainError(Exception):
    """Bad input or a state that forbids an answer.

    SayagainError
    ├── ArchiveNotReady      it exists, but nothing has been indexed into it
    ├── DeepUnavailable      deep rescoring has no tokenizer, or no sound of the query
    ├── JobNotFound          no such job
    ├── JobFinished          a job that is over cannot be given up
    ├── FolderForbidden      not a folder of the server that may be indexed
    ├── StorageFull          a recording cannot be kept in the data folder
    ├── RecordingNameTaken   the archive has a recording of that name
    ├── WatchNotFound        no such watch
    ├── WatchNameTaken       the archive has a watch of that name
    ├── WebhookForbidden     not an address that may be posted to
    ├── KeyMissing           there is no key in the request, or not a good one
    ├── KeyForbidden         the key does not allow that much
    ├── KeyNotFound          no such key
    ├── TooManyRequests      more than the key allows in a minute
    │   └── TooBusy          more than the service answers at a time
    ├── RequestTimeout       the request did not come to its end
    ├── QueryTooLong         the clip is longer than is allowed
    ├── DecoderFailed        the clip takes too long, or too much memory, to decode, or breaks what decodes it
    ├── UploadTooLarge       the clip, or all of the request, has more bytes than are allowed
    ├── AudioGone            a recording's file is not what was indexed any more
    ├── BadRequest           parts of a request are missing, or do not go together
    ├── TooManyClips         more examples than are allowed
    ├── BadStretch           start and end do not name a stretch of the clip
    └── NoSpeech             the clip is silent, or too short to hold a term
    """

    code = "internal_error"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ArchiveNotReady(SayagainError):
    """Nothing has been indexed into it yet."""

    code = "archive_not_ready"


class DeepUnavailable(SayagainError):
    """Deep rescoring has no tokenizer, or not the sound that was asked about."""

    code = "deep_unavailable"


class JobNotFound(SayagainError):
    """There is no such job."""

    code = "job_not_found"


class JobFinished(SayagainError):
    """A job that is over cannot be given up."""

    code = "job_finished"


class FolderForbidden(SayagainError):
    """Not a folder of the server that may be indexed."""

    code = "folder_forbidden"


class StorageFull(SayagainError):
    """A recording cannot be kept in the data folder."""

    code = "storage_full"


class RecordingNameTaken(SayagainError):
    """The archive has a recording of that name."""

    code = "recording_name_taken"


class WatchNotFound(SayagainError):
    """There is no such watch."""

    code = "watch_not_found"


class WatchNameTaken(SayagainError):
    """The archive has a watch of that name."""

    code = "watch_name_taken"


class WebhookForbidden(SayagainError):
    """Not an address that may be posted to."""

    code = "webhook_forbidden"


class KeyMissing(SayagainError):
    """There is no key in the request, or not a good one."""

    code = "key_missing"


class KeyForbidden(SayagainError):
    """The key does not allow that much."""

    code = "key_forbidden"


class KeyNotFound(SayagainError):
    """There is no such key."""

    code = "key_not_found"


class TooManyRequests(SayagainError):
    """More requests than are allowed; `retry_after_s` seconds from now there may be one more."""

    code = "too_many_requests"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooBusy(TooManyRequests):
    """More requests at a time than the service answers."""

    code = "too_busy"


class RequestTimeout(SayagainError):
    """The request began, and did not come to its end."""

    code = "request_timeout"


class QueryTooLong(SayagainError):
    """The clip is longer than is allowed."""

    code = "query_too_long"


class DecoderFailed(SayagainError):
    """The clip takes too long, or too much memory, to decode, or breaks what decodes it."""

    code = "decoder_failed"


class UploadTooLarge(SayagainError):
    """The clip, or all of the request, has more bytes than are allowed."""

    code = "upload_too_large"


class AudioGone(SayagainError):
    """The file of a recording is gone, or has changed since it was indexed."""

    code = "audio_gone"


class BadRequest(SayagainError):
    """Parts of a request are missing, or do not go together."""

    code = "invalid_request"


class TooManyClips(SayagainError):
    """More examples of one term than are allowed."""

    code = "too_many_clips"


class BadStretch(SayagainError):
    """Start and end do not name a stretch of the clip."""

    code = "bad_stretch"


class NoSpeech(SayagainError):
    """The clip is silent, or too short to hold a term."""

    code = "no_speech"


CLIP_ERRORS = (AudioError, NoSpeech, QueryTooLong, BadStretch, DecoderFailed)  # one clip's fault: other clips go on


_OURS = ("model.", "indexer.", "service.")


def code_of(error: BaseException) -> str:
    """The stable code of one of our own errors, or internal_error: other libraries' errors have a `code` too."""
    code = getattr(error, "code", None)
    return code if isinstance(code, str) and type(error).__module__.startswith(_OURS) else INTERNAL


def message_of(error: BaseException) -> str:
    """One line, never a trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
