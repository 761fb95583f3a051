"""Tresor: a router for confidential AI with receipts that prove what happened."""

__all__ = ["__version__"]

__version__ = "0.1.0"
