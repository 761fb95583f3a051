"""Single-bit flips, and what makes it cheap to try every one of them.

    for place, bit, flipped in flips(good):                  # all bits
    for place, bit, flipped in flips(good, bits=one_bit):    # one bit of every byte, which one depends on its place

To verify ECDSA over P-384 takes half a millisecond, which sixty thousand flips do not have.  So an `IdealKey` stands in
for the real one where all bits of long evidence are tried, and the real one sees one bit of every byte.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["IdealKey", "every_bit", "flips", "ideal_certificate", "one_bit", "remembered", "slices"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SLICE_BYTES: Final = 512


def every_bit(_place: int) -> Iterable[int]:
    """Return the bits of a byte."""
    return range(8)


def one_bit(place: int) -> Iterable[int]:
    """Return one bit of the byte at `place`; over eight bytes in a row, each once."""
    return (place * 5 % 8,)


def flips(
    good: bytes, places: Iterable[int] | None = None, *, bits: Callable[[int], Iterable[int]] = every_bit
) -> Iterator[tuple[int, int, bytes]]:
    """Yield place, bit, and `good` with that bit flipped; in every byte unless `places` are given."""
    for place in range(len(good)) if places is None else places:
        for bit in bits(place):
            yield place, bit, good[:place] + bytes((good[place] ^ 1 << bit,)) + good[place + 1 :]


def slices(end: int, start: int = 0, size: int = _SLICE_BYTES) -> list[range]:
    """Cut places into slices, of which each can be a test, so that the workers of pytest-xdist share them."""
    return [range(first, min(first + size, end)) for first in range(start, end, size)]


def remembered(function: Callable[_P, _T], key: Callable[..., Hashable]) -> Callable[_P, _T]:
    """Return a pure function that remembers what it returned, by `key` of its arguments; refusals are made anew."""
    known: dict[Hashable, _T] = {}

    @wraps(function)
    def remembering(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        about = key(*args, **kwargs)
        if about not in known:
            known[about] = function(*args, **kwargs)
        return known[about]

    return remembering


@ec.EllipticCurvePublicKey.register
class IdealKey:
    """A key that accepts what was signed with the signature it got, and nothing else: what a signature scheme promises.

    Which pair that is, the real key says: the first call must be one that it accepts.
    """

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self.curve = key.curve
        self._key = key
        self._accepted: tuple[bytes, bytes] | None = None

    def verify(self, signature: bytes, data: bytes, algorithm: ec.ECDSA) -> None:
        """Accept the one pair."""
        if self._accepted is None:
            self._key.verify(signature, data, algorithm)
            self._accepted = signature, data
        if (signature, data) != self._accepted:
            raise InvalidSignature


class _IdealCertificate:
    def __init__(self, certificate: x509.Certificate) -> None:
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        self._certificate, self._key = certificate, IdealKey(key)

    def public_key(self) -> IdealKey:
        return self._key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._certificate, name)


def ideal_certificate(certificate: x509.Certificate) -> x509.Certificate:
    """Return `certificate` with an ideal key in place of its own."""
    return cast("x509.Certificate", _IdealCertificate(certificate))
