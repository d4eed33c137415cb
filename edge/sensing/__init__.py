"""Bytes → `Window`s: decoders (pure), sources (the only code that opens a sensor), windows, recordings, a simulator."""
