-- Says what wrk counted as one line of JSON.
function done(summary)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format('{"requests": %d, "bytes": %d, "errors": %d}\n', summary.requests, summary.bytes, failed))
end
