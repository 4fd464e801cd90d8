#!lua flags=allow-oom
-- Record how a claimed run ended.
--
-- KEYS[1..3]            see claim.lua
--
-- ARGV[1]  state        what the record says from now on: "done", "failed", "ended" or "unknown"
-- ARGV[2]  owner        token of the claim
-- ARGV[3]  ttl_ms       how long the record is kept
-- ARGV[4]  before       the new header up to its time, which is the server's
-- ARGV[5]  after        the rest of it
-- ARGV[6]  body         the result, or the failure; opaque
--
-- Replies
--   "stored"   recorded, also where the record had vanished (eviction, flush): it is built again
--   "again"    recorded before by the same owner: the reply was lost
--   "lost"     the record bears another owner, or cannot be read; nothing changed
--
-- Safe to repeat: the second time says "again" and changes nothing.
-- allow-oom: the effect has happened, so its record must find room.

local record, waited, wake = KEYS[1], KEYS[2], KEYS[3]
local state, owner, ttl_ms, before, after, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local header = redis.call("GETRANGE", record, 0, 511)
if header ~= "" then
  local s_state, s_owner = string.match(header, "^1 (%S+) %S+ %S+ %S+ %S+ %S+ (%S+) %S+ %S+\n")
  if s_owner ~= owner then
    return "lost"
  end
  if s_state == state then
    return "again"
  end
  if s_state ~= "running" then
    return "lost"
  end
end

local time = redis.call("TIME")
local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
redis.call("SET", record, before .. now_ms .. after .. body, "PX", ttl_ms)
if redis.call("EXISTS", waited) == 1 then
  redis.call("DEL", wake)
  redis.call("RPUSH", wake, "1")
  redis.call("PEXPIRE", wake, 5000)
end
return "stored"
