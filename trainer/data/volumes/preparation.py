"""What is done to a scan before a network sees it. Stub of the contract; see prepare."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Preparation(BaseModel):
    """What is done to a scan before a network sees it."""

    model_config = ConfigDict(frozen=True)
