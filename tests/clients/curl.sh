#!/usr/bin/env bash
# What a script with curl does. It prints a line for each step.
# usage: curl.sh BASE_URL UPLOAD REDIRECT_TARGET ODD_TARGET...    (TOKEN: what the upstream itself asks for)
set -euo pipefail

base=$1 upload=$2 redirect=$3
shift 3
body=$(mktemp)
trap 'rm -f "$body"' EXIT
authorization=()
if [[ -n ${TOKEN:-} ]]; then authorization=(-H "Authorization: Bearer $TOKEN"); fi

call() { curl -sS "${authorization[@]}" "$@"; }

step() {
    local name=$1 said
    shift
    said=$(call -o "$body" -w '%{http_code} %{content_type}' "$@")
    echo "$name $said $(sha256sum <"$body" | cut -d ' ' -f 1)"
}

step get "$base/api/blogposts/@sitehome?pageIndex=1&pageSize=2"
echo "head $(call -I -o "$body" -w '%{http_code} %{content_type}' "$base/bytes/123456")" \
    "$(sed -n 's/^content-length: \([0-9]*\).*/\1/Ip' "$body")"
step post-json -H 'Content-Type: application/json' -d '{"Content":"你好, 博客园","Number":1}' "$base/echo/json?raw"
step post-form --data-urlencode 'title=你好 & more' -d 'tags=a+b%2Bc' -d 'empty=' "$base/echo/form?raw"
echo "upload $(call -o "$body" -w '%{http_code}' -F 'title=你好' -F "file=@$upload;filename=upload.bin" "$base/echo/upload")"
step patch -X PATCH -H 'Content-Type: application/json' -d '{"Content":"patched"}' "$base/echo/patch?raw"
step delete -X DELETE -H 'Content-Type: application/json' -d '{"Ids":[1,2]}' "$base/echo/delete?raw"
step download "$base/bytes/67108864"
step redirect -L "$base$redirect"

# The upstream sends the next event only when it has heard that this one was seen.
call -N "$base/lockstep" | {
    seen=events
    while IFS= read -r line; do
        if [[ $line == data:* ]]; then
            seen+=" ${line#data: }"
            call -o "$body" "$base/echo/seen/${line#data: }"
        fi
    done
    echo "$seen"
}
for target; do
    echo "odd $(call -o "$body" -w '%{http_code}' "$base$target")"
done
