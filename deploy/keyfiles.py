"""Private keys on disk: ed25519, encrypted, one file each, readable by its owner alone.

    amiss key: targets-1
    id: 5a3c…                        what TUF calls it
    kept: by whoever publishes …
    scrypt: 65536 8 1 77f1…          cost and salt (RFC 7914); absent when the file is not encrypted
    -----BEGIN ENCRYPTED PRIVATE KEY-----

PKCS #8 encrypts with PBKDF2 and 2,048 rounds, which lets a graphics card try millions of passphrases a second. So it gets as
its password what scrypt makes of the passphrase (64 MB and a quarter of a second a try), in hexadecimal. Passphrases come from
a prompt or a file, never from the command line, where every user of the computer can read them.
"""

import getpass
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edge.errors import AccessError, CannotCreateError, DataError, NoInputError

ROLES = ("root", "targets", "snapshot", "timestamp")
ONLINE = ("snapshot", "timestamp")
NAME_FIELD = "x-amiss-name"
"""In signed metadata beside a public key, so that a message can say which key is missing."""
PASSPHRASE_FILE = "AMISS_KEY_PASSPHRASE_FILE"
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 16, 8, 1
MOST_SCRYPT_BYTES = 1 << 29
"""A file that asks for more is not one of ours."""
SHORTEST_PASSPHRASE = 10

PLACES = {
    "root": "offline, on a stick of its own, each with another person or in another safe",
    "targets": "with whoever publishes, on an encrypted disk",
    "snapshot": "on the computer that runs `amiss publish --refresh`",
    "timestamp": "on the computer that runs `amiss publish --refresh`",
}


@dataclass(frozen=True, slots=True)
class KeyFile:
    path: Path
    name: str
    keyid: str
    encrypted: bool


class Passphrases:
    """Where passphrases come from: `AMISS_KEY_PASSPHRASE_FILE` if it is set, else whoever sits at the terminal.

    The variable names a file with one line, for all keys, or a folder with a file for each, called as the key is.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        ask: Callable[[str], str] = getpass.getpass,
        terminal: Callable[[], bool] = lambda: sys.stdin.isatty(),
    ) -> None:
        self._environ, self._ask, self._terminal = environ, ask, terminal

    def known(self, name: str) -> str:
        """Of a key that there is; raises `AccessError` when it is not to be had."""
        return self._from_file(name) or self._typed(f"passphrase of {name}: ", name)

    def chosen(self, name: str) -> str:
        """For a new key; raises `AccessError` when it is not to be had or too short."""
        if not (passphrase := self._from_file(name)):
            passphrase = self._typed(f"new passphrase for {name}: ", name)
            if self._typed(f"once more, for {name}: ", name) != passphrase:
                raise AccessError(f"{name}: the two passphrases differ; nothing was made, try again")
        if len(passphrase) < SHORTEST_PASSPHRASE:
            raise AccessError(f"{name}: a passphrase has at least {SHORTEST_PASSPHRASE} characters; four random words are good")
        return passphrase

    def _typed(self, prompt: str, name: str) -> str:
        if not self._terminal():
            raise AccessError(f"{name}: no terminal to ask for its passphrase; put it into a file, {PASSPHRASE_FILE}=FILE")
        return self._ask(prompt)

    def _from_file(self, name: str) -> str | None:
        if not (value := self._environ.get(PASSPHRASE_FILE)):
            return None
        path = Path(value) / name if Path(value).is_dir() else Path(value)
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise AccessError(f"{PASSPHRASE_FILE}: {path} can be read by others: chmod 600 {path}")
            passphrase = path.read_text("utf-8").strip("\r\n")
        except FileNotFoundError:
            raise AccessError(f"{PASSPHRASE_FILE}: {path}: no such file; it is to hold the passphrase of {name}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(f"{PASSPHRASE_FILE}: {path}: cannot be read: {error}") from None
        if not passphrase:
            raise AccessError(f"{PASSPHRASE_FILE}: {path} is empty; it is to hold the passphrase of {name}")
        return passphrase


class KeyRing:
    """The private keys that are at hand: files `*.pem` in these folders, or the files themselves.

    Raises `NoInputError` for a place that is not there. A key is opened when it is first used, and once.
    """

    def __init__(self, places: Sequence[Path], passphrases: Passphrases) -> None:
        self.places, self._passphrases = tuple(places), passphrases
        self.files: dict[str, KeyFile] = {}
        """By id."""
        self._opened: dict[str, CryptoSigner] = {}
        for place in places:
            if not place.exists():
                raise NoInputError(f"{place}: no such folder of keys; `amiss keys init` makes one, --keys names another")
            for path in sorted(place.glob("*.pem")) if place.is_dir() else [place]:
                if (found := look_at(path)) is not None:
                    self.files[found.keyid] = found

    def add(self, file: KeyFile, signer: CryptoSigner) -> None:
        """A key that has just been made."""
        self.files[file.keyid], self._opened[file.keyid] = file, signer

    def has(self, key: Key) -> bool:
        return key.keyid in self.files

    def signer(self, key: Key) -> CryptoSigner:
        """Raises `NoInputError` when the key is not here, `AccessError` when it cannot be opened."""
        if not self.has(key):
            where = ", ".join(map(str, self.places))
            raise NoInputError(f"the key {name_of(key)} is not in {where}; name its folder or stick with --keys")
        if key.keyid not in self._opened:
            self._opened[key.keyid] = _open(self.files[key.keyid], key, self._passphrases)
        return self._opened[key.keyid]


def name_of(key: Key) -> str:
    return str(key.unrecognized_fields.get(NAME_FIELD, key.keyid[:8]))


def role_of(name: str) -> str:
    """`targets-1` → `targets`."""
    return name.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that is only in memory yet."""

    name: str
    signer: CryptoSigner
    encrypted: bool
    pem: bytes

    @classmethod
    def make(cls, name: str, passphrases: Passphrases | None) -> "NewKey":
        """Unencrypted without `passphrases`. Raises `AccessError` when there is no passphrase to be had."""
        private = Ed25519PrivateKey.generate()
        public = SSlibKey.from_crypto(private.public_key())
        public.unrecognized_fields[NAME_FIELD] = name
        lines = [f"amiss key: {name}", f"id: {public.keyid}", f"kept: {PLACES[role_of(name)]}"]
        encryption: KeySerializationEncryption = NoEncryption()
        if passphrases is not None:
            salt = os.urandom(16)
            encryption = BestAvailableEncryption(_stretched(passphrases.chosen(name), SCRYPT_N, SCRYPT_R, SCRYPT_P, salt))
            lines.append(f"scrypt: {SCRYPT_N} {SCRYPT_R} {SCRYPT_P} {salt.hex()}")
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        signer = CryptoSigner(private, public)
        return cls(name, signer, passphrases is not None, "\n".join([*lines, ""]).encode() + pem)

    def write(self, folder: Path) -> KeyFile:
        """To `folder`/`name`.pem. Raises `CannotCreateError`, also when there is such a file: a key is never overwritten."""
        path = folder / f"{self.name}.pem"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made with these rights, not given them later, and only if nothing is there.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                if not self.encrypted and stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:  # FAT knows no rights
                    path.unlink()
                    raise CannotCreateError(
                        f"{path}: this file system lets others read it; encrypt the key, or keep it elsewhere"
                    )
                file.write(self.pem)
                file.flush()
                os.fsync(descriptor)
        except FileExistsError:
            raise CannotCreateError(f"{path} is there, and a key is never overwritten; name another folder") from None
        except OSError as error:
            raise CannotCreateError(f"{path}: cannot be written: {error.strerror or error}") from None
        return KeyFile(path, self.name, self.signer.public_key.keyid, self.encrypted)


def look_at(path: Path) -> KeyFile | None:
    """What a file says of its key; `None` when it is none of ours. Raises `NoInputError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(8192).decode("utf-8", "replace")
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read: {error.strerror or error}") from None
    name, keyid = _field(text, "amiss key"), _field(text, "id")
    if name is None or keyid is None or "PRIVATE KEY-----" not in text:
        return None
    return KeyFile(path, name, keyid, "ENCRYPTED PRIVATE KEY" in text)


def _field(text: str, field: str) -> str | None:
    found = re.search(rf"^{field}: (.+)$", text.partition("-----BEGIN")[0], re.MULTILINE)
    return found[1].strip() if found else None


def _open(file: KeyFile, key: Key, passphrases: Passphrases) -> CryptoSigner:
    try:
        data = file.path.read_bytes()
        if not file.encrypted and stat.S_IMODE(file.path.stat().st_mode) & 0o077:
            raise AccessError(f"{file.path} is not encrypted and can be read by others: chmod 600 {file.path}")
    except OSError as error:
        raise NoInputError(f"{file.path}: cannot be read: {error.strerror or error}") from None
    password = None
    if file.encrypted:
        password = _password(file, data.decode("utf-8", "replace"), passphrases)
    try:
        private = load_pem_private_key(data, password)
    except (ValueError, TypeError) as error:
        # What a wrong passphrase makes of it looks whole in one case of 270, and only then it is no key.
        if file.encrypted and re.search("password|deserialize", str(error)):
            raise AccessError(
                f"{file.path}: this is not the passphrase of {file.name}; if it is, the file is damaged: take its copy"
            ) from None
        raise DataError(f"{file.path}: damaged; take the copy of {file.name} from its other place") from None
    if not isinstance(private, Ed25519PrivateKey) or SSlibKey.from_crypto(private.public_key()).keyid != key.keyid:
        raise DataError(f"{file.path}: holds another key than it says; take the copy of {file.name} from its other place")
    assert isinstance(key, SSlibKey)
    return CryptoSigner(private, key)


def _password(file: KeyFile, text: str, passphrases: Passphrases) -> bytes:
    cost = re.fullmatch(r"(\d{1,9}) (\d{1,3}) (\d{1,3}) ([0-9a-f]{32,128})", _field(text, "scrypt") or "")
    damaged = DataError(f"{file.path}: the line `scrypt:` is damaged; take the copy of {file.name} from its other place")
    if cost is None or 128 * int(cost[1]) * int(cost[2]) > MOST_SCRYPT_BYTES:
        raise damaged
    try:
        return _stretched(passphrases.known(file.name), int(cost[1]), int(cost[2]), int(cost[3]), bytes.fromhex(cost[4]))
    except ValueError:
        raise damaged from None


def _stretched(passphrase: str, n: int, r: int, p: int, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase.encode(), n=n, r=r, p=p, salt=salt, maxmem=2 * MOST_SCRYPT_BYTES, dklen=32).hex().encode()
