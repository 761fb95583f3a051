"""Which upstream serves a request: the catalogue of routes, and the plan, a pure function over it."""
