"""Embed images in several processes with joblib: the model is pickled with each batch, and opened from its folder.

python parallel_joblib.py IMAGE...
"""

import sys

import numpy as np
from joblib import Parallel, delayed

import siglip_onnx

if __name__ == "__main__":
    model = siglip_onnx.load("demo", threads=1)
    batches = np.array_split(sys.argv[1:], 2)
    results = Parallel(n_jobs=2)(delayed(model.encode_images)(batch) for batch in batches)
    print(np.concatenate(list(results)).shape)
