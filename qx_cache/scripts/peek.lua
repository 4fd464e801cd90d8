-- Read the header of a record, or wait for the end of its run and read all of it then.
--
-- KEYS[1..2]        see claim.lua
--
-- ARGV[1]  wait_ms  how long to be believed to wait for a live claim; "0": not at all; missing: only the header
--
-- Replies
--   {"record", stored, now_ms}  the header; the whole record where an end is asked for and has come
--   {"absent"}
--
-- Safe to repeat.

local record, waited, wait_ms = KEYS[1], KEYS[2], ARGV[1]

local stored = redis.call("GETRANGE", record, 0, 511)
if stored == "" then
  return { "absent" }
end
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state, until_ms = string.match(stored, "^1 (%S+) %S+ (%d+) ")
if not wait_ms then
  stored = string.match(stored, "^[^\n]*")
elseif state == "running" and tonumber(until_ms) > now_ms then
  if wait_ms ~= "0" then
    redis.call("SET", waited, "1", "PX", wait_ms)
  end
else
  stored = redis.call("GET", record)
end
return { "record", stored, string.format("%.0f", now_ms) }
