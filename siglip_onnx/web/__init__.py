"""Web page and HTTP API: a FastAPI application, a bounded request queue, and the models behind it."""
