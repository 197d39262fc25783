"""Settings, from the environment (SAYAGAIN_*) and a .env file; made where the program starts, never on import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.tokenizer import DEFAULT_WEIGHTS, Device

PREFIX = "SAYAGAIN_"


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class Settings(BaseSettings):
    """All that can be set. Names in the environment carry the prefix SAYAGAIN_."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore")

    home: Path = Field(
        default=Path("~/.local/share/sayagain"), description="data folder: the embedded database lives here"
    )
    database_url: SecretStr | None = Field(
        default=None, description="an external PostgreSQL >= 15; none: the embedded one"
    )
    replica_url: SecretStr | None = Field(
        default=None, description="a read replica of it, for searches, lists and sounds; none: they ask the primary"
    )
    replica_lag_s: float = Field(default=30.0, ge=0, description="a replica that is so far behind is warned of")
    tokenizer: Path = Field(default=DEFAULT_WEIGHTS, description="the tokenizer's ONNX file")
    device: Device = Field(default="cpu", description="cpu or cuda")
    threads: int = Field(default=0, ge=0, description="threads of one tokenizer run; 0: as many as there are cores")
    host: str = Field(default="127.0.0.1", description="address to listen on; on other than loopback, keys are needed")
    max_query_s: float = Field(default=60.0, gt=0, description="longest clip, in seconds")
    max_upload_mb: float = Field(default=64.0, gt=0, description="largest clip, in megabytes")
    max_request_mb: float = Field(default=256.0, gt=0, description="largest request, in megabytes")
    max_in_flight: int = Field(default=256, ge=1, description="requests at a time; more are told to come again")
    max_threads: int = Field(default=16, ge=1, description="requests at a time that are at work, the others wait")
    body_timeout_s: float = Field(default=60.0, gt=0, description="seconds in which more of a request has to come")
    decoders: int = Field(default=2, ge=1, description="processes that decode clips, each at most one at a time")
    decoder_timeout_s: float = Field(default=20.0, gt=0, description="seconds that one clip may take to decode")
    decoder_memory_mb: float = Field(default=1_024.0, gt=0, description="megabytes that one clip may take to decode")
    cors_origins: list[str] = Field(
        default=[], description="origins whose pages may ask from browsers, a JSON list; none: only the service's own"
    )
    max_clips: int = Field(default=10, ge=1, description="clips of one query")
    max_batch: int = Field(default=100, ge=1, description="clips of one batch, each a query of its own")
    max_marks: int = Field(default=50, ge=1, description="hits marked right, or wrong, of one refined query")
    max_clip_s: float = Field(default=600.0, gt=0, description="longest stretch of a recording that is cut or drawn")
    max_recordings_mb: float = Field(default=4_000.0, gt=0, description="recordings of one upload, in megabytes")
    roots: list[Path] = Field(
        default=[], description="folders of this machine that may be indexed over HTTP, a JSON list; none: no folder"
    )
    run_jobs: bool = Field(default=True, description="do jobs and watches in this process; else `sayagain work` does")
    index_workers: int = Field(default=2, ge=1, description="worker processes of one job that indexes")
    refit_hours: float = Field(
        default=20.0, ge=0, description="archives up to so long get a new codebook by a job when they outgrow theirs"
    )
    webhook_private: bool = Field(default=False, description="let webhooks reach addresses of private networks")
    candidate_depth: int = Field(default=2_000, ge=1, description="segments that the candidate stage hands on")
    rescore_depth: int = Field(default=2_000, ge=1, description="candidates, best aligned first, that are rescored")

    deep_tokenizer: str = Field(
        default="accurate",
        description="that of deep rescoring: a name that `tokenizer list` shows, or an ONNX file",
    )
    deep_hits: int = Field(default=50, ge=1, le=1_000, description="first hits whose sound deep rescoring hears")
    deep_budget_s: float = Field(default=2.0, gt=0, description="seconds after which deep rescoring hears no more hits")

    log_format: Literal["text", "json"] = Field(
        default="text", description="text for people, or json, an object a line"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="what is logged: debug, info, warning or error"
    )
    metrics_open: bool = Field(default=False, description="answer /metrics without a key, also where keys are needed")
    min_free_mb: float = Field(default=200.0, ge=0, description="less space than this in the data folder is warned of")
    shutdown_s: int = Field(default=30, ge=0, description="seconds that requests have to end in when the service stops")

    @property
    def home_path(self) -> Path:
        """The data folder with ~ expanded."""
        return self.home.expanduser()

    @property
    def url(self) -> str | None:
        """The database URL in the clear, or None for the embedded server."""
        return None if self.database_url is None else self.database_url.get_secret_value()
