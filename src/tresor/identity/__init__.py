"""How this process gets evidence about itself, and the envelope it hands out."""
