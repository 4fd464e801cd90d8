-- Give a number to work that is about to be published: higher than every number given before under this name.
--
-- KEYS[1]  fence      see lock_acquire.lua; n is the last number given
--
-- ARGV[1]  memory_ms  how long it is remembered
--
-- Replies  {"number", n}
--
-- max(last + 1, server time in microseconds): it rises even when the last one is forgotten.
-- Safe to repeat: a second number is as good, and one that is never used does no harm.

local fence, memory_ms = KEYS[1], ARGV[1]
local time = redis.call("TIME")
local last = redis.call("HGET", fence, "n") or "0"
local number = string.format("%.0f", math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call("HSET", fence, "n", number)
if redis.call("PTTL", fence) < tonumber(memory_ms) then
  redis.call("PEXPIRE", fence, memory_ms)
end
return { "number", number }
