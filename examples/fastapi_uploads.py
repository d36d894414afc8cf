"""Classify uploads in an app of your own with FastAPI.

uvicorn fastapi_uploads:app
curl -F image=@photo.jpg http://127.0.0.1:8000/classify
"""

from typing import Annotated

from fastapi import FastAPI, File, HTTPException, UploadFile

import siglip_onnx
from siglip_onnx.image import SERVER_LIMITS

app = FastAPI()
# For images of untrusted users: stricter limits, and a decoder process that ends at its limits of memory and time.
model = siglip_onnx.load("demo", image_limits=SERVER_LIMITS, isolate_decoding=True)
TEXTS = ["a red star", "six eggs"]


@app.post("/classify")
def classify(image: Annotated[UploadFile, File()]) -> dict[str, float]:
    """Return the probability of each text; FastAPI runs a function without async in a thread of its own."""
    try:
        return {match.text: match.probability for match in model.classify(image.file, TEXTS)}
    except siglip_onnx.ImageError as error:
        raise HTTPException(422, str(error)) from error
