-- Read the header of a record, and perhaps wait for the end of its run. The body is not moved.
--
-- KEYS[1..2]        see claim.lua
--
-- ARGV[1]  wait_ms  how long to be believed to wait for a live claim; "0": only looks
--
-- Replies
--   {"record", header, now_ms, live, ttl_ms}  live is 1 while the run's lease lasts
--   {"absent"}
--
-- Safe to repeat.

local record, waited, wait_ms = KEYS[1], KEYS[2], tonumber(ARGV[1])

local stored = redis.call("GETRANGE", record, 0, 511)
if stored == "" then
  return { "absent" }
end
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local version, state, until_ms = string.match(stored, "^(%S+) (%S+) %S+ (%S+) ")
local live = version == "1" and state == "running" and (tonumber(until_ms) or 0) > now_ms
if live and wait_ms > 0 then
  redis.call("SET", waited, "1", "PX", wait_ms)
end
local header = string.match(stored, "^[^\n]*")
return { "record", header, string.format("%.0f", now_ms), live and 1 or 0, redis.call("PTTL", record) }
