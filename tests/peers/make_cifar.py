"""Writes tests/parity/cifar/: a few synthetic images in the containers that
CIFAR-10 and CIFAR-100 come in, by the tools that write those.

    python2.7 -m pip install numpy==1.16.6
    python2.7 tests/peers/make_cifar.py        # the authors' python archives
    python3 -m pip install numpy pillow pyarrow
    python3 tests/peers/make_cifar.py          # the hub's parquet, EDM's zip

The authors' files were pickled by Python 2, whose C pickler numbers its memo
from 1 and writes text as byte strings: hence Python 2.7. Made with 2.7.18;
Pillow 13.0.0 and pyarrow 26.0.1. The tests read the files; nothing in the
repository runs this script.
"""

import gzip
import io
import json
import os
import sys
import tarfile
import zipfile

import numpy as np

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "parity", "cifar")


def images(indices):
    """Image i has the value p (i + 1) mod 251 at place p."""
    return np.array([[p * (i + 1) % 251 for p in range(3072)] for i in indices], dtype=np.uint8)


def batch(name, indices):
    return {
        "batch_label": name,
        "labels": [3 * i % 10 for i in indices],
        "data": images(indices),
        "filenames": ["image_s_%06d.png" % i for i in indices],
    }


def batch100(name, indices, by_column):
    data = images(indices)
    return {
        "batch_label": name,
        "fine_labels": [37 * i % 100 for i in indices],
        "coarse_labels": [i % 20 for i in indices],
        "data": np.asfortranarray(data) if by_column else data,
        "filenames": ["image_s_%06d.png" % i for i in indices],
    }


def archive(name, directory, members):
    with open(os.path.join(OUT, name), "wb") as file:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            with tarfile.open(mode="w", fileobj=packed) as tar:
                info = tarfile.TarInfo(directory)
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                for member, content in members:
                    info = tarfile.TarInfo(directory + "/" + member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def archives():
    import cPickle

    def dumps(value):
        return cPickle.dumps(value, 2)

    train = {k: batch("training batch %d of 5" % k, range(4 * (k - 1), 4 * k)) for k in range(1, 6)}
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    # The order of the members is that of the authors' archive.
    archive("cifar-10-python.tar.gz", "cifar-10-batches-py", [
        ("data_batch_4", dumps(train[4])),
        ("readme.html", b"<html></html>\n"),
        ("test_batch", dumps(batch("testing batch 1 of 1", range(20, 23)))),
        ("data_batch_3", dumps(train[3])),
        ("batches.meta", dumps({"num_cases_per_batch": 4, "label_names": names, "num_vis": 3072})),
        ("data_batch_2", dumps(train[2])),
        ("data_batch_5", dumps(train[5])),
        ("data_batch_1", dumps(train[1])),
    ])
    archive("cifar-100-python.tar.gz", "cifar-100-python", [
        ("file.txt~", b""),
        ("train", dumps(batch100("training batch 1 of 1", range(6), by_column=True))),
        ("test", dumps(batch100("testing batch 1 of 1", range(20, 23), by_column=False))),
    ])


def png(pixels, **options):
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0)).save(buffer, format="png", **options)
    return buffer.getvalue()


def pngs():
    import pyarrow
    import pyarrow.parquet

    def parquet(name, data, labels):
        img = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        columns = {"img": pyarrow.array([{"bytes": png(x), "path": None} for x in data], type=img)}
        columns.update({key: pyarrow.array(value, type=pyarrow.int64()) for key, value in labels.items()})
        pyarrow.parquet.write_table(pyarrow.table(columns), os.path.join(OUT, name), row_group_size=8)

    # The order is that of the authors' archive: batches 4, 3, 2, 5, 1.
    order = [i for k in (4, 3, 2, 5, 1) for i in range(4 * (k - 1), 4 * k)]
    train, train100 = batch("", order), batch100("", range(6), False)
    parquet("cifar10-train.parquet", train["data"], {"label": train["labels"]})
    coarse = {"fine_label": train100["fine_labels"], "coarse_label": train100["coarse_labels"]}
    parquet("cifar100-train.parquet", train100["data"], coarse)

    # As dataset_tool.py, which stores: deflated here, to be small.
    train = batch("", range(20))
    with zipfile.ZipFile(os.path.join(OUT, "cifar10-32x32.zip"), "w", compression=zipfile.ZIP_DEFLATED) as file:
        labels = []
        for i, (pixels, label) in enumerate(zip(train["data"], train["labels"])):
            name = "00000/img%08d.png" % i
            file.writestr(name, png(pixels, compress_level=0, optimize=False))
            labels.append([name, label])
        file.writestr("dataset.json", json.dumps({"labels": labels}))


if not os.path.isdir(OUT):
    os.makedirs(OUT)
archives() if sys.version_info[0] == 2 else pngs()
