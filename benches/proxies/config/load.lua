-- Sends each request as the next of the users, whose cookies are the lines of the file COOKIES.
local requests, last = {}, 0

function init()
  for line in io.lines(os.getenv("COOKIES")) do
    requests[#requests + 1] = wrk.format("GET", "/api/notes", { Cookie = line })
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end

function done(summary)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format("requests %d microseconds %d failed %d\n", summary.requests, summary.duration, failed))
end
