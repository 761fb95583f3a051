"""The configuration: its shape (`model`), how it is read and refused (`load`), how it is shown (`show`)."""
