"""What may come of holding a pipeline against the oracle."""

WORKS = "works"
WITHOUT = "without halves"
REFUSED = "refused"
NOT_BUILT = "not built"
UNCLEAR = "not judged"
LATE = "refused in the loop"
FAILS = "fails in the loop"
SILENT = "wrong in silence"

ORDER = (WORKS, WITHOUT, REFUSED, NOT_BUILT, UNCLEAR, LATE, FAILS, SILENT)
"""The gravest last: it counts where a pipeline has several."""
BAD = (LATE, FAILS, SILENT)
