"""Exported models without torch: the prediction of images, folders and tiles, and all formats of results.

    from masklab.runtime import load

    predictor = load("model.onnx")
    instances = predictor.predict("image.jpg")

`load` gives what `masklab.load` gives of a model's weights, without segmentation of given boxes and without
test-time augmentation.  A file ``.onnx`` needs onnxruntime, ``.xml`` openvino, and ``.pt2`` torch.
"""

from masklab.runtime.predictor import ExportedPredictor, load

__all__ = ["ExportedPredictor", "load"]
