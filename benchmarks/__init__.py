"""What measures sdbench itself; not in the wheel."""
