"""What a program with `requests` does. It prints a line for each step.

usage: python-requests.py BASE_URL UPLOAD REDIRECT_TARGET ODD_TARGET...    (TOKEN: what the upstream itself asks for)
"""

import hashlib
import os
import sys

import requests

base, upload, redirect, *odd_targets = sys.argv[1:]
session = requests.Session()
if "TOKEN" in os.environ:
    session.headers["Authorization"] = "Bearer " + os.environ["TOKEN"]


def show(name, response):
    digest = hashlib.sha256(response.content).hexdigest()
    print(name, response.status_code, response.headers.get("Content-Type"), digest, flush=True)


show("get", session.get(base + "/api/blogposts/@sitehome", params={"pageIndex": 1, "pageSize": 2}))
head = session.head(base + "/bytes/123456")
print("head", head.status_code, head.headers["Content-Type"], head.headers["Content-Length"])
show("post-json", session.post(base + "/echo/json?raw", json={"Content": "你好, 博客园", "Number": 1}))
form = {"title": "你好 & more", "tags": "a b+c", "empty": ""}
show("post-form", session.post(base + "/echo/form?raw", data=form))
with open(upload, "rb") as file:
    files = {"file": ("upload.bin", file)}
    print("upload", session.post(base + "/echo/upload", data={"title": "你好"}, files=files).status_code)
show("patch", session.patch(base + "/echo/patch?raw", json={"Content": "patched"}))
show("delete", session.delete(base + "/echo/delete?raw", json={"Ids": [1, 2]}))

digest = hashlib.sha256()
with session.get(base + "/bytes/67108864", stream=True) as download:
    for piece in download.iter_content(65536):
        digest.update(piece)
print("download", download.status_code, download.headers["Content-Type"], digest.hexdigest())
show("redirect", session.get(base + redirect))

# The upstream sends the next event only when it has heard that this one was seen.
seen = []
with session.get(base + "/lockstep", stream=True) as events:
    for line in events.iter_lines(chunk_size=1):
        if line.startswith(b"data: "):
            seen.append(line[6:].decode())
            session.get(base + "/echo/seen/" + seen[-1])
print("events", *seen)
for target in odd_targets:
    print("odd", session.get(base + target).status_code)
