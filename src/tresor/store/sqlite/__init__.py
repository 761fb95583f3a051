"""The store on one machine: SQLite in WAL mode, every commit flushed."""
