"""Instruments observe a run and do not change it: time, memory, work done, image quality."""
