"""`parse` under its first address, which studies outside of this project import.

The grammar itself is in `grammar.py`.
"""

from sdbench.variants.grammar import parse as parse
