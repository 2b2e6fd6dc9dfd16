"""The settings of the service, beside those of the reward model (`reward.settings`)."""

from dataclasses import dataclass

from cot_reward.settings import setting


@dataclass(frozen=True)
class ServiceSettings:
    host: str = setting("address that the service listens on", "127.0.0.1")
    port: int = setting("port of the service; 0: any free one", 8100)
    service_key_env: str = setting(
        "environment variable that holds the key which callers must send; not set: none is asked",
        "COT_REWARD_SERVICE_KEY",
    )
    time_limit: float = setting("seconds for a request that names no limit", 120.0)
    max_time_limit: float = setting("most seconds that a request can ask for", 600.0)
    max_working: int = setting("requests that are worked on at a time", 256)
    max_queued: int = setting("requests that wait for a place; more are turned away", 256)
    max_body_bytes: int = setting("largest body of a request", 2**24)
    max_buffered_bytes: int = setting("bodies of all requests together", 2**29)
    max_candidates: int = setting("candidates of a ranking", 32)
    max_comparisons: int = setting("comparisons of a ranking", 496)
    max_pictures: int = setting("pictures of a request, frames and context among them", 64)
    max_text_characters: int = setting("characters of the prompt, and of an answer", 2**15)
    max_picture_pixels: int = setting("pixels of a picture as it comes", 2**24)
    grace: float = setting("seconds that requests have to end in when the service is stopped", 60.0)

    def __post_init__(self) -> None:
        minima = {
            "port": 0, "max_working": 1, "max_queued": 0, "max_body_bytes": 1,
            "max_candidates": 2, "max_comparisons": 1, "max_pictures": 2, "max_picture_pixels": 1,
            "max_text_characters": 1,
            "grace": 0, "time_limit": 0.001, "max_time_limit": self.time_limit,
            "max_buffered_bytes": self.max_body_bytes,
        }  # fmt: skip
        for name, minimum in minima.items():
            if not getattr(self, name) >= minimum:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} must be at least {minimum}, is {getattr(self, name)}")
        if not self.host.strip():
            raise ValueError("--host is empty; 0.0.0.0 stands for all addresses of this machine")
        if self.port > 65535:
            raise ValueError(f"--port {self.port}: the largest port is 65535")
