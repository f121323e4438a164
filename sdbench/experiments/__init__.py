"""Which calls to make next: chosen from what was measured, such as a sweep, a search or a plan."""
