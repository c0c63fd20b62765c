"""One case in, one record out. Torch and transformers live here and nowhere above."""
