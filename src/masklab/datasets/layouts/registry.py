"""List of the layouts that are recognised, besides COCO's."""

from __future__ import annotations

from masklab.datasets.layouts.cell_tracking import CELL_TRACKING
from masklab.datasets.layouts.cellpose import CELLPOSE
from masklab.datasets.layouts.cityscapes import CITYSCAPES
from masklab.datasets.layouts.cvat import CVAT
from masklab.datasets.layouts.datumaro import DATUMARO
from masklab.datasets.layouts.geojson import GEOJSON
from masklab.datasets.layouts.imagej import IMAGEJ
from masklab.datasets.layouts.kaggle import KAGGLE
from masklab.datasets.layouts.label_images import LABEL_IMAGES
from masklab.datasets.layouts.labelme import LABELME
from masklab.datasets.layouts.nnunet import NNUNET
from masklab.datasets.layouts.penn_fudan import PENN_FUDAN
from masklab.datasets.layouts.supervisely import SUPERVISELY
from masklab.datasets.layouts.via import VIA
from masklab.datasets.layouts.voc import VOC
from masklab.datasets.layouts.yolo import YOLO

LAYOUTS = (
    # one label image, or one image for each object
    *(LABEL_IMAGES, CELLPOSE, KAGGLE, VOC, PENN_FUDAN, CITYSCAPES, CELL_TRACKING, NNUNET),
    # outlines
    *(YOLO, LABELME, VIA, CVAT, DATUMARO, SUPERVISELY, GEOJSON, IMAGEJ),
)
