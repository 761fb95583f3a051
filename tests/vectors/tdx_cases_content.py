"""TDX vectors about the domain: attributes, measurements, bindings and event logs."""

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tdx_case import QUOTE, Case, accepted, rejected, undecided

from support.fake_intel import INTEL, SEPT_VE_DISABLE, body

SPEC: Final = "5.2.3"
GOOD: Final = body()
OTHER: Final = "ab" * 48


def domains() -> Iterator[Case]:
    """Make domains with attributes that are not wanted."""
    debug, attributes = "debug_enabled", "attributes_not_allowed"
    for number, name, bit, code in (
        (601, "debug", 0, debug),
        (602, "profiling", 5, debug),
        (603, "reserved-under-debug", 7, debug),
        (604, "servtd-ext", 17, attributes),
        (605, "migratable", 29, attributes),
        (606, "reserved", 40, attributes),
    ):
        td = body(attributes=SEPT_VE_DISABLE | 1 << bit)
        title = f"bit {bit} of TDATTRIBUTES is set: {name.replace('-', ' ')}"
        yield rejected(f"{number}-{name}", title, SPEC, code, quote=INTEL.quote(td=td))
    open_to_ve = INTEL.quote(td=body(attributes=0))
    yield rejected("607-sept-ve-disable", "SEPT_VE_DISABLE is not set", SPEC, attributes, quote=open_to_ve)
    yield accepted(
        "608-sept-ve-disable-not-required",
        "SEPT_VE_DISABLE is not set, and not required: dcap-qvl does not judge such a domain",
        SPEC,
        quote=open_to_ve,
        policy={"require_sept_ve_disable": False},
        dcap=False,
    )
    yield rejected(
        "609-attribute-not-allowed",
        "PERFMON is set, and not allowed",
        SPEC,
        attributes,
        quote=INTEL.quote(td=body(attributes=SEPT_VE_DISABLE | 1 << 63)),
        policy={"allowed_attributes": ["SEPT_VE_DISABLE"]},
        dcap=True,
    )
    yield rejected(
        "610-tpa",
        "TPA is set",
        SPEC,
        attributes,
        quote=INTEL.quote(td=body(attributes=SEPT_VE_DISABLE | 1 << 62)),
        dcap=True,
    )
    for number, name, xfam in ((611, "xfam-unknown", 0x602E7 | 1 << 20), (612, "xfam-without-sse", 0x602E5)):
        yield rejected(
            f"{number}-{name}", f"XFAM is {xfam:#x}", SPEC, attributes, quote=INTEL.quote(td=body(xfam=xfam)), dcap=True
        )
    bound = INTEL.quote(version=5, td=body(tee_tcb_svn2=GOOD.tee_tcb_svn, mrservicetd=bytes.fromhex(OTHER)))
    yield rejected("613-service-td", "a service domain is bound", SPEC, "migration_agent_allowed", quote=bound)
    yield accepted(
        "614-service-td-allowed",
        "a service domain is bound that the policy names",
        SPEC,
        quote=bound,
        policy={"allowed_mrservicetds": [OTHER]},
        dcap=False,
    )
    yield rejected(
        "615-debug-without-collateral",
        "debug mode, and no collateral: refused all the same",
        SPEC,
        debug,
        quote=INTEL.quote(td=body(attributes=SEPT_VE_DISABLE | 1)),
        collateral=(),
        dcap=None,
    )


def measurements() -> Iterator[Case]:
    """Make policies with reference values."""
    values = {
        "mrtd": (GOOD.mrtd, "measurement_not_allowed"),
        "mrseam": (GOOD.mrseam, "measurement_not_allowed"),
        "mrconfigid": (GOOD.mrconfigid, "host_data_not_allowed"),
        "mrowner": (GOOD.mrowner, "host_data_not_allowed"),
        "mrownerconfig": (GOOD.mrownerconfig, "host_data_not_allowed"),
    }
    everything: dict[str, Any] = {}
    for number, (name, (value, code)) in enumerate(values.items(), 651):
        everything |= {f"allowed_{name}s": [OTHER, value.hex()], f"skip_{name}": False}
        yield rejected(
            f"{number}-{name}",
            f"{name.upper()} is not allowed",
            SPEC,
            code,
            dcap=True,
            policy={f"allowed_{name}s": [OTHER], f"skip_{name}": False},
        )
    yield rejected(
        "656-empty-list",
        "an empty list of MRTDs",
        SPEC,
        "measurement_not_allowed",
        policy={"skip_mrtd": False},
        dcap=True,
    )
    registers = {f"RTMR{index}": [value.hex()] for index, value in enumerate(GOOD.rtmrs)}
    for number, changed in enumerate(registers, 657):
        yield rejected(
            f"{number}-{changed.lower()}",
            f"{changed} is not allowed, the others are",
            SPEC,
            "register_not_allowed",
            policy={"allowed_rtmrs": {**registers, changed: [OTHER]}, "skip_rtmrs": False},
            dcap=True,
        )
    yield rejected(
        "661-no-register",
        "registers are to be held, and none is named",
        SPEC,
        "register_not_allowed",
        policy={"skip_rtmrs": False},
        dcap=True,
    )
    yield accepted(
        "662-all-allowed",
        "all measurements are allowed",
        SPEC,
        policy={**everything, "allowed_rtmrs": registers, "skip_rtmrs": False},
    )


def bindings() -> Iterator[Case]:
    """Make expectations of REPORT_DATA."""
    whole = GOOD.report_data
    data, nonce = "report_data_mismatch", "nonce_mismatch"
    half = hashlib.sha256(b"nonce").digest()
    first = INTEL.quote(td=body(report_data=half + bytes(32)))
    second = INTEL.quote(td=body(report_data=bytes(range(32)) + half))
    yield accepted("701-report-data", "the expected REPORT_DATA", SPEC, report_data=whole)
    yield rejected(
        "702-other-report-data",
        "REPORT_DATA with another last byte",
        SPEC,
        data,
        report_data=whole[:-1] + b"x",
        dcap=True,
    )
    yield rejected("703-prefix", "the first half of REPORT_DATA", SPEC, data, report_data=whole[:32], dcap=True)
    yield accepted("704-nonce-first", "a nonce at the beginning and zeros behind it", SPEC, quote=first, nonce=half)
    yield accepted("705-nonce-second", "a nonce in the second half", SPEC, quote=second, nonce=half)
    yield accepted("706-nonce-whole", "a nonce of 64 bytes", SPEC, nonce=whole)
    for number, name, title, got, expected in (
        (707, "other-nonce", "another nonce", second, bytes(31) + b"x"),
        (708, "nonce-and-more", "a nonce with other bytes behind it", QUOTE, whole[:32]),
        (709, "nonce-cut", "the first half of a nonce", first, half[:16]),
        (710, "nonce-end", "the end of a nonce", second, half[16:]),
        (711, "nonce-empty", "an empty nonce", QUOTE, b""),
        (712, "nonce-zero", "a nonce of zeros", INTEL.quote(td=body(report_data=bytes(64))), bytes(32)),
        (713, "nonce-long", "a nonce of 65 bytes", QUOTE, whole + b"\0"),
    ):
        yield rejected(f"{number}-{name}", title, SPEC, nonce, quote=got, nonce=expected, dcap=True)


EVENTS: Final = tuple((register, f"event {number}") for number, register in enumerate((0, 0, 1, 2, 1, 3, 3)))


def tcg_log(events: Sequence[tuple[int, str]], *, fill: bytes = b"\xff" * 100, index: int = 1) -> bytes:
    """Return a binary log with a SHA-256 beside each SHA-384; `index` is that of RTMR0."""
    announced = struct.pack("<HHHH", 0x0B, 32, 0x0C, 48)
    header = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 2) + announced + b"\0"
    log = struct.pack("<II20sI", 0, 3, b"", len(header)) + header
    for register, text in events:
        data = text.encode()
        digests = (hashlib.sha256(data).digest(), hashlib.sha384(data).digest())
        log += struct.pack("<III", register + index, 0x80000008, 2)
        log += struct.pack("<H32sH48s", 0x0B, digests[0], 0x0C, digests[1]) + struct.pack("<I", len(data)) + data
    return log + fill


def dstack_log(events: Sequence[tuple[int, str]], *, empty: bool = False) -> list[dict[str, Any]]:
    """Return a log of dstack; `empty` leaves out the digests of RTMR3, as old versions do."""
    log = []
    for register, text in events:
        runtime = register == 3
        data = b":".join(((0x08000001).to_bytes(4, "little"), text.encode(), b"\1")) if runtime else text.encode()
        log.append(
            {
                "imr": register,
                "event_type": 0x08000001 if runtime else 0x80000008,
                "digest": "" if runtime and empty else hashlib.sha384(data).hexdigest(),
                "event": text if runtime else "",
                "event_payload": "01" if runtime else text.encode().hex(),
            }
        )
    return log


def _replayed(log: Sequence[dict[str, Any]]) -> bytes:
    registers = [bytes(48)] * 4
    for entry in log:
        digest = bytes.fromhex(entry["digest"])
        registers[entry["imr"]] = hashlib.sha384(registers[entry["imr"]] + digest).digest()
    rtmr0, rtmr1, rtmr2, rtmr3 = registers
    return INTEL.quote(td=body(rtmr0=rtmr0, rtmr1=rtmr1, rtmr2=rtmr2, rtmr3=rtmr3))


def event_logs() -> Iterator[Case]:
    """Make event logs."""
    spec, mismatch, malformed = "5.2.6", "event_log_mismatch", "evidence_malformed"
    dstack = dstack_log(EVENTS)
    quote = _replayed(dstack)
    firmware = [event for event in EVENTS if event[0] < 3]
    boot = _replayed(dstack_log(firmware))

    def text(log: Any) -> bytes:
        return json.dumps(log).encode()

    yield accepted("801-dstack-log", "a log of dstack", spec, quote=quote, event_logs=(text(dstack),))
    yield accepted(
        "802-digests-missing",
        "a log without the digests of RTMR3",
        spec,
        quote=quote,
        event_logs=(text(dstack_log(EVENTS, empty=True)),),
    )
    yield accepted("803-firmware-log", "a log of the firmware", spec, quote=boot, event_logs=(tcg_log(firmware),))
    yield accepted(
        "804-required",
        "a log is required",
        spec,
        quote=boot,
        event_logs=(tcg_log(firmware, fill=b"\0"),),
        policy={"require_event_log": True},
    )
    yield undecided(
        "805-required-and-missing",
        "a log is required and missing",
        spec,
        "event_log_missing",
        policy={"require_event_log": True},
        dcap=True,
    )
    payload = [*dstack[:-1], {**dstack[-1], "event_payload": "02"}]
    renamed = [*dstack[:-1], {**dstack[-1], "event": "another"}]
    for number, name, log in (
        (806, "payload-changed", payload),
        (807, "name-changed", renamed),
        (808, "digest-changed", [{**dstack[0], "digest": OTHER}, *dstack[1:]]),
        (809, "event-dropped", dstack[:-1]),
        (810, "events-swapped", [dstack[1], dstack[0], *dstack[2:]]),
        (811, "event-added", [*dstack, dstack[-1]]),
    ):
        yield rejected(
            f"{number}-{name}", name.replace("-", " "), spec, mismatch, quote=quote, event_logs=(text(log),), dcap=True
        )
    yield rejected(
        "812-register-not-covered",
        "a log of the firmware alone, while RTMR3 was extended",
        spec,
        mismatch,
        quote=quote,
        event_logs=(tcg_log(firmware),),
        dcap=True,
    )
    yield rejected(
        "813-one-of-two-logs",
        "a good log and another one",
        spec,
        mismatch,
        quote=quote,
        event_logs=(text(dstack), text(payload)),
        dcap=True,
    )
    for number, name, data in (
        (814, "no-register", text([{**dstack[0], "imr": 4}])),
        (815, "no-digest", text([{**dstack[0], "digest": ""}])),
        (816, "no-event", b"[]"),
        (817, "neither-form", b"\0" * 100),
        (818, "cut-off", tcg_log(firmware, fill=b"")[:-1]),
        (819, "index-zero", tcg_log(firmware, index=0)),
        (820, "member-twice", text(dstack).replace(b'"imr": 0', b'"imr": 0, "imr": 0', 1)),
    ):
        title = f"a log of {name.replace('-', ' ')}"
        yield rejected(f"{number}-log-{name}", title, spec, malformed, quote=quote, event_logs=(data,), dcap=True)
    yield rejected(
        "821-changed-without-collateral",
        "a log that does not fit, and no collateral",
        spec,
        mismatch,
        quote=quote,
        event_logs=(text(payload),),
        collateral=(),
        dcap=None,
    )
