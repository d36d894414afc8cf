"""The page and its HTTP API: FastAPI in front, one bounded queue, and the models behind it."""
