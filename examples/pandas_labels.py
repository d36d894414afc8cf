"""Label the images of a pandas table: one new column with the most likely text, one with its probability.

python pandas_labels.py IMAGE...
"""

import sys

import pandas as pd

import siglip_onnx

model = siglip_onnx.load("demo")
table = pd.DataFrame({"path": sys.argv[1:]})
labels = pd.Series(["a red star", "six eggs", "a blue star"])

best = [max(matches, key=lambda match: match.logit) for matches in model.classify(table["path"], labels)]
table["label"] = [match.text for match in best]
table["probability"] = [match.probability for match in best]
print(table.to_csv(index=False), end="")
