#!lua flags=allow-oom
-- Say what became of a run that is over, in place of its owner; or forget it. For operators, and for runs whose end
-- is unknown.
--
-- KEYS[1..3]       see claim.lua
--
-- ARGV[1]  fence   that was seen: of the run that is meant
-- ARGV[2]  state   what the record says from now on; "-": there is none any more
-- ARGV[3]  ttl_ms  how long it is kept
-- ARGV[4]  flags   see claim.lua
-- ARGV[5]  body    the result, or the kept failure; opaque
--
-- Replies
--   "settled"  recorded, or forgotten
--   "running"  the run is alive: nothing changed
--   "other"    there is no record of that run, or it cannot be read: nothing changed
--
-- Safe to repeat: a second time writes the same, or says "other" where it was forgotten.

local record, waited, wake = KEYS[1], KEYS[2], KEYS[3]
local seen, state, ttl_ms, flags, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local header = redis.call("GETRANGE", record, 0, 511)
local s_state, s_fence, s_time, numbers, told =
  string.match(header, "^1 (%S+) (%d+) (%d+) (%d+ %d+) %S+ (%S+ %S+ %S+)\n")
if s_fence ~= seen then
  return "other"
end
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if s_state == "running" and tonumber(s_time) > now_ms then
  return "running"
end
if state == "-" then
  redis.call("DEL", record)
else
  local before = "1 " .. state .. " " .. s_fence .. " " .. string.format("%.0f", now_ms)
  local after = " " .. numbers .. " " .. flags .. " " .. told .. "\n"
  redis.call("SET", record, before .. after .. body, "PX", ttl_ms)
end
if redis.call("EXISTS", waited) == 1 then
  redis.call("DEL", wake)
  redis.call("RPUSH", wake, "1")
  redis.call("PEXPIRE", wake, 5000)
end
return "settled"
