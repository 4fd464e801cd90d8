#!lua flags=allow-oom
-- Store a result where there is none: the first caller wins.
--
-- KEYS[1..3]       see claim.lua
--
-- ARGV[1]  owner   token of this call, made by the caller
-- ARGV[2]  holder  label of the caller
-- ARGV[3]  ttl_ms  how long the record is kept
-- ARGV[4]  flags   see finish.lua
-- ARGV[5]  body    the result; opaque
--
-- Replies
--   {"stored"}             recorded
--   {"kept"}               a result or a live claim is there; nothing changed
--   {"corrupt", beginning} not a record of this layout; left as it is
--
-- Safe to repeat: the same owner gets "stored" again.

local record, waited, wake = KEYS[1], KEYS[2], KEYS[3]
local owner, holder, ttl_ms, flags, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local time = redis.call("TIME")
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local fence = now_us

local header = redis.call("GETRANGE", record, 0, 511)
if header ~= "" then
  local version, state, s_fence, s_time, s_owner =
    string.match(header, "^(%S+) (%S+) (%S+) (%S+) %S+ %S+ %S+ (%S+) %S+ %S+\n")
  s_fence, s_time = tonumber(s_fence), tonumber(s_time)
  if version ~= "1" or not (s_fence and s_time) then
    return { "corrupt", string.sub(header, 1, 60) }
  end
  if s_owner == owner then
    return { "stored" }
  end
  local free = state == "ended" or (state == "running" and s_time <= now_ms)
  if not free then
    return { "kept" }
  end
  fence = math.max(s_fence + 1, now_us)
end

header = table.concat({
  "1", "done", string.format("%.0f", fence), string.format("%.0f", now_ms), "1", "0", flags, owner, holder, "-",
}, " ")
redis.call("SET", record, header .. "\n" .. body, "PX", ttl_ms)
if redis.call("EXISTS", waited) == 1 then
  redis.call("DEL", wake)
  redis.call("RPUSH", wake, "1")
  redis.call("PEXPIRE", wake, 5000)
end
return { "stored" }
