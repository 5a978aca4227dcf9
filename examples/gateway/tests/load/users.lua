-- Sends each request as a random user. COOKIES names the file with the users' cookies, one per line.
local cookies = {}

function init()
  for line in io.lines(os.getenv("COOKIES")) do
    cookies[#cookies + 1] = line
  end
  math.randomseed(tonumber(tostring({}):match("0x(%x+)"), 16))
end

function request()
  return wrk.format("GET", "/api/notes", { Cookie = cookies[math.random(#cookies)] })
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"max_ms":%f,"refused":%d,"socket_errors":%d,"timeouts":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
