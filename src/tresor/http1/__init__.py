"""What both sides of HTTP/1.1 share: deadlines that cost nothing on the way."""
