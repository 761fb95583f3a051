"""The benchmark: Tresor beside nginx and three other gateways, in one run, on one core each.

`python -m bench` installs what it compares with into `.bench/`, measures, prints the report and writes
`docs/performance.md`.  Standard library only; nothing here is part of the distribution.

    upstream.c, load.c      the server behind every gateway, the load in front of it
    machine.py              cores, process groups, what this machine is
    process.py              one server under test: started on its core, frozen while others are measured
    install.py              packages into environments of their own
    target.py               what a target is, and the check that it answers correctly
    gateways.py             the targets
    measure.py              phases, rounds, results
    report.py               ratios, targets met or not, docs/performance.md
"""
