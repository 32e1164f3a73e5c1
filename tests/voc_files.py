"""PASCAL VOC and COCO in small: made-up images with objects of few classes, in the files of their authors."""

import json

import numpy as np
from PIL import Image

KINDS = ("aeroplane", "bicycle", "bird", "tvmonitor")
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (220, 210, 40))


def picture(path, boxes, *, size=(32, 24), seed=0):
    """Noise, with a rectangle of its class's colour for each (class, x, y, w, h)."""
    pixels = np.random.default_rng(seed).integers(90, 140, (size[1], size[0], 3), dtype=np.uint8)
    for kind, x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = COLOURS[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90)


def annotation(objects):
    """XML of (class name, difficult) pairs; difficult None: the file says nothing of it."""
    parts = [
        f"<object><name>{name}</name>{'' if hard is None else f'<difficult>{hard}</difficult>'}</object>"
        for name, hard in objects
    ]
    return f"<annotation><filename>x.jpg</filename>{''.join(parts)}</annotation>"


def voc_files(root, counts=None, *, year="2007"):
    """`counts`: images of each list of ImageSets/Main; each shows one or two classes, some of them difficult."""
    counts = counts or {"train": 24, "val": 12, "test": 20}
    base = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    lists = {}
    number = 0
    for part, count in counts.items():
        lists[part] = []
        for _ in range(count):
            number += 1
            name, first, second = f"{number:06}", number % 4, (number * 7) % 5
            shown = [(first, 2, 3, 14, 16)]
            objects = [(KINDS[first], 0)]
            if second < 4 and second != first:
                shown.append((second, 18, 6, 12, 14))
                objects.append((KINDS[second], int(number % 5 == 0)))
            picture(base / "JPEGImages" / f"{name}.jpg", shown, seed=number)
            (base / "Annotations" / f"{name}.xml").write_text(annotation(objects))
            lists[part].append(name)
    lists["trainval"] = sorted(lists.get("train", []) + lists.get("val", []))
    for part, names in lists.items():
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    return ["data.name=voc:" + year, f"data.path={root}"]


def coco_files(root, counts=None, *, size=(256, 256), kinds=3):
    """`counts`: images of train2017 and val2017; rectangles and ellipses, with masks in all three forms of COCO."""
    ids = (7, 2, 90)  # categories need not be consecutive, nor in order
    for split, count in (counts or {"train": 14, "val": 6}).items():
        tree = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": f"kind {i}"} for i in ids[:kinds]],
        }
        for number in range(count):
            name = f"{split}2017/{number:012}.jpg"
            boxes = _boxes(number, size, kinds)
            picture(root / name, boxes, size=size, seed=number)
            tree["images"].append(
                {"id": 100 + number, "file_name": name.partition("/")[2], "width": size[0], "height": size[1]}
            )
            for kind, *box in boxes:
                x, y, w, h = box
                corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                tree["annotations"].append(
                    {
                        "id": len(tree["annotations"]) + 1,
                        "image_id": 100 + number,
                        "category_id": ids[kind],
                        "bbox": box,
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": corners if kind else counted(box, size),
                    }
                )
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(tree))
    return ["data.name=coco:2017", f"data.path={root}"]


def _boxes(number, size, kinds):
    """One object in each half of the image; the last of each seven images shows none."""
    if number % 7 == 6:
        return []
    w, h = size[0] // 4 + 7 * (number % 4), size[1] // 3
    first = (number % kinds, 10 + number, 12 + 3 * number, w, h)
    return [first, ((number + 1) % kinds, size[0] // 2 + 15, size[1] // 2 + 2 * number, w - 6, h)]


def counted(box, size):
    """A rectangle as COCO counts its pixels, column by column."""
    x, y, w, h = box
    mask = np.zeros((size[1], size[0]), bool)
    mask[y : y + h, x : x + w] = True
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    return {
        "size": [size[1], size[0]],
        "counts": np.diff(np.concatenate([[0], changes, [flat.size]])).tolist(),
    }
