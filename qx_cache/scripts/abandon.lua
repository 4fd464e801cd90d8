#!lua flags=allow-oom
-- End a lease now, with nothing recorded: the next claim is a takeover.
--
-- KEYS[1..3]        see claim.lua
--
-- ARGV[1]  owner    token of the claim, or the beginning of it that a dead process put before its tokens
-- ARGV[2]  holder   holder of the claim
-- ARGV[3]  counted  "1": an interruption, which counts as an attempt; "0": an orderly hand-back, which does not
--
-- Replies
--   {"abandoned"}  the lease is over
--   {"again"}      it was over already
--   {"lost"}       no live claim of this owner and holder; nothing changed
--
-- Safe to repeat: the second time says "again" and changes nothing.

local record, waited, wake = KEYS[1], KEYS[2], KEYS[3]
local owner, holder, counted = ARGV[1], ARGV[2], ARGV[3] == "1"

local header = redis.call("GETRANGE", record, 0, 511)
local version, state, fence, until_ms, attempt, rest, s_owner, s_holder, fingerprint =
  string.match(header, "^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+ %S+) (%S+) (%S+) (%S+)\n")
if version ~= "1" or state ~= "running" or s_holder ~= holder then
  return { "lost" }
end
if string.sub(s_owner, 1, #owner) ~= owner then
  return { "lost" }
end

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(until_ms) <= now_ms then
  return { "again" }
end
if not counted then
  attempt = string.format("%.0f", tonumber(attempt) - 1)
end
header = table.concat({
  "1", state, fence, string.format("%.0f", now_ms), attempt, rest, s_owner, s_holder, fingerprint,
}, " ")
redis.call("SET", record, header .. "\n", "KEEPTTL")
if redis.call("EXISTS", waited) == 1 then
  redis.call("DEL", wake)
  redis.call("RPUSH", wake, "1")
  redis.call("PEXPIRE", wake, 5000)
end
return { "abandoned" }
