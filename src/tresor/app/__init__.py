"""The application: what a request means, and the processes that serve it."""
