"""Networks and their parts: encoders, heads, the synchronised batch norm, and the moving-average teacher."""
