#!lua flags=allow-oom
-- Give a lock back.
--
-- KEYS[1]  lock       see lock_acquire.lua
-- KEYS[2]  fence      see lock_acquire.lua
-- KEYS[3]  ended      see lock_acquire.lua (only for guarded runs that are to be remembered)
--
-- ARGV[1]  token      of the holder
-- ARGV[2]  memory_ms  how long the fence is remembered
-- ARGV[3]  retries    which attempt of the run has ended
-- ARGV[4]  ended_ms   how long that is remembered
--
-- Replies
--   {"released"}  the lock is free
--   {"again"}     this token released it before: the reply was lost
--   {"lost"}      it is not this token's any more; another's lock was not touched
--
-- Safe to repeat: the second time says "again" and changes nothing.

local lock, fence, ended = KEYS[1], KEYS[2], KEYS[3]
local token, memory_ms, retries, ended_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if ended then
  local before = tonumber(redis.call("GET", ended) or "-1")
  redis.call("SET", ended, string.format("%.0f", math.max(before, tonumber(retries))), "PX", ended_ms)
end
if redis.call("GET", lock) == token then
  redis.call("DEL", lock)
  redis.call("HSET", fence, "r", token)
  redis.call("PEXPIRE", fence, memory_ms)
  return { "released" }
end
if redis.call("HGET", fence, "r") == token then
  return { "again" }
end
return { "lost" }
