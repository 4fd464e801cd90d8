#!lua flags=allow-oom
-- Confirm that claimed work was published: from now on it holds up others, until it begins.
--
-- KEYS[1]  queued   see publish_claim.lua
--
-- ARGV[1]  id       of the work
-- ARGV[2]  life_ms  how long it may wait to be run
--
-- Replies
--   {"confirmed"}   it is known as queued for life_ms, or for longer where it was already
--   {"gone"}        it has begun meanwhile, or another has claimed the name; nothing changed
--
-- Safe to repeat.

local queued, id, life_ms = KEYS[1], ARGV[1], ARGV[2]
local known = redis.call("GET", queued) or ""
if string.sub(known, 3) ~= id then
  return { "gone" }
end
local left_ms = string.sub(known, 1, 1) == "c" and redis.call("PTTL", queued) or 0
redis.call("SET", queued, "c " .. id, "PX", math.max(left_ms, tonumber(life_ms)))
return { "confirmed" }
