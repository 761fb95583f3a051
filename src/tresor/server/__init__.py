"""The HTTP/1.1 server side: connections, requests, responses.  Knows nothing of what a request means."""
