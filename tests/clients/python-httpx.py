"""What a program with `httpx` does. It prints a line for each step.

usage: python-httpx.py BASE_URL UPLOAD REDIRECT_TARGET ODD_TARGET...    (TOKEN: what the upstream itself asks for)
"""

import hashlib
import os
import sys

import httpx

base, upload, redirect, *odd_targets = sys.argv[1:]
client = httpx.Client()
if "TOKEN" in os.environ:
    client.headers["Authorization"] = "Bearer " + os.environ["TOKEN"]


def show(name, response):
    digest = hashlib.sha256(response.content).hexdigest()
    print(name, response.status_code, response.headers.get("Content-Type"), digest, flush=True)


show("get", client.get(base + "/api/blogposts/@sitehome", params={"pageIndex": 1, "pageSize": 2}))
head = client.head(base + "/bytes/123456")
print("head", head.status_code, head.headers["Content-Type"], head.headers["Content-Length"])
show("post-json", client.post(base + "/echo/json?raw", json={"Content": "你好, 博客园", "Number": 1}))
form = {"title": "你好 & more", "tags": "a b+c", "empty": ""}
show("post-form", client.post(base + "/echo/form?raw", data=form))
with open(upload, "rb") as file:
    files = {"file": ("upload.bin", file)}
    print("upload", client.post(base + "/echo/upload", data={"title": "你好"}, files=files).status_code)
show("patch", client.patch(base + "/echo/patch?raw", json={"Content": "patched"}))
show("delete", client.request("DELETE", base + "/echo/delete?raw", json={"Ids": [1, 2]}))

digest = hashlib.sha256()
with client.stream("GET", base + "/bytes/67108864") as download:
    for piece in download.iter_bytes():
        digest.update(piece)
print("download", download.status_code, download.headers["Content-Type"], digest.hexdigest())
show("redirect", client.get(base + redirect, follow_redirects=True))

# The upstream sends the next event only when it has heard that this one was seen.
seen = []
with client.stream("GET", base + "/lockstep") as events:
    for line in events.iter_lines():
        if line.startswith("data: "):
            seen.append(line[6:])
            client.get(base + "/echo/seen/" + seen[-1])
print("events", *seen)
for target in odd_targets:
    print("odd", client.get(base + target).status_code)
