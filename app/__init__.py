"""Spendgate: an AI gateway that never overspends.

The layers and what each may import are in pyproject.toml under ``tool.importlinter``; each
package says in its own first lines what it owns. This file owns the version and nothing else.
"""

__version__ = "0.1.0"
