"""The small world that the demo model knows: what a picture shows, how it is drawn, how it is described."""
