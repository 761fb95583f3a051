"""The command lines: `tresor` for operators, `tresor-verify` for everyone who holds a receipt."""
