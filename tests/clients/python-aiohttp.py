"""What a program with `aiohttp` does. It prints a line for each step.

usage: python-aiohttp.py BASE_URL UPLOAD REDIRECT_TARGET ODD_TARGET...    (TOKEN: what the upstream itself asks for)
"""

import asyncio
import hashlib
import os
import sys

import aiohttp

base, upload, redirect, *odd_targets = sys.argv[1:]


async def show(name, request):
    async with request as response:
        digest = hashlib.sha256(await response.read()).hexdigest()
        print(name, response.status, response.headers.get("Content-Type"), digest, flush=True)


async def status(request):
    async with request as response:
        await response.read()
        return response.status


async def calls(session):
    await show("get", session.get(base + "/api/blogposts/@sitehome", params={"pageIndex": 1, "pageSize": 2}))
    async with session.head(base + "/bytes/123456") as head:
        print("head", head.status, head.headers["Content-Type"], head.headers["Content-Length"])
    await show("post-json", session.post(base + "/echo/json?raw", json={"Content": "你好, 博客园", "Number": 1}))
    form = {"title": "你好 & more", "tags": "a b+c", "empty": ""}
    await show("post-form", session.post(base + "/echo/form?raw", data=form))
    with open(upload, "rb") as file:
        form = aiohttp.FormData({"title": "你好"})
        form.add_field("file", file, filename="upload.bin")
        print("upload", await status(session.post(base + "/echo/upload", data=form)))
    await show("patch", session.patch(base + "/echo/patch?raw", json={"Content": "patched"}))
    await show("delete", session.delete(base + "/echo/delete?raw", json={"Ids": [1, 2]}))


async def streams(session):
    digest = hashlib.sha256()
    async with session.get(base + "/bytes/67108864") as download:
        async for piece in download.content.iter_any():
            digest.update(piece)
    print("download", download.status, download.headers["Content-Type"], digest.hexdigest())
    await show("redirect", session.get(base + redirect))

    # The upstream sends the next event only when it has heard that this one was seen.
    seen = []
    async with session.get(base + "/lockstep") as events:
        async for line in events.content:
            if line.startswith(b"data: "):
                seen.append(line[6:].decode().strip())
                await status(session.get(base + "/echo/seen/" + seen[-1]))
    print("events", *seen)


async def main():
    headers = {"Authorization": "Bearer " + os.environ["TOKEN"]} if "TOKEN" in os.environ else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        await calls(session)
        await streams(session)
        for target in odd_targets:
            print("odd", await status(session.get(base + target)))


asyncio.run(main())
