#!/usr/bin/env bash
# What a script with wget does. It prints a line for each step.
# usage: wget.sh BASE_URL UPLOAD REDIRECT_TARGET ODD_TARGET...    (TOKEN: what the upstream itself asks for)
set -euo pipefail

base=$1 upload=$2 redirect=$3
shift 3
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
authorization=()
if [[ -n ${TOKEN:-} ]]; then authorization=(--header "Authorization: Bearer $TOKEN"); fi

# The status is read below; wget's own exit status says the same.
call() { wget -nv -S "${authorization[@]}" -O "$scratch/body" "$@" 2>"$scratch/log" || true; }

status() { sed -n 's/^ *HTTP\/[0-9.]* \([0-9]*\).*/\1/p' "$scratch/log" | tail -n 1; }

field() { sed -n "s/^ *$1: //Ip" "$scratch/log" | tail -n 1; }

step() {
    local name=$1
    shift
    call "$@"
    echo "$name $(status) $(field content-type) $(sha256sum <"$scratch/body" | cut -d ' ' -f 1)"
}

step get "$base/api/blogposts/@sitehome?pageIndex=1&pageSize=2"
call --method=HEAD "$base/bytes/123456"
echo "head $(status) $(field content-type) $(field content-length)"
json=(--header 'Content-Type: application/json')
step post-json "${json[@]}" --post-data='{"Content":"你好, 博客园","Number":1}' "$base/echo/json?raw"
step post-form --post-data='title=%E4%BD%A0%E5%A5%BD+%26+more&tags=a+b%2Bc&empty=' "$base/echo/form?raw"

# wget knows no multipart bodies; it sends a file as it is.
{
    printf -- '--boundary-of-wget\r\nContent-Disposition: form-data; name="title"\r\n\r\n你好\r\n'
    printf -- '--boundary-of-wget\r\nContent-Disposition: form-data; name="file"; filename="upload.bin"\r\n\r\n'
    cat "$upload"
    printf -- '\r\n--boundary-of-wget--\r\n'
} >"$scratch/upload"
multipart=(--header 'Content-Type: multipart/form-data; boundary=boundary-of-wget')
call "${multipart[@]}" --post-file="$scratch/upload" "$base/echo/upload"
echo "upload $(status)"
step patch "${json[@]}" --method=PATCH --body-data='{"Content":"patched"}' "$base/echo/patch?raw"
step delete "${json[@]}" --method=DELETE --body-data='{"Ids":[1,2]}' "$base/echo/delete?raw"
step download "$base/bytes/67108864"
step redirect "$base$redirect"

# The upstream sends the next event only when it has heard that this one was seen.
wget -nv "${authorization[@]}" -O - "$base/lockstep" 2>/dev/null | {
    seen=events
    while IFS= read -r line; do
        if [[ $line == data:* ]]; then
            seen+=" ${line#data: }"
            call "$base/echo/seen/${line#data: }"
        fi
    done
    echo "$seen"
}
for target; do
    call "$base$target"
    echo "odd $(status)"
done
