#!lua flags=allow-oom
-- Note that numbered work was published: from now on work with a lower number is superseded.
--
-- KEYS[1]  fence      see lock_acquire.lua; l is the highest number that was published
--
-- ARGV[1]  number     that was published
-- ARGV[2]  memory_ms  how long it is remembered
--
-- Replies  {"latest", l}
--
-- Safe to repeat.

local fence, number, memory_ms = KEYS[1], ARGV[1], ARGV[2]
local latest = redis.call("HGET", fence, "l") or "0"
if tonumber(number) > tonumber(latest) then
  latest = number
  redis.call("HSET", fence, "l", number)
end
if redis.call("PTTL", fence) < tonumber(memory_ms) then
  redis.call("PEXPIRE", fence, memory_ms)
end
return { "latest", latest }
