"""What lies below a test's raw node: a local file, or the same file behind a server.

A test module that is marked `every_storage` runs its tests that use the fixture `disk` (or `storage`) once on each.
To add one: a function that serves `image` and gives the options of the node, and its line in KINDS.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import servers_iscsi
import servers_nbd


def on_file(_place, image):
    return f"file.driver = file\nfile.filename = {image.name}\n"


def on_nbd(place, image):
    server = servers_nbd.nbdkit(place, "file", f"file={image}", name=image.name)
    return server.node()


def on_iscsi(place, image):
    target = servers_iscsi.Tgt(place, image=image, name=image.name)
    place.servers.append(target)
    return f"file.driver = iscsi\nfile.url = {target.url()}\n"


KINDS = {"file": on_file, "nbd": on_nbd, "iscsi": on_iscsi}


class Storage:
    def __init__(self, place, kind):
        self.place = place
        self.kind = kind
        self.reserves_space = kind == "file"  # fallocate of mode 0

    def node(self, name="disk", image=None):
        """A section of a graph file: a raw node on the image, which lies in the place."""
        image = image or self.place.path / "disk.img"
        return f"[node {name}]\ndriver = raw\n{KINDS[self.kind](self.place, image)}\n"
