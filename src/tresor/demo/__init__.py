"""The demo: a real language model, a real router and real TLS on one machine."""
