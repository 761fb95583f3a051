"""The hop to the upstreams: connections, their pool, and one try at one route."""
