"""What the tests of the running program stand on. `tests/conftest.py` makes fixtures of it.

An ordinary test takes the fixtures: one router over TLS and two scripted upstreams per test process, reset for each
test.

    def test_an_answer_is_relayed(router: Router, alpha: Upstream) -> None:
        alpha.script(reply(completion("four")))
        request = chat("solo")
        answer = router.complete(request)                # POST /v1/chat/completions with a key of customer `acme`
        assert answer.json["choices"][0]["message"]["content"] == "four"
        receipt = router.verify(answer.receipt_id, request=request, response=answer.body)
        assert alpha.last.json["model"] == "alpha-solo"  # what the router sent: .head, .body, .headers

Its routes: `m` at `eu/alpha/m` and, by its weight never the first choice, `us/beta/m`; `solo` at `eu/alpha/solo` alone;
`embed` (embeddings) and `whisper` (transcriptions) at alpha. The upstreams' names for them are `alpha-m`, `beta-m`,
`alpha-solo`, and so on.

An upstream that failed in earlier tests may rest, and is then passed over. A test that has one fail and another take
over takes `steady_router`, the same router with nothing held against anybody.

A test that needs settings of its own takes `start_router`:

    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2}, "limits": {"max_body_bytes": 9}})

It speaks plain HTTP unless `tls=` is given, and is stopped behind the test, which fails where that does not end with
exit code 0; `router.stop()` or `router.kill()` may come before. `running_router` is the same as a context manager.

Modules: `router` (the program, its command line, its processes), `upstream` (the scripted upstream: `reply`,
`stream`, `send_raw`, `hang_up`, and the bodies they send), `wire` (a caller's raw connection, `router.connect()`),
`certificates`, `provider_network` (attested upstreams of every kind, and their faults), `sidecar`.

Waiting is for events: a script may hold a `threading.Event` among its parts, `upstream.wait_for(n)` waits for
requests, `request.cancelled` is set when the router gave up on one, and `wait_until` polls for what has no event.
"""
