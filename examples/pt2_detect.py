"""Detects objects in an image with a .pt2 file of torch.export; needs torch, torchvision, Pillow.

Writes a list of {category, score, bbox}, bbox as [x, y, width, height] in pixels.

Usage: python pt2_detect.py model.pt2 photo.jpg detections.json
"""

import json
import sys

import numpy as np
import torch
import torchvision  # noqa: F401  (registers operators that the file uses)
from PIL import Image, ImageOps

model_path, image_path, output_path = sys.argv[1:]
files = {"atss_d2": ""}
model = torch.export.load(model_path, extra_files=files).module(check_guards=False)
about = json.loads(files["atss_d2"])

image = ImageOps.exif_transpose(Image.open(image_path))
if image.mode.startswith(("I", "F")):
    sys.exit("scale gray images of 16 bits to 8 bits first: they would turn white")
size = image.size
if about["resize_factor"]:
    size = [max(1, round(side * about["resize_factor"])) for side in size]
elif about["shortest_edge"]:
    factor = about["shortest_edge"] / min(size)
    factor = min(factor, (about["max_size"] or np.inf) / max(size))
    size = [int(side * factor + 0.5) for side in size]
pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
if about["input_format"] == "BGR":
    pixels = pixels[:, :, ::-1]
images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype(about["input_dtype"])

with torch.inference_mode():
    outputs = model(torch.from_numpy(images))
boxes, scores, classes, num_detections = (x.numpy() for x in outputs)
boxes *= np.tile(np.divide(image.size, size), 2).astype(np.float32)  # in pixels of the photograph
boxes[..., 2:] -= boxes[..., :2]  # [x, y, width, height], as in COCO
names = about["class_names"]
detections = [
    {"category": names[c], "score": float(scores[0, i]), "bbox": boxes[0, i].tolist()}
    for i, c in enumerate(classes[0, : num_detections[0]])
]
with open(output_path, "w") as file:
    json.dump(detections, file, indent=1)
