"""The one error envelope (docs/spec/http-api.md section 3), as OpenAI SDKs parse it."""

import msgspec

from tresor.errors import FailedAttempt, RequestError

__all__ = ["encode_envelope", "encode_stream_error"]


class _Error(msgspec.Struct, frozen=True, omit_defaults=True):
    message: str
    type: str
    code: str
    param: str | None
    attempts: tuple[FailedAttempt, ...] = ()


class _Envelope(msgspec.Struct, frozen=True):
    error: _Error
    request_id: str


class _ReceiptId(msgspec.Struct, frozen=True):
    receipt_id: str


class _StreamError(msgspec.Struct, frozen=True, omit_defaults=True):
    error: _Error
    tresor: _ReceiptId | None = None


def encode_envelope(error: RequestError, request_id: str) -> bytes:
    """Encode the body of an error answer."""
    return msgspec.json.encode(_Envelope(_body(error), request_id))


def encode_stream_error(error: RequestError, receipt_id: str | None) -> bytes:
    """Encode the data of the event that ends a broken stream (docs/spec/http-api.md section 4.6)."""
    return msgspec.json.encode(_StreamError(_body(error), None if receipt_id is None else _ReceiptId(receipt_id)))


def _body(error: RequestError) -> _Error:
    return _Error(str(error), error.type, error.code, error.param, error.attempts)
