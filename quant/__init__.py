"""How a float matrix is stored in a package, and what that costs. Knows no model."""
