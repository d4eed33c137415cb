"""Who makes models, signs them and offers them: a real repository, and keys that open quickly."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf_device import Device

from deploy import keys
from deploy import publish as publishing
from deploy.keyfiles import KeyRing, Passphrases
from edge.bundle import Manifest
from edge.updating.offer import Offer

WORDS = "four random words here"
Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
Parts = tuple[Manifest, dict[str, bytes]]


class Shop:
    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder, self.repo, self.clock = folder, folder / "models", clock
        self.passphrases = Passphrases({}, lambda prompt: WORDS, lambda: True)
        keys.init(self.repo, folder / "keys", self.passphrases, clock=clock)
        self.root = (self.repo / "metadata" / "1.root.json").read_bytes()

    def ring(self, *names: str) -> KeyRing:
        places = [self.folder / "keys" / f"{name}.pem" for name in names] or [self.folder / "keys"]
        return KeyRing(places, self.passphrases)

    def publish(self, bundle: Path, ring: KeyRing | None = None, **options: Any) -> publishing.Published:
        return publishing.publish(bundle, self.repo, ring or self.ring(), clock=self.clock, **options)

    def number(self, bundle: Path, **options: Any) -> int:
        offer = self.publish(bundle, **options).offer
        assert isinstance(offer, Offer)
        return offer.number

    def withdraw(self, what: str) -> publishing.Published:
        return publishing.withdraw(what, self.repo, self.ring(), clock=self.clock)

    def refresh(self, *names: str) -> publishing.Published:
        return publishing.refresh(self.repo, self.ring(*names), clock=self.clock)

    def device(self, name: str = "device") -> Device:
        return Device(self.folder / name, self.root, self.repo)
