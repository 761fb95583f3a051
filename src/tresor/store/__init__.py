"""The store: what it promises, and its implementations in sub-packages."""
