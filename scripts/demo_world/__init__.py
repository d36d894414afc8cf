"""The small world of the demo model: contents of images, drawings, captions and questions."""
