"""The settings of inference on Ray, beside those of the client."""

from dataclasses import dataclass

from cot_reward.settings import setting


@dataclass(frozen=True)
class RaySettings:
    cluster: str = setting(
        "address of the Ray cluster (HEAD:6379); auto: the one of this machine, or of RAY_ADDRESS; "
        "local: a new one of this machine alone",
        "auto",
    )
    workers: int | None = setting(
        "shares that are asked at the same time (default: one a machine, or one a server)"
    )
    shares: int | None = setting(
        "parts of the work, each with a folder (default: 4 a worker, of 50 comparisons or more)"
    )
    gpus_per_server: int | None = setting(
        "start a server of --model for every worker, on so many GPUs of its machine; 0: on the CPU "
        "(default: ask --base-url and --servers)"
    )
    serve_command: str | None = setting(
        "what starts a server, in place of scripts/serve.sh MODEL: it is given --port N, and "
        "prints its address when it answers"
    )
    serve_flags: str = setting("further flags of the server", "")
    attempts: int = setting(
        "failures without a single new response after which a share, or a worker, is given up", 3
    )

    def __post_init__(self) -> None:
        """Raises ValueError."""
        for name in ("workers", "shares", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1")
        if self.gpus_per_server is not None and self.gpus_per_server < 0:
            raise ValueError("--gpus-per-server must be at least 0")
        if self.gpus_per_server is None and (self.serve_command or self.serve_flags):
            raise ValueError(
                "--serve-command and --serve-flags are about servers that the workers start; add "
                "--gpus-per-server N (0: without a GPU)"
            )

    @property
    def starts_servers(self) -> bool:
        return self.gpus_per_server is not None
